"""The tokens room as stages: records to packed rows."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from iqc.streams.stage import Dropped, Noted, Record, Transform
from iqc.tokens.pack import Encoded, Packer
from iqc.tokens.tokenise import Options, samples
from iqc.tokens.tokenizer import Tokenizer, load
from iqc.tokens.upsample import Upsampling

Reduce = Callable[[Iterator[Encoded]], Iterator[Record | Dropped]]
NUMBERS = ("tokens", "learnt", "longest", "tries", "split", "cut", "pieces", "tails")  # of PackStats, for the summary


def tokenise_stage(tokenizer: str | Tokenizer, **options: Any) -> Transform:
    """The map of `pack`: a record to its samples. `tokenizer`: a directory, or one that is loaded, which forked workers
    share. `options` are those of iqc.tokens.tokenise."""
    loaded = load(Path(tokenizer)) if isinstance(tokenizer, str) else tokenizer
    asked = Options(**options)

    def transform(record: Record) -> Iterable[Encoded | Dropped | Noted]:
        return samples(record, loaded, asked)

    return transform


def pack_all(packer: Packer, upsampling: Upsampling | None, encoded: Iterator[Encoded]) -> Iterator[Record | Dropped]:
    """The reduce of `pack`: samples to rows."""
    for sample in upsampling(encoded) if upsampling else encoded:
        if isinstance(sample, Dropped):
            yield sample
        else:
            yield from packer.add(sample)
    yield from packer.finish()


def packing(packer: Packer, upsampling: Upsampling | None = None) -> tuple[Reduce, Callable[[], dict]]:
    """The reduce of `pack` and its numbers for the summary."""

    def measured() -> dict:
        stats = packer.stats
        numbers = {name: getattr(stats, name) for name in NUMBERS}
        numbers |= {"long": upsampling.long, "copies": upsampling.copies} if upsampling else {}
        kinds = {name: dict(sorted(getattr(stats, name).items())) for name in ("by_kind", "learnt_by_kind")}
        return {"fill": round(stats.fill, 4)} | numbers | kinds

    return partial(pack_all, packer, upsampling), measured
