"""The files of a checkpoint: safetensors whose bytes follow from names, shapes and dtypes, whoever writes which part.

A tensor is handed over in pieces, flat slices that lie anywhere: on one rank or cut over many. Where each lies in which
file follows from the list of tensors alone, so every rank writes its pieces at their places into the same files, and
the bytes are those that one process would have written. Reading is the same backwards: any slice of any tensor, so that
what 2 ranks saved 4 can take.

    model.safetensors        weights under released names; more than SHARD bytes are cut into
                             model-00001-of-00003.safetensors and so on, with model.safetensors.index.json
    optimizer.safetensors    the optimiser's tensors, `PARAMETER/KEY`, cut alike
    DIRECTORY/model...       other weights, such as an average, as a model directory of their own
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson
import torch
from torch import Tensor

from iqc.errors import IqcError
from iqc.model.bailing import released_places
from iqc.model.config import ModelConfig, parameter_count
from iqc.model.decoder import Decoder

SHARD = 4 << 30  # bytes of tensors a file
MODEL, OPTIMIZER = "model", "optimizer"
# In the order of their tensors in a file: the widest first, so that all are aligned.
NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in NAMES.items()}
RANKING = list(NAMES)


class Entry(NamedTuple):
    """A tensor of a checkpoint: `file` is "model", "optimizer" or "DIRECTORY/model"."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(slots=True)
class Piece:
    """`values` are the elements from `start` of the flattened tensor `name`, on any device. Weights: decoder names."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    values: Tensor

    @property
    def entry(self) -> Entry:
        return Entry(self.file, self.name, tuple(self.shape), self.dtype)


class Slot(NamedTuple):
    """Where a stored tensor lies: `offset` in bytes from the start of the file `path`."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Part(NamedTuple):
    """A run of elements: those from `start` to `end` of what was asked for lie from byte `offset` of file `path` on."""

    path: str
    offset: int
    start: int
    end: int


def share(flat: Tensor, rank: int, ranks: int) -> tuple[int, Tensor]:
    """What one of `ranks` that all hold the same tensor writes of it: (start, values)."""
    start, end = (flat.numel() * n // ranks for n in (rank, rank + 1))
    return start, flat[start:end]


def pieces_of(model: Decoder, optimizer: torch.optim.Optimizer, rank: int = 0, ranks: int = 1) -> Iterator[Piece]:
    """Weights and optimiser state of a model that is whole here, and on each of `ranks`: this one's share of it."""
    for name, parameter in model.named_parameters():
        held = {(MODEL, name): parameter.detach()}
        state = optimizer.state.get(parameter, {})
        held |= {(OPTIMIZER, f"{name}/{key}"): value for key, value in sorted(state.items())}
        for (file, key), tensor in held.items():
            start, values = share(tensor.reshape(-1), rank, ranks)
            if len(values):
                yield Piece(file, key, tuple(tensor.shape), tensor.dtype, start, values)


def load_pieces(model: Decoder, optimizer: torch.optim.Optimizer, stored: "Stored") -> None:
    """Put back what `pieces_of` gave, whole, into a model whose parameters have their place."""
    kept: dict[str, list[str]] = defaultdict(list)
    for name in stored.names(OPTIMIZER):
        owner, _, key = name.rpartition("/")
        kept[owner].append(key)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored.tensor(MODEL, name))
            for key in kept[name]:
                value = stored.tensor(OPTIMIZER, f"{name}/{key}")
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)


def checkpoint_bytes(config: ModelConfig, dtype: torch.dtype, averaged: bool = False) -> int:
    """At most: weights, two moments (Muon keeps one of a matrix), and an average of the weights in float32."""
    return parameter_count(config) * (3 * dtype.itemsize + (4 if averaged else 0))


