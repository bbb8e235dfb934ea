"""Attention over a part of the keys, with the scores' log-sum-exp, so that parts can be put together; and its backward.

With lse and out of all keys together, the probabilities of any part are exp(score - lse), and the gradient of its
scores is their product with <grad, v> - <grad, out>: gradients of parts add up. Plain PyTorch on a CPU, float64 too;
cuDNN and FlashAttention-2 on a GPU.

Everywhere: q [B, n, H, D]; k, v [B, m, K, D] with K dividing H; out and grad like q; lse [B, H, n], natural.
"""

import torch
from torch import Tensor

from iqc.kernels.causal_attention import library_backward, library_forward, use_kernels
from iqc.kernels.documents import Documents
from iqc.kernels.packed_attention import cudnn_backward, cudnn_forward, flash_backward, flash_forward

Gradients = tuple[Tensor, Tensor, Tensor]


def causal_forward(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
    """Each query sees its document up to itself. Returns out and lse."""
    if not use_kernels(q):
        return plain_forward(q, k, v, documents.causal_mask())
    out, lse = library_forward(q, k, v, documents)
    if lse.shape[-1] != q.shape[1]:  # of the rows laid end to end
        lse = lse.view(-1, *q.shape[:2]).transpose(0, 1).contiguous()
    return out, lse


def causal_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, documents: Documents
) -> Gradients:
    """Gradients of q, k and v."""
    if not use_kernels(q):
        return plain_backward(grad, q, k, v, out, lse, documents.causal_mask())
    if not documents.whole or torch.are_deterministic_algorithms_enabled():
        lse = lse.transpose(0, 1).reshape(1, q.shape[2], -1)
    return library_backward(grad, q, k, v, out, lse.contiguous(), documents)


def full_forward(q: Tensor, k: Tensor, v: Tensor, often: bool) -> tuple[Tensor, Tensor]:
    """Every query sees every key. `often`: the shape comes again and again, so cuDNN may plan it, which takes 0.1 s."""
    if not use_kernels(q):
        return plain_forward(q, k, v)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if often and not torch.are_deterministic_algorithms_enabled():
        return cudnn_forward(q, k, v, causal=False)
    edges, key_edges = _edges(q), _edges(k)
    flat = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out, lse = flash_forward(*flat, edges, q.shape[1], key_edges=key_edges, longest_key=k.shape[1], causal=False)
    return out.view_as(q), lse.view(-1, *q.shape[:2]).transpose(0, 1)


def full_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, often: bool) -> Gradients:
    """Gradients of q, k and v; out and lse are those of all keys, of which these are some."""
    if not use_kernels(q):
        return plain_backward(grad, q, k, v, out, lse)
    grad, q, k, v, out = (x.contiguous() for x in (grad, q, k, v, out))
    if often and not torch.are_deterministic_algorithms_enabled():
        return cudnn_backward(grad, q, k, v, out, lse.contiguous(), causal=False)
    edges, key_edges = _edges(q), _edges(k)
    flat = grad.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), out.flatten(0, 1)
    log = lse.transpose(0, 1).flatten(1).contiguous()
    dq, dk, dv = flash_backward(
        *flat, log, edges, q.shape[1], key_edges=key_edges, longest_key=k.shape[1], causal=False
    )
    return dq.view_as(q), dk.view_as(k), dv.view_as(v)


def _edges(x: Tensor) -> Tensor:
    rows, width = x.shape[:2]
    return torch.arange(0, (rows + 1) * width, width, dtype=torch.int32, device=x.device)


def plain_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Out and lse, both float32 or wider; mask bool [B, 1, n, m], true where a query sees a key."""
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = _grouped(q, k), _grouped(k, k), _grouped(v, k)
        scores = _scores(q, k, mask)
        lse = scores.logsumexp(-1)
        out = (scores - lse[..., None]).exp() @ v
        return _ungrouped(out), lse.flatten(1, 2)


def plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None = None
) -> Gradients:
    """Gradients of q, k and v, float32 or wider."""
    grad, q, out, k, v = _grouped(grad, k), _grouped(q, k), _grouped(out, k), _grouped(k, k), _grouped(v, k)
    p = (_scores(q, k, mask) - lse.unflatten(1, q.shape[1:3])[..., None]).exp()
    slope = p * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    dk, dv = (x.sum(2, keepdim=True) for x in (slope.mT @ q, p.mT @ grad))  # over the queries' heads of a key head
    return _ungrouped(slope @ k), _ungrouped(dk), _ungrouped(dv)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[B, n, heads, D] as [B, K, heads / K, n, D], float32 or wider."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return exact.unflatten(2, (k.shape[2], -1)).permute(0, 2, 3, 1, 4)


def _ungrouped(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores if mask is None else scores.masked_fill(~mask[:, :, None], float("-inf"))
