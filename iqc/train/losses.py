"""What an update minimises: a function of the model and a batch to a sum, and what that sum is divided by.

The divisor is counted from the arrays of a batch alone, before a forward, and is that of the whole update:
micro-batches and ranks add up their sums. So they change memory and speed, not the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from iqc.errors import UsageError
from iqc.model.decoder import Decoder
from iqc.tokens.loader import Batch
from iqc.train.dpo import Dpo
from iqc.train.stages import TrainingStage
from iqc.train.step import to_device


class Loss(Protocol):
    def count(self, batch: Batch) -> float:
        """What the sum over this batch is to be divided by, together with those of other batches of the update."""
        ...

    def __call__(self, model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum that is minimised, and detached sums for the metrics, `loss` among them; a batch of padding alone
        gives zeros, with a graph."""
        ...


@dataclass(slots=True)
class NextToken:
    """Negative log-likelihood of every token by its weight in the row: of text, of the middles of FIM, of the
    assistant's messages. `z_loss` times the squared log of the softmax's denominator is added in training."""

    z_loss: float = 0.0

    def count(self, batch: Batch) -> float:
        return float(np.sum(batch.weights, dtype=np.float64))

    def __call__(self, model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, weight = model.loss(*to_device(batch, model.lm_head.weight.device), z_loss=self.z_loss)
        assert model.row_losses is not None  # `loss` has just made them
        sums = {"loss": model.row_losses.sum(dtype=torch.float64)}
        if model.training and model.config.num_experts:
            sums["balance"] = model.balance * weight
        if model.training and self.z_loss:
            rest = model.config.router_aux_loss_coef * sums["balance"] if "balance" in sums else 0.0
            sums["z_loss"] = total.detach().double() - sums["loss"] - rest
        return total, sums


def make_loss(stage: TrainingStage, starting: Callable[[], Decoder], context_ranks: int = 1) -> Loss:
    """The loss of a stage. `starting` gives the weights that it starts from, for the losses that look back at them."""
    if stage.loss == "next-token":
        return NextToken(stage.z_loss)
    if context_ranks > 1:
        raise UsageError(
            f"stage {stage.name} on {context_ranks} context ranks: its loss is of whole answers",
            remedy="--context-ranks 1",
        )
    return Dpo(starting(), stage.beta, stage.sft)
