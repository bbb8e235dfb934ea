"""Samples -> rows of at most `context` tokens, samples back to back, no padding stored.

best_fit  Best fit, longest first, in a window (Ding et al. 2024, arXiv 2404.10830, pack all documents so): rows are
          completed one by one, see `complete_rows`. Then the fullest rows leave, as many as are `fill` full together;
          the samples of the others wait for the next window, up to half of it. Where rows less full than that have to
          leave, documents that wait are cut to fill them, the greatest room first.
concat    In the order in which they came; a document that does not fit is cut at the end of the row.

Only plain text (a document, a repository) is ever cut: a chat without its beginning or a middle without its prefix
teaches something else. Text longer than the context is cut into rows in both methods. The pieces are `id#0`, `id#1`,
..., each a document of its own; all but the last end with a line where one ends near. A window holds at most
WINDOW_TOKENS and the sample that passes it, so these take 160 MiB where losses are 0 or 1, 256 MiB with other weights,
128 MiB more for tries.
"""

import hashlib
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from iqc.errors import BadRecord, UsageError
from iqc.streams.stage import Record
from iqc.tokens.sequence import Row, chain, encode_sequence, starts

WINDOW_SAMPLES = 4096
WINDOW_TOKENS = 1 << 25  # 1,024 rows at 32k: long samples end a window before it has WINDOW_SAMPLES
WINDOW_ROWS = 8  # a window of short samples goes on until it fills as many rows, or has as many times its samples
FILL = 0.995
PIECE = 64  # tokens, or an eighth of a small context: fewer are no piece worth having
ENOUGH = 1024  # a row with 1/1024 of the context left is full: no better completion is looked for
NEAR = 64  # a line that ends in the last 1/64 of a piece's room ends it: 512 tokens at 32k, of which 6 are lost

METHODS = ("best_fit", "concat")
CUTTABLE = ("document", "repository")


@dataclass(slots=True)
class Encoded:
    """A sample as it is packed: the arrays of its documents (two in a pair, else one), which are never parted."""

    kind: str
    row: Row
    source: str | None = None  # of the record


@dataclass(slots=True)
class PackStats:
    context: int
    samples: int = 0
    rows: int = 0
    longest: int = 0  # tokens of the longest row
    tries: int = 0  # rows with a trie, which not every trainer takes
    tokens: int = 0  # in rows
    learnt: int = 0  # tokens in rows with a loss weight above 0
    split: int = 0  # documents cut because they are longer than a row
    cut: int = 0  # documents cut to fill rows
    pieces: int = 0  # of both
    tails: int = 0  # tokens in pieces other than the first, which have lost what was before them
    by_kind: Counter[str] = field(default_factory=Counter)  # tokens in rows, by the kind of their samples
    learnt_by_kind: Counter[str] = field(default_factory=Counter)

    @property
    def fill(self) -> float:
        """Tokens / room in the rows made."""
        return self.tokens / (self.rows * self.context) if self.rows else 0.0


@dataclass(slots=True)
class _Piece:
    """A sample or what is left of it. `part`: how many pieces were cut off before it; None when it is whole."""

    order: int
    kind: str
    row: Row
    cuttable: bool
    part: int | None = None

    @property
    def size(self) -> int:
        return self.row.tokens.size

    def ids(self) -> list[str]:
        return self.row.ids if self.part is None else [f"{self.row.ids[0]}#{self.part}"]


@dataclass(slots=True)
class _Bin:
    room: int
    pieces: list[_Piece] = field(default_factory=list)


