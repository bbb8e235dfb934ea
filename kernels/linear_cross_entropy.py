"""Vocabulary head and cross-entropy in one, by chunks of tokens: the [tokens, vocabulary] logits never exist whole.

The loss is linear in its output's gradient and weights are constants, so the gradients of a chunk are computed while
its logits are at hand, in forward. That costs no extra matrix product, and on a CPU it is also faster than the plain
form, because a chunk of logits stays in cache. Softmax is in float32 (float64 for float64 inputs).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 22  # logits at a time: 16 MiB of float32, 1,024 tokens of nano's vocabulary


def _chunk(weight: Tensor) -> int:
    return max(1, CHUNK_LOGITS // weight.shape[0])


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    logits = F.linear(x, weight)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        total = torch.zeros((), dtype=grad_weight.dtype, device=x.device)
        rows = _chunk(weight)
        for at in range(0, len(x), rows):
            part, target, w = x[at : at + rows], targets[at : at + rows, None], weights[at : at + rows].to(total.dtype)
            logits = _logits(part, weight)
            lse = logits.logsumexp(dim=-1, keepdim=True)
            total += torch.dot((lse - logits.gather(1, target))[:, 0], w)
            if not any(ctx.needs_input_grad[:2]):
                continue
            slope = logits.sub_(lse).exp_()  # d nll / d logits = softmax - one-hot
            slope.scatter_add_(1, target, torch.full_like(lse, -1.0))
            slope = slope.mul_(w[:, None]).to(x.dtype)
            if grad_x is not None:
                grad_x[at : at + rows] = slope @ weight.to(x.dtype)
            if ctx.needs_input_grad[1]:
                grad_weight += slope.T @ part
        ctx.save_for_backward(grad_x, grad_weight.to(weight.dtype))
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
        )


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum_n weights[n] * -log softmax(weight @ x[n])[targets[n]], in nats.

    x [N, D]; weight [V, D]; targets int64 [N]; weights [N], constants. Returns a scalar, float32 or wider.
    """
    return _LinearCrossEntropy.apply(x, weight, targets, weights)


def linear_logprobs(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(weight @ x[n])[targets[n]], each n: [N]. Differentiable; backward recomputes the logits."""

    def one(part: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = _logits(part, weight)
        return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(dim=-1)

    rows = _chunk(weight)
    parts = zip(x.split(rows), targets.split(rows))
    if not torch.is_grad_enabled():
        return torch.cat([one(part, weight, target) for part, target in parts])
    return torch.cat([checkpoint(one, part, weight, target, use_reentrant=False) for part, target in parts])
