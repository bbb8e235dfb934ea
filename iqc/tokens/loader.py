"""Rows -> training batches, as a pure function of the number of the row in the whole run.

Row g of a run is in epoch g // rows, at place g % rows of that epoch's order, and the order comes from (seed, epoch)
alone. So a trainer starts at any step at once, and any number of ranks share the same global batches: each takes its
own range of a batch's rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from iqc.errors import BadRecord, IqcError
from iqc.streams.stage import Record
from iqc.tokens.sequence import decode_sequence

MAX_TOKENS = 1 << 31  # held in memory: 8 GiB of tokens, and 2 (0/1) or 8 GiB (weights) of losses


@dataclass(slots=True)
class Batch:
    """tokens [B, T] int64, padded at the end; weights [B, T] f32: the weight of predicting tokens[b, t] from those
    before it in its document, 0 at the first token of a document and in the padding; lengths: per row the lengths
    [documents] of its documents, which add up to the row's tokens without padding."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]
    lengths: list[NDArray[np.int64]]


class SequenceStore:
    """All rows of a training set in memory, `max_tokens` at most: 5 bytes a token, 8 where any loss is neither 0 nor 1
    (twice that while they are read). Raises IqcError when there are none or more than that, BadRecord for a record
    that is no sequence."""

    def __init__(self, records: Iterable[Record], *, max_tokens: int = MAX_TOKENS) -> None:
        tokens, losses, lengths = [], [], []
        total = 0
        for record in records:
            row = decode_sequence(record)
            total += row.tokens.size
            if total > max_tokens:
                raise IqcError(
                    f"the training rows hold more than {max_tokens} tokens", remedy="train on fewer files at a time"
                )
            tokens.append(row.tokens)
            losses.append(row.loss)
            lengths.append(row.lengths)
        if not tokens:
            raise IqcError("no training rows", remedy="give the output of `iqc pack`")
        self.tokens = np.concatenate(tokens)
        self.losses = np.concatenate(losses)
        self.lengths = np.concatenate(lengths)
        self.row_ends = np.cumsum([row.size for row in tokens], dtype=np.int64)
        self.document_ends = np.cumsum([row.size for row in lengths], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.row_ends)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(np.diff(self.row_ends, prepend=0).max())

    def row(self, index: int) -> tuple[NDArray[np.uint32], NDArray, NDArray[np.uint32]]:
        """Tokens, loss weights and document lengths of one row: views, no copies."""
        start, end = (self.row_ends[index - 1] if index else 0), self.row_ends[index]
        first, last = (self.document_ends[index - 1] if index else 0), self.document_ends[index]
        return self.tokens[start:end], self.losses[start:end], self.lengths[first:last]


def row_indices(rows: int, seed: int, first: int, count: int) -> NDArray[np.int64]:
    """Which rows of the store are rows `first` ... `first + count - 1` of the run: [count]."""
    run = np.arange(first, first + count, dtype=np.int64)
    epochs, places = np.divmod(run, rows)
    return np.array([_order(rows, seed, int(epoch))[place] for epoch, place in zip(epochs, places)], np.int64)


def assemble(store: SequenceStore, indices: Iterable[int], *, context: int, pad_id: int) -> Batch:
    """Those rows as one batch of T = `context`. Raises BadRecord when a row is longer."""
    picked = [store.row(int(index)) for index in indices]
    tokens = np.full((len(picked), context), pad_id, np.int64)
    weights = np.zeros((len(picked), context), np.float32)
    for at, (row, loss, _) in enumerate(picked):
        if row.size > context:
            raise BadRecord(
                f"a row of {row.size} tokens for a context of {context}", remedy="pack with the context you train with"
            )
        tokens[at, : row.size] = row
        weights[at, : row.size] = loss
    return Batch(tokens, weights, [lengths.astype(np.int64) for _, _, lengths in picked])


def batches(
    store: SequenceStore, *, seed: int, batch_rows: int, context: int, pad_id: int, start: int = 0
) -> Iterator[Batch]:
    """Batches `start`, `start + 1`, ... without end: batch k holds rows k * batch_rows and on of the run."""
    while True:
        indices = row_indices(len(store), seed, start * batch_rows, batch_rows)
        yield assemble(store, indices, context=context, pad_id=pad_id)
        start += 1


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch. Sorting the raw output of PCG64 rather than Generator.permutation: NumPy promises that
    the former never changes (NEP 19), and a resumed run must see the order that it started with."""
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(rows)
    return np.argsort(keys, kind="stable")
