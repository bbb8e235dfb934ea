"""Vocabulary head and cross-entropy in one, by chunks of tokens: the [tokens, vocabulary] logits never exist whole.

The loss is linear in its output's gradient and weights are constants, so the gradients of a chunk are computed while
its logits are at hand, in forward. That costs no extra matrix product, and on a CPU it is also faster than the plain
form, because a chunk of logits stays in cache. Softmax is in float32 (float64 for float64 inputs). On a GPU the logits
are overwritten with their gradient by compiled code, and the head's gradient is summed over chunks in float32 inside
the matrix product.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 22  # logits at a time: 16 MiB of float32, 1,024 tokens of nano's vocabulary
GPU_CHUNK_LOGITS = 1 << 29  # 1 GiB of bfloat16, 6,990 tokens of the released vocabulary: products large enough


def _chunk(weight: Tensor, tokens: int) -> int:
    """Tokens at a time. On a GPU all chunks alike, since a small last one would take its full time nearly."""
    if not weight.is_cuda:
        return max(1, CHUNK_LOGITS // weight.shape[0])
    chunks = -(-tokens * weight.shape[0] // GPU_CHUNK_LOGITS) or 1
    return -(-tokens // chunks) or 1


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    logits = F.linear(x, weight)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _to_slope(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Overwrite logits [n, V] with the gradient of the returned loss: weight * (softmax - one-hot)."""
    exact = logits.to(weights.dtype)
    lse = exact.logsumexp(dim=-1, keepdim=True)
    loss = ((lse - exact.gather(1, targets[:, None]))[:, 0] * weights).sum()
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    logits.copy_(((exact - lse).exp() - hit.to(exact.dtype)) * weights[:, None])
    return loss


@functools.cache
def _fused_to_slope() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(_to_slope)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in total's precision: on a GPU inside the product, which accumulates in float32 anyway."""
    if total.is_cuda and total.dtype != a.dtype:
        torch.ops.aten.baddbmm.dtype_out(total[None], a[None], b[None], total.dtype, out=total[None])
    elif total.is_cuda:
        total.addmm_(a, b)
    else:
        total += a @ b


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, rows: Tensor | None) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        exact = torch.promote_types(weight.dtype, torch.float32)
        grad_x = (torch.empty_like if rows is None else torch.zeros_like)(x) if needs_x else None
        size = _chunk(weight, len(targets))
        # The gradient of a GPU's only chunk is written in the head's precision; those of several are summed in float32.
        whole = weight.is_cuda and 0 < len(targets) <= size
        grad_weight = torch.zeros_like(weight, dtype=exact) if needs_weight and not whole else None
        total = torch.zeros((), dtype=exact, device=x.device)
        weights = weights.to(exact)
        for at in range(0, len(targets), size):
            chunk = slice(at, at + size)
            part, target, w = x[chunk if rows is None else rows[chunk]], targets[chunk], weights[chunk]
            if weight.is_cuda:
                slope = F.linear(part, weight)
                total += _fused_to_slope()(slope, target, w)
            else:
                logits = _logits(part, weight)
                lse = logits.logsumexp(dim=-1, keepdim=True)
                total += torch.dot((lse - logits.gather(1, target[:, None]))[:, 0], w)
                if not needs_x and not needs_weight:
                    continue
                slope = logits.sub_(lse).exp_()  # d nll / d logits = softmax - one-hot
                slope.scatter_add_(1, target[:, None], torch.full_like(lse, -1.0))
                slope = slope.mul_(w[:, None]).to(x.dtype)
            if grad_x is not None:
                grad_x[chunk if rows is None else rows[chunk]] = slope @ weight.to(x.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, slope.T, part)
            elif needs_weight:
                grad_weight = slope.T @ part
        ctx.save_for_backward(grad_x, grad_weight if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad_x, grad_weight = ctx.saved_tensors
        # One multiplication each; the saved tensors are not written to, so the graph may be walked again.
        return (
            grad_x * grad.to(grad_x.dtype) if ctx.needs_input_grad[0] else None,
            grad_weight * grad.to(grad_weight.dtype) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, rows: Tensor | None = None
) -> Tensor:
    """sum_n weights[n] * -log softmax(weight @ x[rows[n]])[targets[n]], in nats.

    x [N, D]; weight [V, D]; targets int64 [M]; weights [M], constants; rows int64 [M], distinct rows of x, by default
    all of them. Returns a scalar, float32 or wider.
    """
    return _LinearCrossEntropy.apply(x, weight, targets, weights, rows)


def linear_logprobs(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(weight @ x[n])[targets[n]], each n: [N]. Differentiable; backward recomputes the logits."""

    def one(part: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = _logits(part, weight)
        return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(dim=-1)

    rows = _chunk(weight, len(x))
    parts = zip(x.split(rows), targets.split(rows))
    if not torch.is_grad_enabled():
        return torch.cat([one(part, weight, target) for part, target in parts])
    return torch.cat([checkpoint(one, part, weight, target, use_reentrant=False) for part, target in parts])
