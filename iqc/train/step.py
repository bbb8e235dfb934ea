"""One update from a batch, and the loss over held-out rows.

An update's loss is the sum over its predicted tokens divided by their number in the whole update, so micro-batches
change memory, not the result.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from iqc.errors import IqcError
from iqc.model.decoder import Decoder
from iqc.tokens.dataset import Dataset
from iqc.tokens.loader import Batch, Limits, in_order
from iqc.train.domains import domain_losses, domain_sums

CLIP = 1.0  # the norm that gradients are scaled down to


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    lengths = [[int(n) for n in row] for row in batch.lengths]
    return torch.from_numpy(batch.tokens).to(device), lengths, torch.from_numpy(batch.weights).to(device)


def micro_batches(batch: Batch, rows: int) -> Iterator[Batch]:
    size = rows or len(batch.tokens)
    for start in range(0, len(batch.tokens), size):
        part = slice(start, start + size)
        domains = batch.domains[part] if batch.domains is not None else None
        yield Batch(batch.tokens[part], batch.weights[part], batch.lengths[part], domains)


def products_in(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """A context in which the model's matrix products are in another precision than its weights; None: not."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def update(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rate: float,
    micro_rows: int = 0,
    products: torch.dtype | None = None,
    domains: tuple[str, ...] = (),
) -> dict:
    """One update; returns the mean loss in nats a token, of each domain too where rows have one, the number of
    predicted tokens and the gradient norm.

    With experts the load-balancing loss too, by micro-batch: it is no part of the loss that is returned.
    """
    device = model.lm_head.weight.device
    for group in optimizer.param_groups:
        group["lr"] = rate
    count = float(np.sum(batch.weights, dtype=np.float64))
    if count <= 0:
        raise IqcError("an update without a token to learn", remedy="take a larger --batch-rows")
    total, balance = torch.zeros(2, dtype=torch.float64, device=device)
    sums = torch.zeros(2, len(domains), dtype=torch.float64, device=device)
    optimizer.zero_grad(set_to_none=True)
    for part in micro_batches(batch, micro_rows):
        with products_in(products, device):
            penalised, weight = model.loss(*to_device(part, device))
        (penalised / count).backward()
        total += penalised.detach()
        balance += model.balance * weight
        sums += domain_sums(part, model.row_losses, len(domains))
    gradient = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    norm, balance = gradient.item(), balance.item()  # a GPU is waited for here, and nowhere before
    loss = (total.item() - model.config.router_aux_loss_coef * balance) / count
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise IqcError(
            f"loss {loss}, gradient norm {norm}", remedy="lower --rate, or look for damaged rows in the data"
        )
    metrics: dict = {"loss": loss, "tokens": count, "grad_norm": norm}
    if domains:
        metrics["domain_loss"] = domain_losses(sums, domains)
    return metrics | ({"balance": balance / count} if model.config.num_experts else {})


@torch.no_grad()
def evaluate(model: Decoder, dataset: Dataset, limits: Limits, rows: int, products: torch.dtype | None = None) -> float:
    """The mean loss in nats a token over a whole dataset, `rows` at a time."""
    model.eval()
    device = model.lm_head.weight.device
    total = count = 0.0
    for part in in_order(dataset, limits, rows):
        with products_in(products, device):
            nll, weight = model.loss(*to_device(part, device))
        total, count = total + nll.item(), count + weight.item()
    model.train()
    return total / count
