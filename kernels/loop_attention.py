"""The attention of the loop in plain PyTorch: what every faster kernel must equal, and what a CPU runs.

A token sees an unbroken run of earlier tokens of its row: from the start of its document (causal attention), or from
`window - 1` tokens back (local attention). So documents packed into one row need one number per token, the index where
its document starts. Passes after the first mix two attentions with a gate (reference: the released LoopCoder, as
vLLM's iquest_loopcoder.py computes it): global over the keys and values of pass 1, local over the pass's own.

Tensors are laid out [batch, tokens, heads, head size], as projections leave them. Scores are scaled by 1/sqrt(head
size); query head h reads key/value head h // (query heads / key heads).
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class Documents:
    """Where each token's document starts, and the masks that follow from it, each built once per batch.

    starts  int64 [B, T], index in the row of the first token of the token's document (its own index when padding)
    real    bool [B, T], False for padding; None when there is none
    whole   True when every row holds one document from index 0 (padding after it): plain causal attention is exact
    """

    def __init__(self, starts: Tensor, real: Tensor | None, whole: bool):
        self.starts, self.real, self.whole = starts, real, whole
        self._masks: dict[int | None, Tensor] = {}

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


def causal_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Softmax attention of each token over its document up to and including itself.

    q [B, T, H, D]; k, v [B, T, K, D] with K dividing H. Returns [B, T, H, D].
    """
    mask = None if documents.whole else documents.causal_mask()
    fast = documents.whole and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if fast else nullcontext():
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, is_causal=documents.whole, enable_gqa=True
        )
    return out.transpose(1, 2)


def local_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int) -> Tensor:
    """Softmax attention of each token over the last `window` tokens of its document, itself included.

    Shapes as causal_attention. Rows are cut into blocks of `window`; a block needs no key but its own and those of the
    block before, so work grows with T * window and no [T, T] mask exists.
    """
    b, t, heads, size = q.shape
    if t <= window:
        return causal_attention(q, k, v, documents)
    blocks = -(-t // window)
    tail = blocks * window - t
    q = F.pad(q, (0, 0, 0, 0, 0, tail)).view(b * blocks, window, heads, size)

    def with_block_before(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, window, tail)).view(b, blocks + 1, window, *x.shape[2:])
        return torch.cat([x[:, :-1], x[:, 1:]], dim=2).flatten(0, 1).transpose(1, 2)

    mask = documents.local_mask(window)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), with_block_before(k), with_block_before(v), mask, enable_gqa=True
    )
    return out.transpose(1, 2).reshape(b, blocks * window, heads, size)[:, :t]


def gate(q: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Share of the global attention, in (0, 1), one number per token and query head: [B, T, H, 1].

    q [B, T, H, D] after RoPE and not scaled; weight [H, D]; bias [H].
    """
    return torch.sigmoid((q * weight).sum(-1, keepdim=True) + bias[:, None])


def loop_attention(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    documents: Documents,
    window: int,
) -> Tensor:
    """g * causal_attention(q, k1, v1) + (1 - g) * local_attention(q, k2, v2), two softmaxes and one gate.

    q [B, T, H, D] of this pass, after RoPE; k1, v1 [B, T, K, D] of pass 1 of the same layer (k1 after RoPE); k2, v2 of
    this pass; gate_weight [H, D]; gate_bias [H]. Returns [B, T, H, D]. Gradients reach k1 and v1.
    """
    everywhere = causal_attention(q, k1, v1, documents)
    nearby = local_attention(q, k2, v2, documents, window)
    return torch.lerp(nearby, everywhere, gate(q, gate_weight, gate_bias))
