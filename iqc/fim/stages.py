"""`fim` as a stage."""

from collections.abc import Callable, Mapping
from functools import partial

from iqc.fim import FillInTheMiddle
from iqc.streams.stage import Transform


def fim(rate: float, weights: Mapping[str, float], layout: str, samples: int, seed: int) -> Callable[[], Transform]:
    """The factory of the stage; IqcError at once for a layout or level that does not exist."""
    FillInTheMiddle(rate, weights, layout, samples, seed)
    return partial(_transform, rate, weights, layout, samples, seed)


def _transform(rate: float, weights: Mapping[str, float], layout: str, samples: int, seed: int) -> Transform:
    return FillInTheMiddle(rate, weights, layout, samples, seed).transform
