"""What one rank holds of rows that several share: the zigzag layout, its documents, and which parts see which.

Rows are cut into 2P chunks, rank c of P holds chunks c and 2P - 1 - c, in this order. Under a causal mask every rank
then has the same work: its own tokens among themselves, and with each other rank a rectangle of the same area that is
seen whole. A document goes on over the edge of a chunk; of an earlier chunk a later one sees one document at most, the
one that its first token belongs to, so with documents the rectangle gets smaller and stays a rectangle.

A window of earlier tokens reaches over the edge of a chunk into the one before by window - 1 tokens, its halo.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from iqc.kernels.documents import Documents
from iqc.kernels.ring import Ring

GPU_STEP = 64  # of chunks and halos on a GPU: iqc.kernels.gated_window.BLOCK


@dataclass(slots=True, frozen=True)
class Rectangle:
    """Own queries that all see all of these keys of another rank: slices of the batch, of own tokens, of its tokens.

    full: both are made of whole chunks, so there are few shapes of it.
    """

    rows: slice
    queries: slice
    keys: slice
    full: bool


class Shard:
    """A rank's part of the rows that `documents` [B, T] tells of; what it has of Documents is of own tokens [B, 2C].

    C, the chunk, is the least that covers T with 2P chunks and holds a halo. C and halo are multiples of `step`, the
    queries that a kernel takes at a time (0: as the device asks). What T leaves of the last chunks is padding.

    local        Documents of own tokens as if there were no others
    starts       where documents start, as indices of the whole row
    positions    how far into its document a token is, wherever that began
    real, whole  as in Documents
    """

    def __init__(self, documents: Documents, ring: Ring, window: int = 1, step: int = 0):
        rows, self.width = documents.starts.shape
        step = step or (GPU_STEP if documents.starts.is_cuda else 1)
        self.ring, self.batch = ring, rows
        self.halo = -(-(window - 1) // step) * step
        self.chunk = -(-max(-(-self.width // (2 * ring.size)), self.halo, 1) // step) * step
        self.begins = self._begins(ring.rank)
        total, device = 2 * ring.size * self.chunk, documents.starts.device
        index = torch.arange(total, device=device).expand(rows, -1)
        starts = torch.cat([documents.starts, index[:, self.width :]], dim=1)
        real = documents.real
        if total > self.width and real is None:
            real = torch.ones(rows, self.width, dtype=torch.bool, device=device)
        self.starts, own = self.take(starts), self.take(index)  # in the whole row
        self.positions = own - self.starts
        self.real = None if real is None else self.take(real)
        self.whole = documents.whole
        front, back = ((self.starts - begin).clamp(0, self.chunk) for begin in self.begins)  # own tokens before it
        self.local = Documents(front + back, self.real, documents.whole)

    def take(self, x: Tensor) -> Tensor:
        """Own part of x [B, T, ...]: [B, 2C, ...], zeros beyond its end."""
        parts = []
        for begin in self.begins:
            part = x[:, begin : begin + self.chunk]
            missing = self.chunk - part.shape[1]
            parts.append(F.pad(part, (*[0, 0] * (x.dim() - 2), 0, missing)) if missing else part)
        return torch.cat(parts, dim=1)

    def rectangles(self, source: int) -> Sequence[Rectangle]:
        """What own queries see of the tokens of another rank."""
        found = [self._rectangles_of_row(row, source) for row in range(self.batch)]
        if all(parts == found[0] for parts in found):
            return [Rectangle(slice(0, self.batch), *part) for part in found[0]]
        return [Rectangle(slice(row, row + 1), *part) for row, parts in enumerate(found) for part in parts]

    def _rectangles_of_row(self, row: int, source: int) -> list[tuple[slice, slice, bool]]:
        made: list[tuple[int, int, int, int]] = []  # queries from, to; keys from, to
        for place, begin in enumerate(self.begins):
            start, count = self._firsts[row][place]
            keys = self._held_before(start, source), self._held_before(begin, source)
            if keys[0] < keys[1]:
                queries = place * self.chunk, place * self.chunk + count
                if made and made[0][1] == queries[0] and made[0][2:] == keys:  # one document through both chunks
                    made = [(made[0][0], queries[1], *keys)]
                else:
                    made.append((*queries, *keys))
        return [(slice(*part[:2]), slice(*part[2:]), not any(edge % self.chunk for edge in part)) for part in made]

    @cached_property
    def _firsts(self) -> list[list[tuple[int, int]]]:
        """Of each row and own chunk: where its first document starts in the row, and how many tokens it has of it."""
        if self.whole:  # padding behind a document is taken for more of it: no query that counts sees it
            return [[(0, self.chunk)] * 2] * self.batch
        chunks = self.starts.view(self.batch, 2, self.chunk)
        counts = (chunks == chunks[..., :1]).sum(-1)
        return [[(s, n) for s, n in row] for row in torch.stack([chunks[..., 0], counts], -1).tolist()]

    def _begins(self, rank: int) -> tuple[int, int]:
        """Where a rank's two chunks begin in the row."""
        return rank * self.chunk, (2 * self.ring.size - 1 - rank) * self.chunk

    def _held_before(self, index: int, rank: int) -> int:
        """How many of a rank's tokens come before an index of the row."""
        return sum(min(max(index - begin, 0), self.chunk) for begin in self._begins(rank))

    def chunks(self, x: Tensor) -> Tensor:
        """[B, 2C, ...] as [2B, C, ...], a chunk a row."""
        return x.reshape(2 * self.batch, self.chunk, *x.shape[2:])

    @cached_property
    def _starts_in_chunk(self) -> Tensor:
        """int64 [2B, C], from the chunk's begin: negative where a document began before, no lower than the halo."""
        begins = torch.tensor(self.begins, device=self.starts.device).repeat(self.batch)[:, None]
        return (self.chunks(self.starts) - begins).clamp(min=-self.halo)

    @cached_property
    def windows(self) -> Documents:
        """Of the chunks with their halos before them [2B, halo + C]; a token of a halo is alone."""
        alone = torch.arange(self.halo, device=self.starts.device).expand(2 * self.batch, -1)
        return Documents(torch.cat([alone, self._starts_in_chunk + self.halo], dim=1), None, whole=False)

    @cached_property
    def flat_starts(self) -> Tensor:
        """int32 [B * 2C]: where documents start in the chunks laid end to end without their halos; into its halo by as
        much less than the chunk's begin."""
        begins = torch.arange(0, 2 * self.batch * self.chunk, self.chunk, device=self.starts.device)
        return (self._starts_in_chunk + begins[:, None]).flatten().int()
