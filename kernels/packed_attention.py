"""Causal attention over packed documents on a GPU, by two libraries: each long document goes to cuDNN on its own, which
there is nearly twice as fast as FlashAttention-2, and all short ones go to the latter together, with their offsets.

(12 documents of 40 to 9,000 tokens in 32,768, 40/8 heads of 128, forward and backward on an H200: 15.4 ms; all through
FlashAttention-2 22.6, FlexAttention 19.9. PyTorch 2.11's way into cuDNN with offsets takes far longer, and its
gradients were wrong with grouped heads.)

cuDNN plans every length anew, in about 0.1 s. So a document is given with some tokens behind it, up to one of 16
lengths an octave: causality hides them from its queries, and as queries they get an infinite log-sum-exp in backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from iqc.kernels.documents import Documents

aten = torch.ops.aten
LEAST = 1024  # tokens of a long document: shorter ones by the hundred would wait for their launches


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int,
    *, key_edges: Tensor | None = None, longest_key: int = 0, causal: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """FlashAttention-2 with offsets, those of keys where they are not the queries'.

    q [tokens, H, D]; k, v [keys, K, D] -> output, log-sum-exp [H, tokens].
    """
    of_keys = (edges, longest) if key_edges is None else (key_edges, longest_key)
    offsets = edges, of_keys[0], longest, of_keys[1]
    return aten._flash_attention_forward(q, k, v, *offsets, 0.0, causal, False)[:2]


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, edges: Tensor, longest: int,
    *, key_edges: Tensor | None = None, longest_key: int = 0, causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, in a fixed order where PyTorch's deterministic algorithms are asked for."""
    random = torch.zeros(2, dtype=torch.uint64, device=q.device)  # no dropout
    of_keys = (edges, longest) if key_edges is None else (key_edges, longest_key)
    offsets = edges, of_keys[0], longest, of_keys[1]
    return aten._flash_attention_backward(grad, q, k, v, out, lse, *offsets, 0.0, causal, random, q.new_empty(0))


def cudnn_forward(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> tuple[Tensor, Tensor]:
    """Over whole rows. q [B, T, H, D]; k, v [B, keys, K, D] -> output [B, T, H, D], log-sum-exp [B, H, T]."""
    turned = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(*turned, None, True, 0.0, causal, False)
    return out.transpose(1, 2), lse[..., 0]


def cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; all arguments contiguous, as `cudnn_forward` has them."""
    turned = (x.transpose(1, 2) for x in (grad, q, k, v, out))
    random = torch.zeros((), dtype=torch.int64, device=q.device)  # no dropout
    made = aten._scaled_dot_product_cudnn_attention_backward(
        *turned, lse[..., None], random, random, None, None, None, q.shape[1], k.shape[1], 0.0, causal
    )
    return tuple(x.transpose(1, 2) for x in made)


def packed_forward(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
    """q [tokens, H, D]; k, v [tokens, K, D], the rows of the batch end to end -> output, log-sum-exp [H, tokens]."""
    long, short = documents.split(LEAST)
    if not long:
        return flash_forward(q, k, v, *documents.offsets)
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[1], len(q), dtype=torch.float32, device=q.device)
    for start, size in long:
        of, log = cudnn_forward(*_stretched(start, size, q, k, v))
        out[start : start + size], lse[:, start : start + size] = of[0, :size], log[0, :, :size]
    if short is not None:
        at = short.tokens
        out[at], lse[:, at] = flash_forward(q[at], k[at], v[at], short.edges, short.longest)
    return out, lse


def packed_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; arguments as `packed_forward` has them, grad like q."""
    long, short = documents.split(LEAST)
    if not long:
        return flash_backward(grad, q, k, v, out, lse, *documents.offsets)
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for start, size in long:
        of_grad, of_q, of_k, of_v, of_out = _stretched(start, size, grad, q, k, v, out)
        hidden = F.pad(lse[:, start : start + size], (0, of_q.shape[1] - size), value=float("inf"))
        parts = cudnn_backward(of_grad, of_q, of_k, of_v, of_out, hidden[None])
        for gradient, part in zip(gradients, parts):
            gradient[start : start + size] = part[0, :size]
    if short is not None:
        at = short.tokens
        log = lse[:, at].contiguous()
        parts = flash_backward(grad[at], q[at], k[at], v[at], out[at], log, short.edges, short.longest)
        for gradient, part in zip(gradients, parts):
            gradient[at] = part
    return gradients


def _stretched(start: int, size: int, *tensors: Tensor) -> list[Tensor]:
    """The document's rows of each, [1, tokens, ...], and those behind it up to its planned length, then zeros."""
    step = 1 << (size.bit_length() - 5)
    planned = -(-size // step) * step
    parts = [x[start : start + planned] for x in tensors]
    if missing := planned - len(parts[0]):
        parts = [F.pad(part, (0, 0, 0, 0, 0, missing)) for part in parts]
    return [part[None] for part in parts]
