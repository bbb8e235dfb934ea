"""The tokens room as stages: records to packed rows, and the text that a tokenizer is trained on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from iqc.errors import BadRecord
from iqc.streams.stage import Dropped, Record, Transform
from iqc.tokens.pack import Packer
from iqc.tokens.render import render, tokenise
from iqc.tokens.tokenizer import load


def tokenise_stage(tokenizer: str, fim_middle_only: bool = False, change_only: bool = False) -> Transform:
    """The map of `pack`: a record to its tokens."""
    loaded = load(Path(tokenizer))

    def transform(record: Record) -> Iterable[Record]:
        yield tokenise(record, loaded, fim_middle_only=fim_middle_only, change_only=change_only)

    return transform


def pack_all(packer: Packer, samples: Iterator[Record]) -> Iterator[Record | Dropped]:
    """The reduce of `pack`: tokenised samples to rows."""
    for sample in samples:
        yield from packer.add(sample)
    yield from packer.finish()


def packing(packer: Packer) -> tuple[Callable[[Iterator[Record]], Iterator[Record | Dropped]], Callable[[], dict]]:
    """The reduce of `pack` and its numbers for the summary."""

    def measured() -> dict:
        stats = asdict(packer.stats)
        return {"fill": round(packer.stats.fill, 4)} | {k: stats[k] for k in ("tokens", "learnt", "split", "pieces")}

    return partial(pack_all, packer), measured


def training_text(records: Iterable[Record], limit: int) -> Iterator[str]:
    """The text of records without control tokens, up to `limit` characters in all, for training a tokenizer."""
    seen = 0
    for number, record in enumerate(records, 1):
        try:
            segments = render(record).segments
        except BadRecord as error:
            raise BadRecord(error.what, where=f"record {number}", remedy=error.remedy) from None
        for segment in segments:
            if not segment.is_control and segment.value:
                yield segment.value
                seen += len(segment.value)
        if seen >= limit:
            return
