"""`fim` as a stage: whole documents, or stretches of them for a model whose context a file does not fit."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from iqc.fim import FillInTheMiddle
from iqc.streams.stage import Dropped, Record, Transform, metadata_of, require


def fim(
    rate: float, weights: Mapping[str, float], layout: str, samples: int, stretch: int, seed: int
) -> Callable[[], Transform]:
    """The factory of the stage; IqcError at once for a layout or level that does not exist."""
    FillInTheMiddle(rate, weights, layout, samples, seed)
    return partial(_transform, rate, weights, layout, samples, stretch, seed)


def _transform(
    rate: float, weights: Mapping[str, float], layout: str, samples: int, stretch: int, seed: int
) -> Transform:
    maker = FillInTheMiddle(rate, weights, layout, samples, seed)

    def transform(record: Record) -> Iterator[Record | Dropped]:
        for part in stretches(record, stretch) if stretch else (record,):
            yield from maker.transform(part)

    return transform


def stretches(record: Record, size: int) -> Iterator[Record]:
    """A document as consecutive runs of whole lines of at most `size` characters, `id~0`, `id~1`, ...

    A run ends, where it can past its middle, before a line that begins a new definition: one at column 0 behind a blank
    line. A line that is longer than `size` is a run of its own.
    """
    text = require(record, "text")
    if len(text) <= size:
        yield record
        return
    start = number = 0
    while start < len(text):
        end = _end(text, start, size)
        metadata = {**metadata_of(record), "offset": start}
        yield record | {"id": f"{record['id']}~{number}", "text": text[start:end], "metadata": metadata}
        start, number = end, number + 1


def _end(text: str, start: int, size: int) -> int:
    """Where the run that begins at `start` ends: just behind a line end, or at the end of the text."""
    limit = start + size
    if limit >= len(text):
        return len(text)
    at = limit
    while (blank := text.rfind("\n\n", start + size // 2, at)) >= 0:
        if not text[blank + 2].isspace():
            return blank + 2
        at = blank + 1
    line = text.rfind("\n", start, limit)
    if line < 0:
        line = text.find("\n", limit)
    return len(text) if line < 0 else line + 1
