"""Rows -> training batches, as a pure function of the number of the row in the whole run (`order`).

So a run goes on from any step by reading that step's rows alone. Batches are made ahead, in a thread.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from iqc.errors import BadRecord
from iqc.tokens.dataset import Dataset
from iqc.tokens.order import row_indices
from iqc.tokens.sequence import starts

CHOSEN, REJECTED = "#chosen", "#rejected"  # the ends of the ids of a pair
AHEAD = 2  # batches made before they are asked for


@dataclass(slots=True)
class Batch:
    """tokens [B, T] int64, padded at the end; weights [B, T] f32: the weight of predicting tokens[b, t] from those
    before it in its document, 0 at the first token of a document and in the padding; lengths: per row the lengths
    [documents] of its documents, which add up to the row's tokens without padding; domains [B] int64: the number of
    the source of each row, None where rows have no sources."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]
    lengths: list[NDArray[np.int64]]
    domains: NDArray[np.int64] | None = None


@dataclass(slots=True)
class Limits:
    """What a model takes: rows of at most `context` tokens, each below `vocab_size`; `pad_id` fills a batch up. Rows of
    preference pairs alone with `pairs`, none of them without: there the rejected answers would be learnt, too."""

    context: int
    vocab_size: int
    pad_id: int
    pairs: bool = False


class Ahead:
    """Batches by their number, made in a thread before they are asked for: the next AHEAD after the one taken last."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        """`make` is called in the thread alone."""
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future[Batch]] = {}

    def take(self, number: int, end: int) -> Batch:
        """A batch; those from `end` on are not made ahead. What went wrong in the thread is raised here, at the batch
        that it spoils."""
        wanted = range(number, min(number + 1 + AHEAD, end))
        for other in [made for made in self._made if made not in wanted]:
            self._made.pop(other).cancel()
        for other in wanted:
            if other not in self._made:
                self._made[other] = self._thread.submit(self._make, other)
        return self._made.pop(number).result()

    def ask(self, function: Callable[[], Batch]) -> Batch:
        """What a function gives in the thread."""
        return self._thread.submit(function).result()

    def forget(self) -> None:
        """Batches are made anew: they would be others now. Afterwards none is being made."""
        for made in self._made.values():
            made.cancel()
        self._made.clear()
        self._thread.submit(int).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


def batches(
    dataset: Dataset, limits: Limits, *, seed: int, batch_rows: int, start: int = 0, rank: int = 0, ranks: int = 1
) -> Generator[Batch, None, None]:
    """Batches `start`, `start + 1`, ... without end: batch k holds rows k * batch_rows and on of the run, and of these
    a rank takes, and reads, a run of its own: those of all ranks one after the other are the batch.

    What goes wrong in the thread is raised here, at the batch that it spoils. Close the generator to end the thread.
    """
    first, end = (batch_rows * number // ranks for number in (rank, rank + 1))

    def make(batch: int) -> Batch:
        indices = row_indices(len(dataset), seed, batch * batch_rows + first, end - first)
        return assemble(dataset, indices, limits)

    ahead = Ahead(make)
    try:
        for number in count(start):
            yield ahead.take(number, number + 1 + AHEAD)
    finally:
        ahead.close()


def in_order(dataset: Dataset, limits: Limits, batch_rows: int) -> Iterator[Batch]:
    """All rows once, in the order of the set; the last batch may be smaller."""
    for start in range(0, len(dataset), batch_rows):
        yield assemble(dataset, range(start, min(start + batch_rows, len(dataset))), limits)


def assemble(dataset: Dataset, indices: Sequence[int] | NDArray[np.int64], limits: Limits) -> Batch:
    """Those rows as one batch of T = `limits.context`. Raises BadRecord, which names it, for a row that is longer, has
    a token that the model does not know, or is no row of pairs where it has to be, or the other way round."""
    indices = np.asarray(indices, np.int64)
    tokens = np.empty((len(indices), limits.context), np.int64)
    weights = np.empty((len(indices), limits.context), np.float32)
    lengths = []
    for at, row in enumerate(dataset.rows(indices)):
        size = row.tokens.size
        if size > limits.context:
            raise BadRecord(
                f"a row of {size} tokens for a context of {limits.context}",
                where=dataset.place(int(indices[at])),
                remedy=f"iqc pack --context {limits.context}",
            )
        if pairs_in(row.ids) != (list(range(0, len(row.ids), 2)) if limits.pairs else []):
            raise BadRecord(
                "a row with samples that are no preference pair" if limits.pairs else "a row with preference pairs",
                where=dataset.place(int(indices[at])),
                remedy="pack pairs alone for stage dpo, and without them for other stages",
            )
        if limits.pairs and not np.add.reduceat(row.loss, starts(row.lengths), dtype=np.float64).all():
            raise BadRecord(
                "a preference pair with an answer of which nothing is learnt",
                where=dataset.place(int(indices[at])),
                remedy="look at the loss of its messages",
            )
        tokens[at, :size], weights[at, :size] = row.tokens, row.loss
        if size < limits.context:
            tokens[at, size:], weights[at, size:] = limits.pad_id, 0
        lengths.append(row.lengths.astype(np.int64))
    if tokens.max(initial=0) >= limits.vocab_size:
        at = int(np.argmax(tokens.max(axis=1)))
        raise BadRecord(
            f"token {tokens[at].max()} for a vocabulary of {limits.vocab_size}",
            where=dataset.place(int(indices[at])),
            remedy="pack again with the tokenizer of the model",
        )
    return Batch(tokens, weights, lengths)


def pairs_in(ids: list[str]) -> list[int]:
    """Which documents of a row are the first of a preference pair, of which iqc.tokens.tokenise makes neighbours."""
    ends = (number for number, name in enumerate(ids) if name.endswith(REJECTED) and number)
    return [end - 1 for end in ends if ids[end - 1] == ids[end].removesuffix(REJECTED) + CHOSEN]
