"""Causal attention over packed documents: PyTorch's own on a CPU, the fastest installed kernels on a GPU.

On a GPU forward and backward are also functions of their own, because the loop's attention mixes a second branch in
between. Rows that hold one document each go to cuDNN, the fastest that PyTorch brings (Hopper); of packed rows the long
documents do (iqc.kernels.packed_attention). The rest, and runs under torch.use_deterministic_algorithms, go to
FlashAttention-2, which takes document offsets and can sum in a fixed order.

Tensors are laid out [batch, tokens, heads, head size], as projections leave them. Scores are scaled by 1/sqrt(head
size); query head h reads key/value head h // (query heads / key heads).
"""

import os
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from iqc.kernels.documents import Documents
from iqc.kernels.packed_attention import (
    cudnn_backward,
    cudnn_forward,
    flash_backward,
    flash_forward,
    packed_backward,
    packed_forward,
)


class Unsupported(ValueError):
    """What the kernels on a GPU do not take or have, by name. IQC_ATTENTION=reference does without them."""


def use_kernels(q: Tensor) -> bool:
    """Whether attention over q goes to the GPU's kernels. Raises Unsupported for head sizes that they do not take.

    On a GPU, float32 and wider have no fast kernel, and IQC_ATTENTION=reference asks for none: both are computed in
    plain PyTorch, with a warning.
    """
    if not q.is_cuda:
        return False
    reference = os.environ.get("IQC_ATTENTION") == "reference"
    if reference or q.dtype not in (torch.bfloat16, torch.float16):
        why = "IQC_ATTENTION=reference" if reference else f"no fast attention for {q.dtype}"
        warnings.warn(f"{why}: attention in plain PyTorch, slow on a GPU", stacklevel=3)
        return False
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        raise Unsupported(f"attention on a GPU takes heads of up to 128 in steps of 8, not {q.shape[-1]}")
    return True


def causal_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Softmax attention of each token over its document up to and including itself.

    q [B, T, H, D]; k, v [B, T, K, D] with K dividing H. Returns [B, T, H, D].
    """
    if use_kernels(q):
        return _CausalAttention.apply(q, k, v, documents)
    mask = None if documents.whole else documents.causal_mask()
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, is_causal=documents.whole, enable_gqa=True
    )
    return out.transpose(1, 2)


def library_forward(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D] and the scores' log-sum-exp (natural, float32 [rows, H, row length]).

    A row is a row of the batch where each holds one document; otherwise the whole batch is one row.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if documents.whole and not deterministic:
        return cudnn_forward(q, k, v)
    flat = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out, lse = flash_forward(*flat, *documents.offsets) if deterministic else packed_forward(*flat, documents)
    return out.view_as(q), lse[None]


def library_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. All of [B, T, H or K, D] contiguous, `lse` as `library_forward` gave it, in one mode.

    The probabilities are exp(score - lse), and the gradient of the scores is their product with <grad, v> - <grad,
    out>: so `lse - log(g)` gives the gradients of g * output for a number g per token and head, with `grad` itself
    unscaled.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if documents.whole and not deterministic:
        return cudnn_backward(grad, q, k, v, out, lse)
    flat = grad.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), out.flatten(0, 1), lse[0]
    dq, dk, dv = flash_backward(*flat, *documents.offsets) if deterministic else packed_backward(*flat, documents)
    return dq.view_as(q), dk.view_as(k), dv.view_as(v)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse = library_forward(q, k, v, documents)
        ctx.save_for_backward(q, k, v, out.contiguous(), lse)
        ctx.documents = documents
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, out, lse = ctx.saved_tensors
        return *library_backward(grad.contiguous(), q, k, v, out, lse, ctx.documents), None
