"""Documents packed into rows: where each begins, and the masks and offsets that attention takes from it.

A token sees an unbroken run of earlier tokens of its row: from the start of its document (causal attention), or from
`window - 1` tokens back (local attention). So one number per token says it all, the index where its document starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True, frozen=True)
class Part:
    """Some documents of a batch: `tokens` int64 [n], where in the rows end to end; `edges` int32 [documents + 1], where
    each begins among those n; and the length of the longest."""

    tokens: Tensor
    edges: Tensor
    longest: int


class Documents:
    """Where each token's document starts, and the masks that follow from it, each built once per batch.

    starts  int64 [B, T], index in the row of the first token of the token's document (its own index when padding)
    real    bool [B, T], False for padding; None when there is none
    whole   True when every row holds one document from index 0 (padding after it): plain causal attention is exact
    """

    halo = 0  # see iqc.kernels.zigzag, where rows that are shared tell the same things

    def __init__(self, starts: Tensor, real: Tensor | None, whole: bool):
        self.starts, self.real, self.whole = starts, real, whole
        self._masks: dict[int | None, Tensor] = {}
        self._splits: dict[int, tuple[list[tuple[int, int]], Part | None]] = {}

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[Sequence[int]] | None, rows: int, width: int, device: torch.device | str | None = None
    ) -> "Documents":
        """Rows of `width` tokens; `lengths[b]` are the lengths of row b's documents, what they leave is padding."""
        if lengths is None:
            return cls(torch.zeros(rows, width, dtype=torch.int64, device=device), None, whole=True)
        if len(lengths) != rows or any(n < 0 for row in lengths for n in row) or any(sum(r) > width for r in lengths):
            raise ValueError(f"lengths {lengths} do not fit {rows} rows of {width} tokens")
        starts = torch.arange(width).repeat(rows, 1)
        real = torch.zeros(rows, width, dtype=torch.bool)
        for b, row in enumerate(lengths):
            at = 0
            for n in row:
                starts[b, at : at + n] = at
                at += n
            real[b, :at] = True
        whole = all(sum(n > 0 for n in row) <= 1 for row in lengths)
        padded = not bool(real.all())
        return cls(starts.to(device), real.to(device) if padded else None, whole)

    @classmethod
    def from_mask(cls, real: Tensor) -> "Documents":
        """One document a row, padded before or after: `real` [B, T] is true on one unbroken run of each row."""
        index = torch.arange(real.shape[1], device=real.device)
        first = real.int().argmax(dim=1, keepdim=True)
        return cls(torch.where(real, first, index), real, whole=False)

    @property
    def positions(self) -> Tensor:
        """int64 [B, T]: how far into its document a token is."""
        return torch.arange(self.starts.shape[1], device=self.starts.device) - self.starts

    @property
    def chunk(self) -> int:
        """Tokens that lie end to end without a halo between: all."""
        return self.starts.numel()

    @cached_property
    def flat_starts(self) -> Tensor:
        """int32 [B * T]: `starts` as indices into the rows laid end to end."""
        rows, width = self.starts.shape
        offsets = torch.arange(0, rows * width, width, device=self.starts.device)
        return (self.starts + offsets[:, None]).flatten().int()

    @cached_property
    def offsets(self) -> tuple[Tensor, int]:
        """int32 [documents + 1], where documents begin in the rows laid end to end, and the length of the longest.

        The form that libraries take. A row's padding after its documents counts as one more document.
        """
        rows, width = self.starts.shape
        own = torch.arange(width, device=self.starts.device) == self.starts
        if self.real is not None:
            own &= self.real | F.pad(self.real, (1, -1), value=True)
        begins = own.flatten().nonzero()[:, 0].int()
        edges = torch.cat([begins, begins.new_tensor([rows * width])])
        return edges, int(edges.diff().max())

    def split(self, least: int) -> tuple[list[tuple[int, int]], Part | None]:
        """Documents of at least `least` tokens as (start, length) in the rows laid end to end; the others, if any are
        left. (Without a long one, `offsets` has them all.)"""
        if least not in self._splits:
            edges = self.offsets[0].tolist()
            spans = [(start, end - start) for start, end in pairwise(edges)]
            long = [span for span in spans if span[1] >= least]
            short = [span for span in spans if span[1] < least]
            part = None
            if long and short:
                tokens = torch.cat([torch.arange(start, start + size) for start, size in short])
                ends = torch.tensor([0, *(size for _, size in short)]).cumsum(0)
                device = self.starts.device
                part = Part(tokens.to(device), ends.int().to(device), max(size for _, size in short))
            self._splits[least] = long, part
        return self._splits[least]

    def causal_mask(self) -> Tensor:
        """bool [B, 1, T, T], true where the query (row) sees the key (column)."""
        if None not in self._masks:
            index = torch.arange(self.starts.shape[1], device=self.starts.device)
            seen = (index >= self.starts[:, :, None]) & (index <= index[:, None])
            self._masks[None] = seen[:, None]
        return self._masks[None]

    def local_mask(self, window: int) -> Tensor:
        """bool [B * blocks, 1, window, 2 * window]: queries of a block against keys of the one before and it."""
        if window not in self._masks:
            width = self.starts.shape[1]
            blocks = -(-width // window)
            query = torch.arange(blocks * window, device=self.starts.device).view(blocks, window, 1)
            key = torch.arange(2 * window, device=self.starts.device) + (query[:, :1] - window)
            # Queries beyond the row's end start at their own index: they see themselves, and a softmax over nothing
            # (not a number) cannot arise.
            own = query.flatten()[width:].expand(len(self.starts), -1)
            starts = torch.cat([self.starts, own], dim=1).view(-1, blocks, window, 1)
            seen = (key >= starts) & (key <= query) & (key > query - window)
            self._masks[window] = seen.view(-1, 1, window, 2 * window)
        return self._masks[window]
