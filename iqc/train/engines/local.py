"""Plain PyTorch: the whole model, its gradients and its optimiser in each process; several add up their gradients."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from iqc.model.decoder import Decoder
from iqc.train.checkpoints import Piece, Stored, load_pieces, pieces_of
from iqc.train.ranks import Ranks

BUCKET = 1 << 25  # elements that are added up in one message

T = TypeVar("T")


class Local:
    replicated = frozenset({"parameters", "gradients"})

    def __init__(
        self, model: Decoder, optimizer: torch.optim.Optimizer, ranks: Ranks, clip: float, products: torch.dtype | None
    ):
        """`products`: the precision of matrix products, where it is not that of the weights (autocast)."""
        self.model, self.optimizer, self.ranks, self.clip, self.products = model, optimizer, ranks, clip, products

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        with torch.autocast(self.ranks.device.type, dtype=self.products, enabled=self.products is not None):
            return function(self.model, *args)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def reduce(self) -> float:
        if self.ranks.size > 1:
            add_up([filled_gradient(parameter) for parameter in self.model.parameters()])
        found = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(found)
        return self.norm.item()  # a GPU is waited for here, and nowhere before

    def apply(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip, self.norm)
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad

    def pieces(self) -> Iterator[Piece]:
        return pieces_of(self.model, self.optimizer, self.ranks.rank, self.ranks.size)

    def load(self, stored: Stored) -> None:
        load_pieces(self.model, self.optimizer, stored)


def filled_gradient(parameter: Tensor) -> Tensor:
    """All ranks add up the same tensors, those too that this one's tokens did not reach."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def add_up(tensors: list[Tensor]) -> None:
    """Replace tensors of one dtype, in place, by their sums over all ranks: many a message."""
    bucket: list[Tensor] = []
    for number, tensor in enumerate(tensors, 1):
        bucket.append(tensor)
        if number == len(tensors) or sum(map(Tensor.numel, bucket)) >= BUCKET:
            flat = (
                torch.cat([part.flatten() for part in bucket]) if len(bucket) > 1 else bucket[0].contiguous().view(-1)
            )
            dist.all_reduce(flat)
            for part, summed in zip(bucket, flat.split([part.numel() for part in bucket])):
                part.copy_(summed.view_as(part))
            bucket = []
