"""Samples -> rows of at most `context` tokens, whole samples back to back, no padding stored.

best_fit  Best-fit-decreasing in a window: the samples of a window, longest first, each go into the row with the least
          room that still holds it. Rows leave in the order of the earliest sample in them, and the samples of a row in
          the order in which they came. The emptiest row of a window is taken apart and its samples wait for the next.
concat    In the order in which they came; a document that does not fit is cut at the end of the row.

A document longer than the context is cut into pieces `id#0`, `id#1`, ..., each a document of its own, or dropped. Any
other kind is never cut: a chat without its beginning or a middle without its prefix teaches something else.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from iqc.errors import BadRecord, UsageError
from iqc.streams.stage import Dropped, Record
from iqc.tokens.sequence import decode_sequence, encode_sequence

WINDOW_SAMPLES = 4096
WINDOW_TOKENS = 1 << 26  # a window of long samples ends here: 64 Mi tokens with f32 losses are 512 MiB


@dataclass(slots=True)
class PackStats:
    context: int
    samples: int = 0
    rows: int = 0
    tokens: int = 0  # in rows
    learnt: int = 0  # tokens in rows with a loss weight above 0
    split: int = 0  # documents that were cut
    pieces: int = 0  # ... into so many
    dropped: int = 0

    @property
    def fill(self) -> float:
        """Tokens / room in the rows made."""
        return self.tokens / (self.rows * self.context) if self.rows else 0.0


@dataclass(slots=True)
class _Piece:
    order: int
    id: str
    tokens: NDArray[np.uint32]
    loss: NDArray


@dataclass(slots=True)
class _Row:
    room: int
    pieces: list[_Piece] = field(default_factory=list)


class Packer:
    """Give it samples (records of `tokenise`) in order with `add`, then call `finish`: both return the rows that are
    complete, and samples that cannot be packed as Dropped. The same samples in the same order give the same rows."""

    def __init__(
        self, context: int, *, method: str = "best_fit", long: str = "split", window: int = WINDOW_SAMPLES
    ) -> None:
        """`long`: split or drop, what becomes of a document longer than `context`."""
        if context < 2 or window < 1 or method not in ("best_fit", "concat") or long not in ("split", "drop"):
            raise UsageError(
                f"cannot pack with context {context}, window {window}, method {method}, long {long}",
                remedy="context >= 2, window >= 1, method best_fit or concat, long split or drop",
            )
        self.context, self.method, self.long, self.window = context, method, long, window
        self.stats = PackStats(context)
        self._waiting: list[_Piece] = []
        self._waiting_tokens = 0
        self._order = 0
        self._open = _Row(context)  # concat only

    def add(self, sample: Record) -> list[Record | Dropped]:
        """One sample in; the rows that it completes out. Raises BadRecord when it is no tokenised sample."""
        row = decode_sequence(sample)
        if row.lengths.size != 1 or "kind" not in sample:
            raise BadRecord(
                f"a sequence of {row.lengths.size} documents where one tokenised sample is packed",
                remedy="pack records, not rows that are packed already",
            )
        size, cuttable = row.tokens.size, sample["kind"] == "document"
        self.stats.samples += 1
        if size > self.context and not (cuttable and self.long == "split"):
            self.stats.dropped += 1
            return [Dropped(sample, "longer_than_context", size, self.context)]
        piece = _Piece(0, row.ids[0], row.tokens, row.loss)
        if self.method == "concat":
            return list(self._concat(piece, cuttable))
        for part in self._cut(piece, self.context):
            self._wait(part)
        if len(self._waiting) >= self.window or self._waiting_tokens >= WINDOW_TOKENS:
            return self._pack_window(last=False)
        return []

    def finish(self) -> list[Record | Dropped]:
        """The remaining rows."""
        if self.method == "concat":
            return [self._emit(self._open)] if self._open.pieces else []
        return self._pack_window(last=True)

    def _wait(self, piece: _Piece) -> None:
        piece.order, self._order = self._order, self._order + 1
        self._waiting.append(piece)
        self._waiting_tokens += piece.tokens.size

    def _pack_window(self, *, last: bool) -> list[Record | Dropped]:
        rows: list[_Row] = []
        rooms: list[tuple[int, int]] = []  # (room, row), sorted: the first that is large enough is the best fit
        for piece in sorted(self._waiting, key=lambda p: (-p.tokens.size, p.order)):
            size = piece.tokens.size
            at = bisect_left(rooms, (size, 0))
            if at == len(rooms):
                rows.append(_Row(self.context))
                number = len(rows) - 1
            else:
                number = rooms.pop(at)[1]
            rows[number].room -= size
            rows[number].pieces.append(piece)
            insort(rooms, (rows[number].room, number))
        self._waiting, self._waiting_tokens = [], 0
        if not last and len(rows) > 1:
            emptiest = max(rows, key=lambda row: row.room)
            rows.remove(emptiest)
            self._waiting = sorted(emptiest.pieces, key=lambda p: p.order)
            self._waiting_tokens = sum(p.tokens.size for p in self._waiting)
        for row in rows:
            row.pieces.sort(key=lambda p: p.order)
        return [self._emit(row) for row in sorted(rows, key=lambda row: row.pieces[0].order)]

    def _concat(self, piece: _Piece, cuttable: bool) -> Iterator[Record]:
        if piece.tokens.size > self._open.room and not cuttable and self._open.pieces:
            yield self._emit(self._open)
            self._open = _Row(self.context)
        for part in self._cut(piece, self._open.room):
            self._open.pieces.append(part)
            self._open.room -= part.tokens.size
            if self._open.room == 0:
                yield self._emit(self._open)
                self._open = _Row(self.context)

    def _cut(self, piece: _Piece, first: int) -> list[_Piece]:
        """The piece, or its parts: the first has `first` tokens, the others the context's length or what is left."""
        size = piece.tokens.size
        if size <= first:
            return [piece]
        edges = [0, *range(first, size, self.context), size]
        self.stats.split += 1
        self.stats.pieces += len(edges) - 1
        return [
            _Piece(0, f"{piece.id}#{number}", piece.tokens[start:end], piece.loss[start:end])
            for number, (start, end) in enumerate(pairwise(edges))
        ]

    def _emit(self, row: _Row) -> Record:
        ids = [piece.id for piece in row.pieces]
        name = hashlib.sha256("\0".join(ids).encode()).hexdigest()[:12]
        lengths = np.array([piece.tokens.size for piece in row.pieces], np.uint32)
        loss = np.concatenate([piece.loss for piece in row.pieces])
        record = encode_sequence(
            id=f"{self.stats.rows:08d}-{name}",
            ids=ids,
            tokens=np.concatenate([piece.tokens for piece in row.pieces]),
            lengths=lengths,
            loss=loss,
        )
        self.stats.rows += 1
        self.stats.tokens += int(lengths.sum())
        self.stats.learnt += int(np.count_nonzero(loss)) - sum(bool(piece.loss[0]) for piece in row.pieces)
        return record
