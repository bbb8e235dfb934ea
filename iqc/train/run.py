"""A training run's directory: checkpoints that survive any death of the process, and metrics that match them.

    RUN/step-00000100/   a model directory (config.json, model.safetensors, tokenizer) with optimizer.safetensors,
                         lineage.json and run.json (what was asked for, how far it got, checksums)
    RUN/metrics.jsonl    a line an update

A checkpoint appears under its name when it is whole and on the disk; `run.json` has the SHA-256 of every file, and a
checkpoint that does not match is passed over, said aloud, for the one before it. A run that is started again with the
same settings goes on from the newest good checkpoint; its metrics are cut back to that update.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson
import torch
from safetensors.torch import load_file, save_file

from iqc import __version__
from iqc.errors import IqcError
from iqc.model.checkpoint import WEIGHTS, load_model, publish, save_model
from iqc.model.decoder import Decoder
from iqc.streams.lineage import differences, identity
from iqc.streams.writer import lock

OPTIMIZER, STATE, LINEAGE, METRICS = "optimizer.safetensors", "run.json", "lineage.json", "metrics.jsonl"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
KEPT = 2  # checkpoints: the newest, and one to go back to


def environment() -> dict:
    """What a bitwise continuation needs to be the same."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    switches = {name: os.environ[name] for name in ("IQC_ATTENTION", "IQC_COMPILE") if name in os.environ}
    found = {"iqc": __version__, "torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    return found | switches


@dataclass(slots=True)
class Progress:
    """Where a run stands: `step` updates are done."""

    step: int
    model: Decoder
    optimizer_state: dict[str, torch.Tensor]
    path: Path


class Run:
    """The directory of one run. A context manager: it is locked against a second process while it is open."""

    def __init__(self, directory: str | Path, settings: dict, tokenizer: Path | None):
        """`settings`: all that decides the result, as JSON; a run made with others is refused."""
        self.directory = Path(directory)
        self.settings = orjson.loads(orjson.dumps(settings))
        self.tokenizer = tokenizer
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise IqcError("is a file, not a run directory", where=str(directory), remedy="name another -o") from None
        self.lock = open(self.directory / ".lock", "w")  # noqa: SIM115  (held while the run is open)
        if not lock(self.lock):
            self.lock.close()
            raise IqcError("another process is training here", where=str(directory))
        for stale in self.directory.glob(".step-*"):  # what a killed process was writing
            shutil.rmtree(stale, ignore_errors=True)
        self.metrics: BinaryIO | None = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.metrics is not None:
            self.metrics.close()
        self.lock.close()

    def resume(self) -> Progress | None:
        """The newest good checkpoint, or None; the metrics are cut back to it."""
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            fault = damage(path)
            if fault is not None:
                print(f"iqc: {path}: damaged ({fault}): going back to the checkpoint before it", file=sys.stderr)
                continue
            state = orjson.loads((path / STATE).read_bytes())
            changes = differences(state["settings"], self.settings)
            if changes:
                raise IqcError(
                    f"holds another run: {'; '.join(changes[:5])}",
                    where=str(self.directory),
                    remedy="name another -o, or remove the directory to start anew",
                )
            drift = differences(state["environment"], environment())
            if drift:
                print(f"iqc: {path}: going on, but not bit for bit ({'; '.join(drift)})", file=sys.stderr)
            self._open_metrics(state["step"])
            return Progress(state["step"], load_model(path), load_file(path / OPTIMIZER), path)
        self._open_metrics(0)
        return None

    def _open_metrics(self, step: int) -> None:
        """Open the metrics for appending, cut in place: a kill at any moment leaves the lines of the checkpoint."""
        self.metrics = metrics = open(self.directory / METRICS, "a+b")  # noqa: SIM115
        metrics.seek(0)
        kept = metrics.read().splitlines(keepends=True)[:step]
        if len(kept) < step:
            print(f"iqc: {self.directory / METRICS}: {len(kept)} lines for {step} updates", file=sys.stderr)
        metrics.truncate(sum(map(len, kept)))

    def log(self, metrics: dict) -> None:
        """Add the line of an update; after `resume`."""
        assert self.metrics is not None
        self.metrics.write(orjson.dumps(metrics) + b"\n")
        self.metrics.flush()

    def save(
        self,
        step: int,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        lineage: Callable[[str], dict],
        done: bool,
    ) -> Path:
        """Publish the checkpoint of `step` updates, then drop those that are too old to be wanted.

        IqcError, and nothing is published, when a weight is not finite: the last update's loss was before its step.

        `lineage` makes the lineage from the digest of the weights.
        """
        for name, tensor in model.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                raise IqcError(f"{name} is not finite after update {step}", remedy="lower --rate, or look at the data")
        target = self.directory / f"step-{step:08d}"
        building = Path(tempfile.mkdtemp(prefix=".step-", dir=self.directory))
        files = [self.tokenizer / name for name in TOKENIZER] if self.tokenizer else []
        save_model(building / "model", model, files=files)
        for path in sorted((building / "model").iterdir()):
            path.rename(building / path.name)
        (building / "model").rmdir()
        save_file(named_state(model, optimizer), building / OPTIMIZER)
        made = lineage("sha256:" + sha256(building / WEIGHTS))
        (building / LINEAGE).write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2) + b"\n")
        state = {
            "step": step,
            "done": done,
            "settings": self.settings,
            "environment": environment(),
            "sha256": {path.name: sha256(path) for path in sorted(building.iterdir())},
        }
        state["digest"] = identity(state)
        (building / STATE).write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2) + b"\n")
        if self.metrics is not None:
            os.fsync(self.metrics.fileno())
        publish(building, target)
        ours = [path for path in sorted(self.directory.glob("step-*")) if path <= target]  # a damaged one may be ahead
        for old in ours[:-KEPT]:
            hidden = old.with_name(f".{old.name}")  # never half of a checkpoint under its name
            old.rename(hidden)
            shutil.rmtree(hidden)
        return target


