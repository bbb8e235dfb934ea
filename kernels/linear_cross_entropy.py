"""Vocabulary head and cross-entropy in one, by chunks of tokens: the [tokens, vocabulary] logits never exist whole.

The loss is linear in its output's gradient and weights are constants, so the gradients of a chunk are computed while
its logits are at hand, in forward. That costs no extra matrix product, and on a CPU it is also faster than the plain
form, because a chunk of logits stays in cache. Softmax is in float32 (float64 for float64 inputs). On a GPU the logits
are overwritten with their gradient by compiled code, and the head's gradient is summed over chunks in float32 inside
the matrix product.
"""

import functools
import os
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


def _to_softmax(logits: Tensor, weights: Tensor, z_loss: float) -> Tensor:
    """Overwrite logits [n, V] with weights * softmax, times what z-loss makes of it; returns the log-sum-exp [n, 1].
    One pass, when compiled: nothing but this may read the logits in it."""
    exact = logits.to(weights.dtype)
    lse = exact.logsumexp(dim=-1, keepdim=True)
    logits.copy_((exact - lse).exp() * _scaled(weights, lse, z_loss))
    return lse


def _scaled(weights: Tensor, lse: Tensor, z_loss: float) -> Tensor:
    """What the softmax is multiplied by in the gradient, [n, 1]: z_loss * lse^2 adds 2 * z_loss * lse * softmax."""
    return weights[:, None] * (1 + 2 * z_loss * lse) if z_loss else weights[:, None]


def _to_slope(logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Overwrite logits with the gradient of the weighted sum of the losses, on a GPU: weights * (softmax - one-hot),
    with z-loss. Returns the losses [n], without it, and the log-sum-exps [n]."""
    for tensor in (logits, weights):  # as many tokens as it happens; the vocabulary stays known
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    picked = logits.gather(1, targets[:, None]).to(weights.dtype)
    lse = _fused(_to_softmax)(logits, weights, z_loss)
    nll = lse - picked
    slope = torch.expm1(-nll)  # of the target: softmax - 1, exact where it is certain
    if z_loss:
        slope += 2 * z_loss * lse * torch.exp(-nll)
    logits.scatter_(1, targets[:, None], (slope * weights[:, None]).to(logits.dtype))
    return nll[:, 0], lse[:, 0]


def _scale(gradient: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    return (gradient * by).to(dtype)


@functools.cache
def _fused(function: Callable) -> Callable:
    return function if os.environ.get("IQC_COMPILE") == "0" else torch.compile(function)


def _product(a: Tensor, b: Tensor, out: Tensor, beta: int = 0) -> Tensor:
    """out = beta * out + a @ b, without a rounding to the precision of a and b where out's is higher."""
    if out.is_cuda and out.dtype != a.dtype:
        torch.ops.aten.baddbmm.dtype_out(out[None], a[None], b[None], out.dtype, beta=beta, out=out[None])
        return out
    if out.is_cuda:
        return torch.addmm(out, a, b, beta=beta, out=out)
    made = a.to(out.dtype) @ b.to(out.dtype)
    return out.add_(made) if beta else out.copy_(made)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        rows: Tensor | None,
        dtype: torch.dtype,
        losses: Tensor | None,
        z_loss: float,
    ) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.dtypes = x.dtype, weight.dtype
        weight = weight.to(dtype)
        exact = torch.promote_types(weight.dtype, torch.float32)
        # Gradients stay exact until backward knows what to multiply them by: one rounding to the inputs' precision.
        grad_x = (torch.empty_like if rows is None else torch.zeros_like)(x, dtype=exact) if needs_x else None
        grad_weight = torch.empty_like(weight, dtype=exact) if needs_weight else None
        if grad_weight is not None and not len(targets):
            grad_weight.zero_()
        total = torch.zeros((), dtype=exact, device=x.device)
        weights = weights.to(exact)
        size = _chunk(weight, len(targets))
        for at in range(0, len(targets), size):
            chunk = slice(at, at + size)
            part = x[chunk if rows is None else rows[chunk]].to(dtype)
            target, w = targets[chunk], weights[chunk]
            if weight.is_cuda and (needs_x or needs_weight):
                slope = F.linear(part, weight)
                nll, lses = _to_slope(slope, target, w, z_loss)
            else:
                logits = _logits(part, weight)
                lse = logits.logsumexp(dim=-1, keepdim=True)
                nll, lses = (lse - logits.gather(1, target[:, None]))[:, 0], lse[:, 0]
                if needs_x or needs_weight:
                    slope = logits.sub_(lse).exp_().mul_(_scaled(w, lse, z_loss))
                    slope = slope.scatter_add_(1, target[:, None], -w[:, None]).to(dtype)  # softmax - one-hot
            total += torch.dot(nll + z_loss * lses**2 if z_loss else nll, w)
            if losses is not None:
                losses[chunk] = nll
            if grad_x is not None:
                made = _product(slope, weight, torch.empty_like(part, dtype=exact))
                grad_x[chunk if rows is None else rows[chunk]] = made
            if grad_weight is not None:
                _product(slope.T, part, grad_weight, beta=int(at > 0))
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        # One multiplication each; the saved tensors are not written to, so the graph may be walked again.
        scale = _fused(_scale) if grad.is_cuda else _scale
        made = (g if g is None else scale(g, grad, dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes))
        return (*made, None, None, None, None, None, None)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    rows: Tensor | None = None,
    losses: Tensor | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """sum_n weights[n] * -log softmax(weight @ x[rows[n]])[targets[n]], in nats.

    With `z_loss` each term is that plus z_loss * log(Z)^2, Z the softmax's denominator, which keeps logits from
    drifting (PaLM, arXiv 2204.02311, section 5, has 1e-4).

    x [N, D]; weight [V, D]; targets int64 [M]; weights [M], constants; rows int64 [M], distinct rows of x, by default
    all of them. Returns a scalar, float32 or wider. Under autocast the matrix products are in its precision. Into
    `losses` [M] the loss of each is written, without weights and without z-loss.
    """
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, targets, weights, rows, dtype, losses, z_loss)


def linear_logprobs(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(weight @ x[n])[targets[n]], each n: [N]. Differentiable; backward recomputes the logits."""

    def one(part: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = _logits(part, weight)
        return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(dim=-1)

    rows = max(1, (16 if weight.is_cuda else 1) * CHUNK_LOGITS // weight.shape[0])
    parts = zip(x.split(rows), targets.split(rows))
    if not torch.is_grad_enabled():
        return torch.cat([one(part, weight, target) for part, target in parts])
    return torch.cat([checkpoint(one, part, weight, target, use_reentrant=False) for part, target in parts])