class Layout:
    """The files of a checkpoint with these tensors, by path: their sizes, headers and indexes (of shards)."""

    def __init__(self, entries: Iterable[Entry], config: ModelConfig, limit: int = SHARD):
        self.config = config
        self.sizes: dict[str, int] = {}
        self.headers: dict[str, bytes] = {}
        self.indexes: dict[str, bytes] = {}
        self.slots: dict[str, dict[str, Slot]] = {}  # by file and stored name
        tensors: dict[str, dict[str, tuple[int, torch.dtype, tuple[int, ...]]]] = defaultdict(dict)
        tensors[OPTIMIZER] = {}  # a file also before the first update
        for file, name, shape, dtype in entries:
            for stored, whole, _ in places(file, name, shape, config):
                tensors[file][stored] = (RANKING.index(dtype), dtype, whole)
        for file in sorted(tensors):
            found = sorted(tensors[file].items(), key=lambda item: (item[1][0], item[0]))
            self._place(file, [(name, dtype, shape) for name, (_, dtype, shape) in found], limit)

    def _place(self, file: str, tensors: list[tuple[str, torch.dtype, tuple[int, ...]]], limit: int) -> None:
        """Cut the tensors of a file into shards, each full before the next begins."""
        shards: list[list[tuple[str, torch.dtype, tuple[int, ...]]]] = [[]]
        filled = 0
        for name, dtype, shape in tensors:
            size = prod(shape) * dtype.itemsize
            if shards[-1] and filled + size > limit:
                shards.append([])
                filled = 0
            shards[-1].append((name, dtype, shape))
            filled += size
        slots = self.slots[file] = {}
        for number, shard in enumerate(shards, 1):
            path = (
                f"{file}.safetensors" if len(shards) == 1 else f"{file}-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            # Transformers refuses weights that do not say which library made them.
            header: dict[str, object] = {"__metadata__": {"format": "pt"}} if is_model(file) else {}
            end = 0
            for name, dtype, shape in shard:
                start, end = end, end + prod(shape) * dtype.itemsize
                header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
            text = orjson.dumps(header)
            text += b" " * (-len(text) % 8)
            self.headers[path] = len(text).to_bytes(8, "little") + text
            self.sizes[path] = len(self.headers[path]) + end
            slots |= read_header(path, self.headers[path])
        if len(shards) > 1:
            total = sum(prod(shape) * dtype.itemsize for _, dtype, shape in tensors)
            index = {
                "metadata": {"total_size": total},
                "weight_map": {name: Path(slots[name].path).name for name in sorted(slots)},
            }
            self.indexes[f"{file}.safetensors.index.json"] = json.dumps(index, indent=2).encode() + b"\n"

    def parts(self, entry: Entry, start: int, count: int) -> Iterator[Part]:
        return parts(entry, start, count, self.slots[entry.file], self.config)


def is_model(file: str) -> bool:
    return file.rpartition("/")[2] == MODEL


def places(file: str, name: str, shape: tuple[int, ...], config: ModelConfig) -> list[tuple[str, tuple[int, ...], int]]:
    """Where a tensor lies among the stored ones; see iqc.model.bailing.released_places."""
    return released_places(name, shape, config) if config.num_experts and is_model(file) else [(name, shape, 0)]


def parts(entry: Entry, start: int, count: int, slots: Mapping[str, Slot], config: ModelConfig) -> Iterator[Part]:
    """The runs of bytes that are elements `start` to `start + count` of a flattened tensor."""
    found = places(entry.file, entry.name, entry.shape, config)
    size = prod(entry.shape) // len(found)
    for number, (name, _, first) in enumerate(found):
        begin, end = max(start, number * size), min(start + count, (number + 1) * size)
        if begin < end:
            slot = slots[name]
            offset = slot.offset + (first + begin - number * size) * slot.dtype.itemsize
            yield Part(slot.path, offset, begin - start, end - start)


def read_header(path: str, data: bytes) -> dict[str, Slot]:
    """The tensors of a safetensors file that begins with these bytes, by name."""
    size = 8 + int.from_bytes(data[:8], "little")
    found = orjson.loads(data[8:size])
    found.pop("__metadata__", None)
    return {
        name: Slot(path, size + about["data_offsets"][0], tuple(about["shape"]), DTYPES[about["dtype"]])
        for name, about in found.items()
    }


def check_cover(entries: Iterable[tuple[Entry, int, int]]) -> list[Entry]:
    """The tensors of which all ranks together have (entry, start, count); ValueError unless each element is there once.

    That is a fault of the engine that cut them, not of the user.
    """
    spans: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    known: dict[tuple[str, str], Entry] = {}
    for entry, start, count in entries:
        key = entry[:2]
        if known.setdefault(key, entry) != entry:
            raise ValueError(f"{entry.name} is {entry[2:]} and {known[key][2:]} on different ranks")
        spans[key].append((start, start + count))
    for key, found in spans.items():
        edges = [(0, 0), *sorted(found), (prod(known[key].shape),) * 2]
        for (_, end), (start, _) in pairwise(edges):
            if end != start:
                raise ValueError(
                    f"{key[1]}: elements {min(start, end)} to {max(start, end)} are held by "
                    f"{'no' if end < start else 'more than one'} rank"
                )
    return [known[key] for key in sorted(known)]


def as_bytes(flat: Tensor) -> memoryview:
    """The bytes of a flat contiguous tensor on the CPU."""
    return memoryview(cast(Any, flat.view(torch.uint8).numpy()))


class Stored:
    """The tensors of a checkpoint on the disk, by the names that pieces have; any slice can be read."""

    def __init__(self, directory: str | os.PathLike[str], config: ModelConfig):
        self.directory = Path(directory)
        self.config = config
        self._slots: dict[str, dict[str, Slot]] = {}

    def slots(self, file: str) -> dict[str, Slot]:
        """By stored name. IqcError when there is no such file."""
        if file not in self._slots:
            index = self.directory / f"{file}.safetensors.index.json"
            if index.exists():
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            else:
                names = [f"{file}.safetensors".rpartition("/")[2]]
            found: dict[str, Slot] = {}
            for name in names:
                path = (self.directory / file).with_name(name)
                try:
                    with open(path, "rb") as source:
                        size = source.read(8)
                        found |= read_header(str(path), size + source.read(int.from_bytes(size, "little")))
                except (OSError, ValueError, KeyError) as error:
                    remedy = "the directory is incomplete: copy it again"
                    raise IqcError(f"no tensors: {error}", where=str(path), remedy=remedy) from None
            self._slots[file] = found
        return self._slots[file]

    def has(self, file: str) -> bool:
        return any((self.directory / f"{file}.safetensors{end}").exists() for end in ("", ".index.json"))

    @cached_property
    def _weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes by decoder names, which are not the stored ones where there are experts."""
        with torch.device("meta"):
            model = Decoder(self.config, device="meta")
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def shapes(self, file: str) -> dict[str, tuple[int, ...]]:
        """Of all tensors of a file."""
        if self.config.num_experts and is_model(file):
            return self._weights
        return {name: slot.shape for name, slot in self.slots(file).items()}

    def names(self, file: str) -> list[str]:
        return list(self.shapes(file))

    def read(self, file: str, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Elements of a flattened tensor, by default all: flat, on the CPU, in the stored dtype."""
        shape = self.shapes(file)[name]
        count = prod(shape) - start if count is None else count
        slots = self.slots(file)
        dtype = slots[places(file, name, shape, self.config)[0][0]].dtype
        values = torch.empty(count, dtype=dtype)
        data = as_bytes(values)
        for part in parts(Entry(file, name, shape, dtype), start, count, slots, self.config):
            with open(part.path, "rb", buffering=0) as source:
                source.seek(part.offset)
                begin, end = part.start * dtype.itemsize, part.end * dtype.itemsize
                while begin < end:
                    got = source.readinto(data[begin:end])
                    if not got:
                        raise IqcError(f"{name} is cut short", where=part.path, remedy="copy the checkpoint again")
                    begin += got
        return values

    def tensor(self, file: str, name: str) -> Tensor:
        """A whole tensor in its shape."""
        return self.read(file, name).view(self.shapes(file)[name])
