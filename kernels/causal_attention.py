"""Causal attention over packed documents: PyTorch's own on a CPU, the fastest installed kernels on a GPU.

On a GPU forward and backward are also functions of their own, because the loop's attention mixes a second branch in
between. Rows that hold one document each go to cuDNN, the fastest that PyTorch brings (Hopper); packed rows, and runs
under torch.use_deterministic_algorithms, go to FlashAttention-2, which takes document offsets and can sum in a fixed
order. (PyTorch 2.11's way into cuDNN with offsets takes far longer, and its gradients were wrong with grouped heads.)

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

aten = torch.ops.aten
State = tuple[Tensor, ...]  # what a library's backward wants of its forward besides output and log-sum-exp


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


def library_forward(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> tuple[Tensor, Tensor, State]:
    """Output [B, T, H, D], the scores' log-sum-exp (natural, float32 [rows, H, row length]) and the library's state.

    For cuDNN a row is a row of the batch; for FlashAttention with offsets the whole batch is one row.
    """
    if documents.whole and not torch.are_deterministic_algorithms_enabled():
        made = aten._scaled_dot_product_cudnn_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, True, 0.0, True, False
        )
        return made[0].transpose(1, 2), made[1][..., 0], (made[6], made[7])
    edges, longest = documents.offsets
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out, lse, *_ = aten._flash_attention_forward(q, k, v, edges, edges, longest, longest, 0.0, True, False)
    return out.view(*documents.starts.shape, *out.shape[1:]), lse[None], ()


def library_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, state: State, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. All of [B, T, H or K, D] contiguous, `lse` and `state` as `library_forward` gave them.

    The probabilities are exp(score - lse), and the gradient of the scores is their product with <grad, v> - <grad,
    out>: so `lse - log(g)` gives the gradients of g * output for a number g per token and head, with `grad` itself
    unscaled.
    """
    if state:
        heads_first = (x.transpose(1, 2) for x in (grad, q, k, v, out))
        made = aten._scaled_dot_product_cudnn_attention_backward(
            *heads_first, lse[..., None], *state, None, None, None, q.shape[1], k.shape[1], 0.0, True
        )
        return tuple(x.transpose(1, 2) for x in made)
    edges, longest = documents.offsets
    random = torch.zeros(2, dtype=torch.uint64, device=q.device)  # no dropout
    made = aten._flash_attention_backward(
        *(x.flatten(0, 1) for x in (grad, q, k, v, out)),
        lse[0], edges, edges, longest, longest, 0.0, True, random, q.new_empty(0),
    )  # fmt: skip
    return tuple(x.view(*documents.starts.shape, *x.shape[1:]) for x in made)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse, state = library_forward(q, k, v, documents)
        ctx.save_for_backward(q, k, v, out, lse, *state)
        ctx.documents = documents
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, out, lse, *state = ctx.saved_tensors
        return *library_backward(grad.contiguous(), q, k, v, out, lse, tuple(state), ctx.documents), None
