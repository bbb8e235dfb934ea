"""What the training loop asks of an engine: the model, its gradients and the optimiser of one process among several.

Gradients are sums over all ranks of what each adds with `backward`; the loss is divided by the update's count of
tokens before, so nothing here averages. Ranks that share rows are ranks like others: each adds its own tokens' part.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from iqc.errors import UsageError
from iqc.model.decoder import Decoder
from iqc.train.checkpoints import Piece, Stored
from iqc.train.optimizer import make_optimizer
from iqc.train.ranks import Ranks
from iqc.train.settings import PRECISIONS, TrainSettings

T = TypeVar("T")
CLIP = 1.0  # the norm that gradients are scaled down to


class Engine(Protocol):
    """Of update k: `backward` for each micro-batch, equally many on every rank; `reduce`; `apply` or `discard`."""

    model: Decoder
    optimizer: torch.optim.Optimizer  # whose state has, under ZeRO, this rank's flat partitions
    ranks: Ranks
    replicated: frozenset[str]  # of "parameters" and "gradients", which every rank holds whole

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(model, *args), in the precision of the run; weights are there, and whole, nowhere else."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch, `last` of the update or not."""

    def reduce(self) -> float:
        """Add the gradients of all ranks, after the last micro-batch. Returns their norm."""

    def apply(self, rate: float) -> None:
        """Clip the gradients to the norm CLIP, update the weights and forget the gradients."""

    def discard(self) -> None:
        """Forget the gradients, before `reduce` or after it."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """After `reduce`: names and what this rank holds of their gradients, whole or flat slices."""

    def pieces(self) -> Iterator[Piece]:
        """This rank's share of weights and of the optimiser's state."""

    def load(self, stored: Stored) -> None:
        """Take back what `pieces` gave, of whatever engine and number of ranks."""


def check_engine(settings: TrainSettings, precision: str) -> None:
    """UsageError for what does not go together."""
    if settings.engine == "local":
        if settings.zero is not None or settings.offload != "none":
            flag = "--zero" if settings.zero is not None else "--offload"
            raise UsageError(f"{flag} is DeepSpeed's", remedy="--engine deepspeed")
        return
    zero = stage_of_zero(settings)
    if settings.optimizer == "muon":
        raise UsageError(
            "Muon with DeepSpeed: it works on whole matrices, DeepSpeed divides them",
            remedy="--engine local, or --optimizer adamw",
        )
    if precision == "bf16-pure":
        raise UsageError("DeepSpeed keeps float32 masters of bfloat16 weights", remedy="--precision bf16")
    if precision == "bf16" and zero == 0:  # its optimiser for that takes other steps: loss 4.757 against 4.781
        raise UsageError(
            "bfloat16 at ZeRO-0 is not the same training in DeepSpeed", remedy="--zero 1, or --engine local"
        )
    least = {"none": 0, "optimizer": 1, "all": 3}[settings.offload]
    if zero < least:
        raise UsageError(f"--offload {settings.offload} at ZeRO-{zero}", remedy=f"--zero {least}")


def stage_of_zero(settings: TrainSettings) -> int:
    return 1 if settings.zero is None else settings.zero


def layout(settings: TrainSettings) -> dict:
    """What of the engine and of the ranks must be the same for the same bits; nothing at its default."""
    shared = {"context_ranks": settings.context_ranks} if settings.context_ranks > 1 else {}
    if settings.engine == "local":
        return shared
    return shared | {"engine": settings.engine, "zero": stage_of_zero(settings), "offload": settings.offload}


def make_engine(settings: TrainSettings, model: Decoder, rate: float, precision: str, ranks: Ranks) -> Engine:
    """The engine that is asked for, with this model, whose weights are whole on every rank, on the CPU.

    `rate` is the optimiser's first; `precision` one of PRECISIONS.
    """
    dtype, products = PRECISIONS[precision]
    if settings.engine == "local":
        from iqc.train.engines.local import Local

        model.to(ranks.device, dtype)
        return Local(model, make_optimizer(model, rate, settings.optimizer), ranks, CLIP, products)
    from iqc.train.engines.deepspeed import DeepSpeed

    optimizer = make_optimizer(model, rate, settings.optimizer)
    return DeepSpeed(model, optimizer, ranks, CLIP, stage_of_zero(settings), settings.offload, products is not None)