class Packer:
    """Give it samples in order with `add`, then call `finish`: both give the rows that are complete, to be taken before
    the next call. The same samples in the same order give the same rows."""

    def __init__(
        self,
        context: int,
        *,
        method: str = "best_fit",
        window: int = WINDOW_SAMPLES,
        fill: float = FILL,
        line_ends: NDArray[np.bool_] | None = None,
    ) -> None:
        """`fill`: how full the rows of a window must be together before no document is cut for them. `line_ends`
        [vocabulary]: whether a token ends a line; without it pieces end anywhere."""
        if context < 2 or window < 1 or method not in METHODS or not 0 <= fill <= 1:
            raise UsageError(
                f"cannot pack with context {context}, window {window}, method {method}, fill {fill}",
                remedy=f"context >= 2, window >= 1, method {' or '.join(METHODS)}, fill from 0 to 1",
            )
        self.context, self.method, self.window, self.fill, self.line_ends = context, method, window, fill, line_ends
        self.least = max(1, min(PIECE, context // 8))
        self.stats = PackStats(context)
        self._waiting: list[_Piece] = []
        self._waiting_tokens = 0
        self._order = 0
        self._open = _Bin(context)  # concat only

    def add(self, sample: Encoded) -> Iterator[Record]:
        """One sample in; the rows that it completes out. Raises BadRecord for one that no row holds."""
        row, cuttable = sample.row, sample.kind in CUTTABLE
        size = row.tokens.size
        if size > self.context and not cuttable:
            raise BadRecord(
                f"a {sample.kind} of {size} tokens for rows of {self.context}", remedy="drop it before it is packed"
            )
        self.stats.samples += 1
        piece = _Piece(self._order, sample.kind, row, cuttable)
        self._order += 1
        if self.method == "concat":
            return self._concat(piece)
        self.stats.split += size > self.context
        while piece.size > self.context:
            head, piece = self._part(piece, self.context)
            self._wait([head])
        if piece.part is not None:  # it must not keep all that was before it in memory
            piece.row.tokens, piece.row.loss = piece.row.tokens.copy(), piece.row.loss.copy()
        self._wait([piece])
        samples, tokens = len(self._waiting), self._waiting_tokens
        few = tokens < WINDOW_ROWS * self.context and samples < WINDOW_ROWS * self.window
        if tokens < WINDOW_TOKENS and (samples < self.window or few):
            return iter(())
        return self._leave(self._pack_window())

    def finish(self) -> Iterator[Record]:
        """The remaining rows."""
        bins = [self._open] if self._open.pieces else []
        while self._waiting:
            bins += self._pack_window()
        return self._leave(bins)

    def _wait(self, pieces: list[_Piece]) -> None:
        self._waiting += pieces
        self._waiting_tokens += sum(piece.size for piece in pieces)

    def _pack_window(self) -> list[_Bin]:
        """The fullest bins of the samples that wait: never the last, and at least half of the samples and tokens."""
        pieces, self._waiting, self._waiting_tokens = self._waiting, [], 0
        bins = sorted(complete_rows(pieces, self.context), key=lambda b: b.room)
        rooms = list(accumulate(b.room for b in bins))
        leave = sum(room <= (1 - self.fill) * self.context * count for count, room in enumerate(rooms, start=1))
        counts, sizes = accumulate(len(b.pieces) for b in bins), accumulate(self.context - b.room for b in bins)
        total = sum(piece.size for piece in pieces)
        half = sum(2 * count < len(pieces) or 2 * size < total for count, size in zip(counts, sizes))
        leave = max(1, min(max(leave, half + 1), len(bins) - 1))
        bins, others = bins[:leave], [piece for b in bins[leave:] for piece in b.pieces]
        if rooms[leave - 1] > (1 - self.fill) * self.context * leave:
            others = self._fill(bins, others)
        self._wait(sorted(others, key=lambda piece: (piece.order, piece.part or 0)))
        return bins

    def _fill(self, bins: list[_Bin], others: list[_Piece]) -> list[_Piece]:
        """Cut documents among the others into the bins with the greatest rooms, until these are as full as they have to
        be; returns what is left of the others. The longest is cut first, so that few are."""

        def by_size(piece: _Piece) -> tuple[int, int]:
            return piece.size, -piece.order

        donors = sorted((piece for piece in others if piece.cuttable), key=by_size)
        left = [piece for piece in others if not piece.cuttable]
        excess = sum(b.room for b in bins) - (1 - self.fill) * self.context * len(bins)
        for target in reversed(bins):
            while excess > 0 and donors and target.room >= self.least:
                longest = donors[-1].size
                if longest > target.room and longest >= 2 * self.least:
                    piece = donors.pop()
                    self.stats.cut += piece.part is None
                    piece, tail = self._part(piece, min(target.room, longest - self.least))
                    insort(donors, tail, key=by_size)
                elif fits := bisect_right(donors, target.room, key=lambda donor: donor.size):
                    piece = donors.pop(fits - 1)  # whole: it is what is left of one, or no bin was so empty before
                else:
                    break
                target.pieces.append(piece)
                target.room -= piece.size
                excess -= piece.size
        return left + donors

    def _concat(self, piece: _Piece) -> Iterator[Record]:
        if piece.size > self._open.room and not piece.cuttable and self._open.pieces:
            yield from self._leave([self._open])
            self._open = _Bin(self.context)
        self.stats.split += piece.size > self.context
        self.stats.cut += self._open.room < piece.size <= self.context
        while piece.size:
            head, rest = piece, None
            if piece.size > self._open.room:
                head, rest = self._part(piece, self._open.room, anywhere=True)
            self._open.pieces.append(head)
            self._open.room -= head.size
            if self._open.room == 0:
                yield from self._leave([self._open])
                self._open = _Bin(self.context)
            if rest is None:
                return
            piece = rest

    def _part(self, piece: _Piece, room: int, anywhere: bool = False) -> tuple[_Piece, _Piece]:
        """The piece in two, a copy of at most `room` tokens and a view of the others, which alone may be cut again."""
        at, row, part = room, piece.row, piece.part or 0
        if self.line_ends is not None and not anywhere:
            first = max(self.least, room - max(room // NEAR, 16))
            ends = np.flatnonzero(self.line_ends[row.tokens[first - 1 : room]])
            at = first + int(ends[-1]) if ends.size else room
        self.stats.pieces += 1 + (piece.part is None)
        self.stats.tails += row.tokens.size - at if piece.part is None else 0
        head = Row(row.tokens[:at].copy(), np.array([at], np.uint32), row.loss[:at].copy(), row.ids)
        tail = Row(row.tokens[at:], np.array([row.tokens.size - at], np.uint32), row.loss[at:], row.ids)
        return _Piece(piece.order, piece.kind, head, False, part), _Piece(piece.order, piece.kind, tail, True, part + 1)

    def _leave(self, bins: list[_Bin]) -> Iterator[Record]:
        """The bins as rows: samples in the order in which they came, rows in that of their first sample. One by one:
        as JSON they take more memory than their samples."""
        for b in bins:
            b.pieces.sort(key=lambda piece: (piece.order, piece.part or 0))
        bins.sort(key=lambda b: (b.pieces[0].order, b.pieces[0].part or 0))
        bins.reverse()
        while bins:
            yield self._emit(bins.pop())

    def _emit(self, b: _Bin) -> Record:
        rows, ids = [piece.row for piece in b.pieces], [name for piece in b.pieces for name in piece.ids()]
        name = hashlib.sha256("\0".join(ids).encode()).hexdigest()[:12]
        lengths = np.concatenate([row.lengths for row in rows])
        loss = np.concatenate([row.loss for row in rows])
        loss[starts(lengths)] = 0
        parents = None
        if any(row.parents is not None for row in rows):
            parents = np.concatenate([chains(row.lengths) if row.parents is None else row.parents for row in rows])
        at = 0
        for piece in b.pieces:
            size = piece.size
            self.stats.by_kind[piece.kind] += size
            self.stats.learnt_by_kind[piece.kind] += int(np.count_nonzero(loss[at : at + size]))
            at += size
        record = encode_sequence(
            id=f"{self.stats.rows:08d}-{name}",
            ids=ids,
            tokens=np.concatenate([row.tokens for row in rows]),
            lengths=lengths,
            loss=loss,
            parents=parents,
        )
        self.stats.rows += 1
        self.stats.tries += parents is not None
        self.stats.tokens += self.context - b.room
        self.stats.longest = max(self.stats.longest, self.context - b.room)
        self.stats.learnt += int(np.count_nonzero(loss))
        return record


def complete_rows(pieces: list[_Piece], context: int) -> list[_Bin]:
    """Row by row: the longest piece that is left starts a row, and is completed by what leaves the least room: the
    longest that fit, one after the other, the last two of them as the best pair. (Minimum bin slack, Gupta and Ho 1999,
    with the search cut to pairs. Best-fit-decreasing proper looks at one piece at a time and leaves thrice the room
    where a row holds few.)"""
    pieces = sorted(pieces, key=lambda p: (p.size, -p.order, -(p.part or 0)))
    sizes = np.array([piece.size for piece in pieces], np.int64)
    left = np.arange(len(pieces))
    bins = []
    while left.size:
        longest, room = pieces[left[-1]], context - int(sizes[-1])
        left, sizes = left[:-1], sizes[:-1]
        chosen = _completion(sizes, room, context // ENOUGH)
        bins.append(_Bin(room - int(sizes[chosen].sum()), [longest, *(pieces[number] for number in left[chosen])]))
        if chosen:
            left, sizes = np.delete(left, chosen), np.delete(sizes, chosen)
    return bins


def _completion(sizes: NDArray[np.int64], room: int, enough: int) -> list[int]:
    """Which of the sizes, in ascending order, fill the room; the search ends where `enough` room or less is left."""
    best: list[int] = []
    taken: list[int] = []
    least = room
    while least > enough and (fitting := int(np.searchsorted(sizes, room, "right"))):
        sizes = sizes[:fitting]
        last = fitting - 1
        if room - sizes[last] < least:
            least, best = room - int(sizes[last]), [*taken, last]
        if least > enough and fitting > 1 and sizes[last] + sizes[last - 1] > room:
            partners = np.searchsorted(sizes, room - sizes, "right") - 1  # the longest that still fits beside each
            numbers = np.arange(fitting)
            sums = np.where(partners > numbers, sizes + sizes[partners], 0)
            first = int(sums.argmax())
            if sums[first] and room - sums[first] < least:
                least, best = room - int(sums[first]), [*taken, first, int(partners[first])]
        taken.append(last)
        room, sizes = room - int(sizes[last]), sizes[:last]
    return best


def chains(lengths: NDArray) -> NDArray[np.int32]:
    """Parents of documents none of which is a trie."""
    return np.concatenate([chain(int(size)) for size in lengths])
