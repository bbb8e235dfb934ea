"""Fingerprints of one rank's own gradients as backward makes them, before any engine reduces or partitions them.

A hook on each parameter sees the gradient of a micro-batch whatever the engine then does with it, so nothing is kept
but one integer a parameter, and every engine and ZeRO stage is recorded in the same way.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iqc.kernels.fingerprint import fingerprint

ORDER = 0x5851F42D4C957F2D  # odd: micro-batches that change places change the number


class Recorder:
    """Hooks on all trained parameters of a model, which stay; they do nothing outside of `record`."""

    def __init__(self, model: nn.Module):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [f"gradient of {name}" for name, _ in trained] + ["loss"]
        self.parameters = [p for _, p in trained]
        self.found: list[Tensor | None] | None = None
        for number, (_, parameter) in enumerate(trained):
            parameter.register_hook(partial(self._see, number))
        self.device = trained[0][1].device

    def record(self, run: Callable[[], Any]) -> tuple[Any, Tensor]:
        """What `run` returns (its loss: tensors, in tuples or alone), and int64 [parameters + 1], the loss last."""
        found: list[Tensor | None] = [None] * (len(self.names) - 1)
        self.found = found
        try:
            made = run()
        finally:
            self.found = None
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:  # where the engine adds micro-batches up in place: what it holds now
                self._add(found, number, parameter.grad)
        loss = torch.zeros((), dtype=torch.int64, device=self.device)
        for tensor in leaves(made):
            loss = loss * ORDER + fingerprint(tensor).to(self.device)
        nothing = torch.zeros_like(loss)
        return made, torch.stack([nothing if value is None else value for value in found] + [loss])

    def _see(self, number: int, gradient: Tensor) -> None:
        if self.found is not None:
            self._add(self.found, number, gradient)

    def _add(self, found: list[Tensor | None], number: int, gradient: Tensor) -> None:
        before, own = found[number], fingerprint(gradient)
        found[number] = own if before is None else before * ORDER + own


def leaves(made: Any) -> Iterable[Tensor]:
    """The tensors of a value that is a tensor, or a tuple or a dict of such."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, dict | tuple | list):
        for part in made.values() if isinstance(made, dict) else made:
            yield from leaves(part)
