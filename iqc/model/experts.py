"""Experts in place of a layer's feed-forward: a router sends each token to a few of them, one is shared by all tokens.

The form of Ling (Bailing) models: softmax in float32 over all experts, the best k, made to sum to 1 where the
configuration says so; the shared expert has no gate. No token is ever dropped. NormHead is here, too.

The router learns to spread tokens from the load-balancing loss of Switch Transformer (Fedus et al. 2021, equation 4) as
Transformers computes it for several experts a token. There is no router z-loss.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iqc.model.config import ModelConfig

Routing = tuple[Tensor, Tensor]  # probabilities [N, E] and choices int64 [N, k]


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Rows of x [M, in], sorted by expert, each through its expert's weight [E, out, in]: [M, out].

    counts int64 [E]: how many rows belong to each. One kernel on a GPU, in the precision and shapes that it has.
    """
    aligned = weight.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0  # it reads 16 bytes at a time
    if x.is_cuda and x.dtype == torch.bfloat16 and aligned and hasattr(F, "grouped_mm"):
        return fused_grouped_linear(x, weight, counts)
    return torch.cat([F.linear(rows, matrix) for rows, matrix in zip(x.split(counts.tolist()), weight)])


def fused_grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """`grouped_linear` as one kernel. Weights are wider than x under autocast, which knows nothing of this kernel."""
    return F.grouped_mm(x, weight.to(x.dtype).mT, offs=counts.cumsum(0).to(torch.int32))


def choices(chosen: Tensor, experts: int) -> Tensor:
    """int64 [E]: how often each expert is chosen. (bincount would wait for a GPU.)"""
    flat = chosen.flatten()
    return torch.zeros(experts, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))


class Experts(nn.Module):
    """The routed experts' matrices lie in three tensors [E, out, in]; `shared` is the feed-forward of all tokens."""

    def __init__(self, config: ModelConfig, shared: nn.Module | None):
        super().__init__()
        experts, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.per_token, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.shared_experts = shared
        # The probabilities [N, E] and choices [N, k] of the first training forward after `routing` was set to None. The
        # forward of activation recompute comes later and leaves them alone: keeping its tensors would keep the
        # activations that recompute is there to drop.
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden size] to the same."""
        flat = x.flatten(0, -2)
        scores = self.gate(flat)
        probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        shares, chosen = probabilities.topk(self.per_token)
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        if self.training and self.routing is None:
            self.routing = probabilities, chosen
        mixed = (self._routed(flat, chosen) * shares[..., None]).sum(1).to(x.dtype).view_as(x)
        return mixed if self.shared_experts is None else mixed + self.shared_experts(x)

    def _routed(self, x: Tensor, chosen: Tensor) -> Tensor:
        """What each of a token's experts makes of it: x [N, hidden size], chosen [N, k] to [N, k, hidden size]."""
        order = chosen.flatten().argsort(stable=True)
        counts = choices(chosen, len(self.gate_proj))
        rows = x[order // self.per_token]
        inner = F.silu(grouped_linear(rows, self.gate_proj, counts)) * grouped_linear(rows, self.up_proj, counts)
        out = grouped_linear(inner, self.down_proj, counts)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return out[place].view(*chosen.shape, -1)


def balance_loss(probabilities: Tensor, chosen: Tensor, real: Tensor | None = None) -> Tensor:
    """E * sum over experts of (choices of it a token) * (its mean probability); with even routing this is k.

    probabilities [N, E], chosen int64 [N, k]; real bool [N] leaves out padding. Gradients go through the mean alone.
    """
    if real is not None:
        probabilities, chosen = probabilities[real], chosen[real]
    experts = probabilities.shape[-1]
    load = choices(chosen, experts).to(probabilities.dtype) / len(chosen)
    return experts * (load * probabilities.mean(0)).sum()


def shared_balance(
    routings: Sequence[Routing], real: Tensor | None, weight: Tensor, together: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of `balance_loss` over the layers, for the rows of all ranks at once, which `together` adds up, in
    float64; None: of this one alone. routings: of each layer probabilities and choices; weight: of this rank's tokens.

    Returns the weight of all ranks; what this rank's rows add to the mean, with gradients; and the mean.
    """
    if together is None:
        balance = torch.stack([balance_loss(*routing, real) for routing in routings]).mean()
        return weight, balance, balance.detach()
    own = [(p, chosen) if real is None else (p[real], chosen[real]) for p, chosen in routings]
    layers, experts, device = len(own), own[0][0].shape[-1], weight.device
    counts = torch.stack([choices(chosen, experts) for _, chosen in own]).double()
    amounts = torch.stack([torch.tensor(float(len(own[0][0])), device=device, dtype=torch.float64), weight.double()])
    tokens, weights, *_ = sums = together(torch.cat([amounts, counts.flatten()]))
    load = sums[2:].view(layers, experts) / tokens
    parts = [experts * (row.to(p.dtype) * p.sum(0)).sum() / tokens.to(p.dtype) for row, (p, _) in zip(load, own)]
    part = torch.stack(parts).mean()
    return weights.to(weight.dtype), part, together(part.detach()).to(part.dtype)


def norm_head(weight: Tensor) -> Tensor:
    """NormHead: every column of a vocabulary head [V, hidden size] over its norm plus 1e-7, taken over the vocabulary.

    The norm is a constant to gradients, as in the released training code.
    """
    norm = torch.linalg.vector_norm(
        weight.detach(), dim=0, keepdim=True, dtype=torch.promote_types(weight.dtype, torch.float32)
    )
    return (weight / (norm + 1e-7)).to(weight.dtype)