def named_state(model: Decoder, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors under `PARAMETER/KEY`."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
    }


def load_named_state(model: Decoder, optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]) -> None:
    """Put the tensors of `named_state` back."""
    for name, parameter in model.named_parameters():
        found = {key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name}
        if found:
            moved = {key: value if key == "step" else value.to(parameter.device) for key, value in found.items()}
            optimizer.state[parameter] = moved


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        state = orjson.loads((path / STATE).read_bytes())
        if identity({key: value for key, value in state.items() if key != "digest"}) != state["digest"]:
            return f"{STATE} was altered"
        wrong = [name for name, digest in state["sha256"].items() if sha256(path / name) != digest]
        return f"{wrong[0]} does not match its checksum" if wrong else None
    except PermissionError as error:
        raise IqcError("may not be read", where=str(error.filename), remedy="make the run readable") from None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE}: {error}"


def find_checkpoint(path: str | Path) -> Path:
    """A model directory as it is; of a run's directory the newest good checkpoint. IqcError when there is none.

    A damaged checkpoint is said aloud.
    """
    place = Path(path)
    if (place / "config.json").is_file():
        if (place / STATE).is_file() and (fault := damage(place)):
            raise IqcError(
                f"a damaged checkpoint: {fault}", where=str(path), remedy="give its run: the one before is taken"
            )
        return place
    for candidate in sorted(place.glob("step-*"), reverse=True):
        fault = damage(candidate)
        if fault is None:
            return candidate
        print(f"iqc: {candidate}: damaged ({fault}): taking the checkpoint before it", file=sys.stderr)
    raise IqcError(
        "no checkpoint", where=str(path), remedy="give a model directory, or the directory that iqc train wrote"
    )


def stage_of(checkpoint: Path) -> str | None:
    """The name of the stage that made a checkpoint, or None for a model from elsewhere."""
    try:
        return orjson.loads((checkpoint / STATE).read_bytes())["settings"].get("stage")
    except FileNotFoundError:
        return None


def weights_digest(checkpoint: Path) -> str:
    """The digest of a model's weights, in one file or in shards."""
    files = sorted(checkpoint.glob("model*.safetensors"))
    digests = [sha256(path) for path in files]
    return "sha256:" + (digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())


def lineage_inputs(checkpoint: Path) -> dict | None:
    """The lineage of a checkpoint, if it has one."""
    path = checkpoint / LINEAGE
    return orjson.loads(path.read_bytes()) if path.is_file() else None


def read_metrics(directory: str | Path) -> list[dict]:
    path = Path(directory) / METRICS
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
