"""A model directory in the released layout: config.json, model.safetensors (or its shards), tokenizer files beside.

Parameters have the released names already, so nothing is renamed either way; of models with experts iqc.model.bailing
knows the names. A directory appears under its name when it
is complete and on the disk; one that was there is replaced. Optimiser state is not kept here.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from iqc.errors import IqcError
from iqc.model.bailing import from_released, to_released
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def save_model(
    directory: str | os.PathLike[str], model: Decoder, *, files: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Write `model` as `directory`, with copies of `files` (tokenizer.json and the like) beside the weights."""
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for file in files:
            shutil.copyfile(file, building / Path(file).name)
        write_model(building, model)
        publish(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_model(directory: Path, model: Decoder) -> None:
    """Put config and weights into a directory that is there."""
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    (directory / CONFIG).write_text(json.dumps(model.config.to_hf(dtype), indent=2) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in released_names(model).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})  # Transformers refuses a file without it


def released_names(model: Decoder) -> dict[str, Tensor]:
    """The weights by their names in a checkpoint."""
    return to_released(model.state_dict()) if model.config.num_experts else model.state_dict()


def publish(building: Path, target: Path) -> None:
    """Give a finished directory its name, after its bytes are on the disk. Both must lie in the same directory."""
    building.chmod(0o755)
    for path in (*building.rglob("*"), building):
        _sync(path)
    if target.exists():
        # A directory cannot be renamed over one that has files. Killed between the two renames, the old one is whole,
        # under .NAME.old.*; never is a half-written one under the name.
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / target.name)
        building.rename(target)
        shutil.rmtree(old)
    else:
        building.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_config(directory: str | os.PathLike[str]) -> ModelConfig:
    path = Path(directory) / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IqcError("no config.json", where=str(directory), remedy="give a model directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IqcError(f"not JSON: {error}", where=str(path), remedy="restore the file") from None
    if not isinstance(record, dict):
        raise IqcError("not an object", where=str(path), remedy="restore the file")
    return ModelConfig.from_hf(record)


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Decoder:
    """The decoder of a model directory, in training mode, in the file's dtype unless `dtype` is given.

    Raises IqcError that names every missing, unexpected and mis-shaped tensor.
    """
    model = Decoder(load_config(directory), device="meta")
    tensors = dict(_tensors(Path(directory)))
    expected = released_names(model)
    wrong = [f"missing {name}" for name in expected if name not in tensors]
    wrong += [f"unexpected {name}" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, config.json says {list(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise IqcError(
            f"weights do not fit config.json: {'; '.join(wrong)}",
            where=str(directory),
            remedy="load the config.json that was saved with these weights",
        )
    if model.config.num_experts:
        tensors = from_released(tensors, model.config)
    model.load_state_dict({k: t.to(device=device, dtype=dtype or t.dtype) for k, t in tensors.items()}, assign=True)
    return model.requires_grad_(True)


def _tensors(directory: Path) -> Iterable[tuple[str, Tensor]]:
    index = directory / INDEX
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = [WEIGHTS]
    for name in names:
        if not (directory / name).exists():
            raise IqcError(f"no {name}", where=str(directory), remedy="the directory is incomplete: copy it again")
        try:
            with safe_open(directory / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    yield key, file.get_tensor(key)
        except SafetensorError as error:
            raise IqcError(f"damaged: {error}", where=str(directory / name), remedy="copy or make it again") from None
