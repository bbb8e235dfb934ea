"""Single-bit faults for the tests and the benchmark of the audit: where they can happen, and how they are made.

A fault happens once, on one rank. Where a computation is redone it is not there again, unless it is in what is stored.
"""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from iqc.train.audit.audit import held


def flip(tensor: Tensor, draw: random.Random) -> str:
    """Flip one bit of a stored tensor; says which."""
    bits = 8 * tensor.element_size()
    element, bit = draw.randrange(tensor.numel()), draw.randrange(bits)
    word = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
    mask = (1 << bit) - (1 << bits if bit == bits - 1 else 0)
    with torch.no_grad():
        flat = tensor.detach().view(-1)
        assert flat.data_ptr() == tensor.data_ptr()
        flat[element] = (flat[element].view(word) ^ mask).view(tensor.dtype)
    return f"bit {bit} of element {element}"


def weight(engine: Any, draw: random.Random) -> str:
    """Of a parameter as this rank stores it (under ZeRO-3 its shard)."""
    return _of({name: tensor for name, tensor in held(engine).items() if is_weight(name)}, draw)


def moment(engine: Any, draw: random.Random) -> str:
    """Of the optimiser's own state: moments, and under ZeRO the master weights."""
    return _of({name: tensor for name, tensor in held(engine).items() if not is_weight(name)}, draw)


def is_weight(name: str) -> bool:
    """Of the names of `held`: a parameter, or a shard of one."""
    return " of " not in name.removeprefix("shard of ") and not name.startswith("partition ")


def reduced_gradient(engine: Any, draw: random.Random) -> str:
    return _of(dict(engine.gradients()), draw)


def _of(tensors: dict[str, Tensor], draw: random.Random) -> str:
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    name = draw.choices(list(sizes), list(sizes.values()))[0]  # each stored bit is as likely
    return f"{name}: {flip(tensors[name], draw)}"


@contextmanager
def own_gradient(engine: Any, draw: random.Random) -> Iterator[list[str]]:
    """Of one gradient as backward makes it, before anything sees it."""
    names, parameters = zip(*((name, p) for name, p in engine.model.named_parameters() if p.requires_grad))
    number = draw.choices(range(len(names)), [p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in parameters])
    told: list[str] = []

    def spoil(gradient: Tensor) -> Tensor | None:
        if told:
            return None
        spoilt = gradient.clone()
        told.append(f"{names[number[0]]}: {flip(spoilt, draw)}")
        return spoilt

    with first_hook(parameters[number[0]], spoil):
        yield told


@contextmanager
def first_hook(parameter: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """A hook that comes before those that the parameter has."""
    handle = parameter.register_hook(hook)
    hooks = parameter._backward_hooks
    assert hooks is not None
    others = [(key, hook) for key, hook in hooks.items() if key != handle.id]
    for key, other in others:  # to the end: PyTorch goes by the order of insertion
        del hooks[key]
        hooks[key] = other
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def activation(engine: Any, draw: random.Random) -> Iterator[list[str]]:
    """Of the output of one module of the forward pass."""
    modules = [(name, m) for name, m in engine.model.named_modules() if not list(m.children()) and name]
    told: list[str] = []
    calls: list[tuple[str, Any]] = []

    def spoil(module: Any, _: Any, output: Any) -> Any:
        if told or not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        spoilt = output + 0
        told.append(f"{calls[0][0]}: {flip(spoilt, draw)}")
        return spoilt

    calls.append(draw.choice(modules))
    handle = calls[0][1].register_forward_hook(spoil)
    try:
        yield told
    finally:
        handle.remove()


SUMS = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")
GATHERS = ("all_gather", "all_gather_into_tensor")


class Messages:
    """Of what a collective of torch.distributed gives this rank: the call number `at` is spoilt, -1: none.

    Numbers alone (the sum of a norm) and integers (the audit's own) are no messages.
    """

    def __init__(self, collectives: Sequence[str], draw: random.Random, at: int):
        self.draw, self.at, self.seen, self.told = draw, at, 0, []  # type: ignore[var-annotated]
        self.places = [(dist, name) for name in collectives]
        if (backend := deepspeed_backend()) is not None:  # keeps functions of its own
            kept = {"all_gather_into_tensor": "all_gather_function", "reduce_scatter_tensor": "reduce_scatter_function"}
            self.places += [(backend, kept[name]) for name in collectives if name in kept]

    def __enter__(self) -> "Messages":
        self.before = [getattr(place, name) for place, name in self.places]
        for (place, name), function in zip(self.places, self.before):
            setattr(place, name, partial(self._call, function))
        return self

    def __exit__(self, *_: object) -> None:
        for (place, name), function in zip(self.places, self.before):
            setattr(place, name, function)

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        work = function(*arguments, **options)
        named = (options[key] for key in ("output_tensor", "tensor_list", "output", "tensor") if key in options)
        output = next(named, None) if options else None
        output = arguments[0] if output is None else output
        parts = [part for part in (output if isinstance(output, list) else [output]) if part.is_floating_point()]
        if sum(part.numel() for part in parts) < 2:
            return work
        if self.seen == self.at:
            if work is not None:
                work.wait()
            part = self.draw.choice(parts)
            self.told.append(f"message {self.seen}: {flip(part, self.draw)}")
        self.seen += 1
        return work


def deepspeed_backend() -> Any:
    """The object that deepspeed.comm calls, once DeepSpeed has been started."""
    comm = sys.modules.get("deepspeed.comm.comm")
    backend = getattr(comm, "cdb", None)
    return getattr(backend, "_backend", backend)
