"""IQC_DEBUG: a forward stops at the first layer that makes a number which is not finite, and names it."""

import os

import torch
from torch import Tensor

from iqc.errors import IqcError


def debugging() -> bool:
    return bool(os.environ.get("IQC_DEBUG"))


def check_finite(x: Tensor, place: str) -> None:
    """IqcError that says how many values are not finite after `place`."""
    wrong = int((~torch.isfinite(x)).sum())
    if wrong:
        raise IqcError(
            f"{wrong} of {x.numel()} values are not finite after {place}",
            remedy="its weights, or what came before it in higher precision, tell why",
        )
