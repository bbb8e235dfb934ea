"""`dedup` as a set stage: signatures in the workers, decisions in one process in the order of the input."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from iqc.dedup.documents import Deduplicator, Signature, dropped, signature
from iqc.dedup.minhash import Lsh
from iqc.streams.stage import Dropped, Record, Transform, metadata_of, require


def signatures(lsh: Lsh | None) -> Transform:
    """The map: a document to itself and its signature."""

    def transform(record: Record) -> Iterable[tuple[Record, Signature]]:
        require(record, "id")
        metadata_of(record)  # a bad one is refused here, where --on-error acts
        yield record, signature(require(record, "text"), lsh)

    return transform


def keep_first(threshold: float, pairs: Iterator[tuple[Record, Signature]]) -> Iterator[Record | Dropped]:
    """The reduce: each document that repeats no kept one."""
    with Deduplicator(threshold) as seen:
        for record, found in pairs:
            duplicate = seen.add(record["id"], found)
            yield record if duplicate is None else dropped(record, duplicate, threshold)


def dedup(threshold: float, lsh: Lsh | None) -> tuple[Callable[[], Transform], Callable]:
    """Factory and reduce of the stage."""
    return partial(signatures, lsh), partial(keep_first, threshold)
