"""The pieces of an update: micro-batches through the engine, sums over ranks; and the loss over held-out rows.

An update's loss is the sum over its predicted tokens divided by their number in the whole update, over all ranks. So
micro-batches and ranks change memory and speed, not the result. Each rank puts equally many micro-batches through: one
that has fewer rows ends with rows of padding.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from iqc.errors import IqcError
from iqc.tokens.dataset import Dataset
from iqc.tokens.loader import Batch, Limits, assemble
from iqc.train.data.domains import domain_losses, domain_sums
from iqc.train.engines.engine import Engine

if TYPE_CHECKING:
    from iqc.train.losses import Loss


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, list[list[int]], Tensor]:
    lengths = [[int(n) for n in row] for row in batch.lengths]
    return torch.from_numpy(batch.tokens).to(device), lengths, torch.from_numpy(batch.weights).to(device)


def micro_batches(batch: Batch, rows: int, most: int = 0) -> list[Batch]:
    """`rows` at a time (0: all) of a rank's rows; as many parts as a rank of `most` rows has (0: of these)."""
    most = most or len(batch.tokens)
    size = rows or most
    found = []
    for start in range(0, most, size):
        part = slice(start, start + size)
        domains = batch.domains[part] if batch.domains is not None else None
        made = Batch(batch.tokens[part], batch.weights[part], batch.lengths[part], domains)
        found.append(made if len(made.tokens) else padding(batch))
    return found


def padding(like: Batch) -> Batch:
    """A row of padding."""
    width = like.tokens.shape[1]
    domains = np.zeros(1, np.int64) if like.domains is not None else None
    return Batch(np.zeros((1, width), np.int64), np.zeros((1, width), np.float32), [np.zeros(0, np.int64)], domains)


class Checks(Protocol):
    """What is looked at before an update is applied."""

    def gradients(self, step: int, batch: Batch, accumulate: Callable[[Batch], dict[str, Tensor]]) -> dict[str, Tensor]:
        """accumulate(batch), perhaps more than once."""

    def judge(self, step: int, metrics: dict) -> str:
        """ "apply", "repeat" or "skip", the same on all ranks; raises to stop."""

    def applied(self, step: int) -> None: ...


class Finite:
    """Stops when a number is none."""

    def gradients(self, step: int, batch: Batch, accumulate: Callable[[Batch], dict[str, Tensor]]) -> dict[str, Tensor]:
        return accumulate(batch)

    def judge(self, step: int, metrics: dict) -> str:
        loss, norm = metrics["loss"], metrics["grad_norm"]
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise IqcError(
                f"loss {loss}, gradient norm {norm}", remedy="lower --rate, or look for damaged rows in the data"
            )
        return "apply"

    def applied(self, step: int) -> None:
        pass


def update(
    engine: Engine,
    loss: "Loss",
    batch: Batch,
    rate: float,
    *,
    micro_rows: int = 0,
    batch_rows: int = 0,
    domains: tuple[str, ...] = (),
    step: int = 0,
    checks: Checks | None = None,
    before: Callable[[], None] = lambda: None,
) -> dict:
    """One update with this rank's rows; returns its metrics, {} when it was skipped.

    That is the mean loss and what else the loss counts, of each domain too where rows have one; the number of predicted
    tokens and the gradient norm. `batch_rows`: of all ranks together. `before` is called before a weight changes.
    """
    checks = checks or Finite()
    count, tokens = count_of(engine, loss, batch)
    most = -(-batch_rows // engine.ranks.data_ranks)

    def gradients(rows: Batch) -> dict[str, Tensor]:
        return accumulate(engine, loss, rows, count, micro_rows, most, len(domains))

    while True:
        sums = checks.gradients(step, batch, gradients)
        norm = engine.reduce()
        metrics = means(engine, sums, count, domains) | {"tokens": tokens, "grad_norm": norm}
        decision = checks.judge(step, metrics)
        if decision == "apply":
            before()
            engine.apply(rate)
            checks.applied(step)
            return metrics
        engine.discard()
        if decision == "skip":
            return {}


def accumulate(
    engine: Engine, loss: "Loss", batch: Batch, count: float, micro_rows: int, most: int, domains: int
) -> dict[str, Tensor]:
    """The gradients of these rows into the engine. Returns their sums, float64: those of the loss by name, and as
    `domains` those of domain_sums. `count` is that of the whole update, `most` the rows of the rank that has most."""
    device, first = engine.ranks.device, engine.ranks.context_rank == 0
    sums: dict[str, Tensor] = {}
    parts = micro_batches(batch, micro_rows, most)
    for number, part in enumerate(parts, 1):
        total, made = engine.compute(loss, part)
        engine.backward(total / count, last=number == len(parts))
        by_domain = domain_sums(part, engine.model.row_losses, domains)
        made["domains"] = by_domain if first else by_domain * by_domain.new_tensor([[1.0], [0.0]])  # weights once
        for name, value in made.items():
            exact = value.detach().to(device, torch.float64)
            sums[name] = sums[name] + exact if name in sums else exact
    return sums


def count_of(engine: Engine, loss: "Loss", batch: Batch) -> tuple[float, float]:
    """Of the whole update, over all ranks: what the loss is divided by, and the weights of the predicted tokens."""
    own = engine.ranks.context_rank == 0  # ranks that share rows count them once
    weights = float(np.sum(batch.weights, dtype=np.float64))
    found = torch.tensor([loss.count(batch), weights] if own else [0.0, 0.0], dtype=torch.float64)
    count, tokens = engine.ranks.sum(found).tolist()
    if count <= 0:
        raise IqcError("an update without a token to learn", remedy="take a larger --batch-rows")
    return count, tokens


def means(engine: Engine, sums: dict[str, Tensor], count: float, domains: tuple[str, ...]) -> dict:
    """The metrics of an update: what `accumulate` gave, over all ranks and by what it is counted."""
    names = sorted(sums)
    whole = engine.ranks.sum(torch.cat([sums[name].flatten() for name in names]))
    parts = dict(zip(names, whole.cpu().split([sums[name].numel() for name in names])))
    by_domain = domain_losses(parts.pop("domains").view(2, -1), domains)
    metrics: dict = {"loss": 0.0} | {name: value.item() / count for name, value in parts.items()}
    return metrics | ({"domain_loss": by_domain} if domains else {})


@torch.no_grad()
def evaluate(engine: Engine, loss: "Loss", dataset: Dataset, limits: Limits, rows: int) -> float:
    """The mean loss over a whole dataset, the same on all ranks; `rows` at a time, shared out over them."""
    engine.model.eval()
    total = torch.zeros((), dtype=torch.float64, device=engine.ranks.device)
    count = 0.0
    for part in shares(dataset, limits, rows, engine):
        total += engine.compute(loss, part)[1]["loss"]
        count += loss.count(part) if engine.ranks.context_rank == 0 else 0.0
    engine.model.train()
    whole = engine.ranks.sum(torch.stack([total, total.new_tensor(count)])).tolist()
    return whole[0] / whole[1]


def shares(dataset: Dataset, limits: Limits, rows: int, engine: Engine) -> Iterator[Batch]:
    """Of every `rows` rows of a set, in order, those of this rank."""
    rank, ranks = engine.ranks.data_rank, engine.ranks.data_ranks
    for start in range(0, len(dataset), rows):
        size = min(rows, len(dataset) - start)
        made = assemble(dataset, range(start + size * rank // ranks, start + size * (rank + 1) // ranks), limits)
        yield made if len(made.tokens) else padding(made)
