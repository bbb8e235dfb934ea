"""The attention of the loop's later passes: a gate mixes attention to pass 1 with a window over the pass's own keys.

    out = g * causal_attention(q, k1, v1) + (1 - g) * local_attention(q, k2, v2),    g = sigmoid(<q, w> + b)

(reference: the released LoopCoder, as vLLM's iquest_loopcoder.py computes it). The functions in plain PyTorch are the
definition, and what a CPU runs. On a GPU the global branch runs on the fastest library (iqc.kernels.causal_attention)
and everything else in one Triton pass each way (iqc.kernels.gated_window).

Backward, per token and head, with P the probabilities of a branch and a prime for its gradient:
    d(score, global) = g P_g (<dO, v1> - <dO, O_g>)          the library's backward for dO, with log-sum-exp - log(g)
    d(score, local)  = (1 - g) P_l (<dO, v2> - <dO, O_l>)
    d(gate's logit)  = g (1 - g) (<dO, O_g> - <dO, O_l>),    <dO, O_l> = sum of P_l <dO, v2>
so of the forward only O_g, two log-sum-exps and g are kept, neither O_l nor a product with g.

Of rows that ranks share, pass 1's keys and values go round the ring again (iqc.kernels.ring_attention); of this pass's,
the window needs its halo alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from iqc.kernels.causal_attention import causal_attention, library_backward, library_forward, use_kernels
from iqc.kernels.documents import Documents
from iqc.kernels.ring_attention import ring_attention, ring_backward, ring_forward, with_halo
from iqc.kernels.zigzag import Shard


def local_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int) -> Tensor:
    """Softmax attention of each token over the last `window` tokens of its document, itself included.

    q [B, T, H, D]; k, v [B, T, K, D]. Rows are cut into blocks of `window`; a block needs no key but its own and those
    of the block before, so work grows with T * window and no [T, T] mask exists.
    """
    b, t, heads, size = q.shape
    if t <= window:
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), documents.causal_mask(), enable_gqa=True
        ).transpose(1, 2)
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


def shared_local_attention(q: Tensor, k: Tensor, v: Tensor, shard: Shard, window: int) -> Tensor:
    """`local_attention` of the whole rows, of which every rank has its shard: q [B, 2C, H, D]; k, v [2B, halo + C, K,
    D], the chunks with their halos."""
    queries = F.pad(shard.chunks(q), (0, 0, 0, 0, shard.halo, 0))
    return local_attention(queries, k, v, shard.windows, window)[:, shard.halo :].reshape(q.shape)


def gate(q: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Share of the global attention, in (0, 1), one number per token and query head: [B, T, H, 1].

    q [B, T, H, D] after RoPE and not scaled; weight [H, D]; bias [H].
    """
    share = torch.sigmoid((q * weight).sum(-1, keepdim=True) + bias[:, None])
    return share.to(q.dtype)  # under autocast a GPU's sums are wider


def loop_attention(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    documents: Documents | Shard,
    window: int,
) -> Tensor:
    """g * causal_attention(q, k1, v1) + (1 - g) * local_attention(q, k2, v2), two softmaxes and one gate.

    q [B, T, H, D] of this pass, after RoPE; k1, v1 [B, T, K, D] of pass 1 of the same layer (k1 after RoPE); k2, v2 of
    this pass; gate_weight [H, D]; gate_bias [H]. Returns [B, T, H, D]. Gradients reach k1 and v1. With a Shard, T is of
    its tokens, and every rank of its ring calls this.
    """
    if isinstance(documents, Shard):
        k2, v2 = with_halo(k2, v2, documents)
    if use_kernels(q):
        return FusedLoopAttention.apply(q, k1, v1, k2, v2, gate_weight, gate_bias, documents, window)
    if isinstance(documents, Shard):
        far = ring_attention(q, k1, v1, documents)
        near = shared_local_attention(q, k2, v2, documents, window)
    else:
        far = causal_attention(q, k1, v1, documents)
        near = local_attention(q, k2, v2, documents, window)
    return torch.lerp(near, far, gate(q, gate_weight, gate_bias))


class FusedLoopAttention(torch.autograd.Function):
    """loop_attention on a GPU; its arguments, k2 and v2 of a Shard with halos. A shape that the kernels cannot take
    raises Unsupported."""

    @staticmethod
    def forward(ctx, q, k1, v1, k2, v2, gate_weight, gate_bias, documents: Documents | Shard, window: int) -> Tensor:
        from iqc.kernels.gated_window import check, window_forward

        q, k1, v1, k2, v2 = (x.contiguous() for x in (q, k1, v1, k2, v2))
        weight = gate_weight.to(q.dtype).contiguous()
        check(q, k2, window)
        if isinstance(documents, Shard):
            far, lse = ring_forward(q, k1, v1, documents)
        else:
            far, lse = library_forward(q, k1, v1, documents)
        far = far.contiguous()
        out, near_lse, g = window_forward(q, k2, v2, far, lse, weight, gate_bias.float(), documents, window)
        ctx.save_for_backward(q, k1, v1, k2, v2, weight, far, lse, near_lse, g)
        ctx.documents, ctx.window = documents, window
        ctx.gate_dtypes = gate_weight.dtype, gate_bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Any:
        from iqc.kernels.gated_window import window_backward

        q, k1, v1, k2, v2, weight, far, lse, near_lse, g = ctx.saved_tensors
        grad = grad.contiguous()
        if isinstance(ctx.documents, Shard):
            dq, dk1, dv1 = ring_backward(grad, q, k1, v1, far, lse, ctx.documents)
        else:
            dq, dk1, dv1 = library_backward(grad, q, k1, v1, far, lse, ctx.documents)
        dq = dq.contiguous()
        dk2, dv2, dw, db = window_backward(grad, q, k2, v2, far, weight, near_lse, g, dq, ctx.documents, ctx.window)
        return dq, dk1, dv1, dk2, dv2, dw.to(ctx.gate_dtypes[0]), db.to(ctx.gate_dtypes[1]), None, None
