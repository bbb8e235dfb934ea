"""What the training loop asks of an engine: the model, its gradients and the optimiser of one process among several.

Gradients are sums over all ranks of what each adds with `backward`; the loss is divided by the update's count of
tokens before, so nothing here averages. Ranks that share rows are ranks like others: each adds its own tokens' part.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from iqc.model.decoder import Decoder
from iqc.train.ranks import Ranks


class Engine(Protocol):
    """Of update k: `backward` for each micro-batch, equally many on every rank; `reduce`; `apply` or `discard`."""

    model: Decoder  # losses are computed with it
    ranks: Ranks
    replicated: frozenset[str]  # of "parameters" and "gradients", which every rank holds whole

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

    def pieces(self) -> Iterator[Any]:
        """This rank's share of weights and of the optimiser's state (iqc.train.checkpoints.Piece)."""

    def load(self, stored: Any) -> None:
        """Take back what `pieces` gave, of whatever engine and number of ranks (iqc.train.checkpoints.Stored)."""
