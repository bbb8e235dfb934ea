"""A training run's directory: checkpoints that survive any death of the process, and metrics that match them.

    RUN/step-00000100/   a model directory (config.json, model.safetensors, tokenizer) with optimizer.safetensors,
                         lineage.json and run.json (what was asked for, how far it got, checksums)
    RUN/NAME             the last checkpoint of a stage that is done, by the name that the stage gives it
    RUN/metrics.jsonl    a line an update

A checkpoint appears under its name when it is whole and on the disk; `run.json` has the SHA-256 of every file, and a
checkpoint that does not match is passed over, said aloud, for the one before it. A run that is started again with the
same settings goes on from the newest good checkpoint; its metrics are cut back to that update. With several ranks each
writes its part of the tensors and rank 0 does the rest; the directory must be one that all of them see.

There is no state of a random number generator: training draws nothing but from (seed, update).
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import orjson

from iqc.cores import usable_cores
from iqc.errors import IqcError
from iqc.model.checkpoint import CONFIG, load_config, load_model, publish
from iqc.model.decoder import Decoder
from iqc.streams.lineage import differences, identity
from iqc.streams.writer import lock
from iqc.train.checkpoints import MODEL, Layout, Piece, Stored, is_model
from iqc.train.environment import drift, environment, repeatable
from iqc.train.ranks import Ranks
from iqc.train.saver import Saver, sha256, unwritable

STATE, LINEAGE, METRICS = "run.json", "lineage.json", "metrics.jsonl"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
T = TypeVar("T")
MIB, GIB = 1 << 20, 1 << 30
KEPT = 2  # checkpoints: the newest, and one to go back to


@dataclass(slots=True)
class Progress:
    """Where a run stands: `step` updates are done.

    `state` is what `save` was given; `exact` says whether what follows is what an uninterrupted run would have given.
    """

    step: int
    path: Path
    state: dict
    exact: bool

    @property
    def stored(self) -> Stored:
        """The tensors, slice by slice."""
        return Stored(self.path, load_config(self.path))

    @property
    def model(self) -> Decoder:
        """The whole model, on the CPU."""
        return load_model(self.path)


class Run:
    """The directory of one run. A context manager: it is locked against a second process while it is open."""

    def __init__(
        self,
        directory: str | Path,
        settings: dict,
        tokenizer: Path | None,
        ranks: Ranks | None = None,
        layout: dict | None = None,
    ):
        """`settings`: all that decides the result, as JSON; a run made with others is refused. `layout`: how the work
        is cut; with another the run goes on, but not bit for bit. All ranks make a Run."""
        self.directory = Path(directory)
        self.settings = orjson.loads(orjson.dumps(settings))
        self.tokenizer = tokenizer
        self.ranks = ranks or Ranks()
        self.environment = environment() | {"ranks": self.ranks.size} | (layout or {})
        self.drifts: list[dict] = []  # where the run went on in another environment
        self.saver = Saver(self.ranks)
        self.metrics: BinaryIO | None = None
        self._as_main(self._open)

    def _open(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            remedy = "name another -o"
            raise IqcError("is a file, not a run directory", where=str(self.directory), remedy=remedy) from None
        self.lock = open(self.directory / ".lock", "w")  # noqa: SIM115  (held while the run is open)
        if not lock(self.lock):
            self.lock.close()
            raise IqcError("another process is training here", where=str(self.directory))
        for stale in self.directory.glob(".step-*"):  # what a killed process was writing
            shutil.rmtree(stale, ignore_errors=True)

    def _as_main(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0, where alone it runs; its errors are everyone's."""
        return cast(T, self.saver.together(lambda: action() if self.ranks.main else None)[0])

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.saver.wait()  # what was saved before an error is kept
        except Exception as fault:
            if error is None:
                raise
            print(f"iqc: {fault}", file=sys.stderr)
        finally:
            if self.metrics is not None:
                self.metrics.close()
            if self.ranks.main:
                self.lock.close()

    def resume(self) -> Progress | None:
        """The newest good checkpoint, or None; the metrics are cut back to it. Again later, it is the way back."""
        self.saver.wait()
        return self._as_main(self._newest)

    def _newest(self) -> Progress | None:
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            fault = damage(path)
            if fault is not None:
                print(f"iqc: {path}: damaged ({fault}): going back to the checkpoint before it", file=sys.stderr)
                continue
            state = orjson.loads((path / STATE).read_bytes())
            recorded = {"schedule": self.settings.get("schedule")}  # of old runs, which had the table's of today
            changes = differences(recorded | state["settings"], self.settings)
            if changes:
                raise IqcError(
                    f"holds another run: {'; '.join(changes[:5])}",
                    where=str(self.directory),
                    remedy="name another -o, or remove the directory to start anew",
                )
            changes = drift(state["environment"], self.environment)
            self.drifts = state.get("drifts", [])
            if changes:
                said = "going on, but losses may differ by rounding"
                print(f"iqc: {path}: {said}: {'; '.join(changes)}", file=sys.stderr)
                self.drifts = [*self.drifts, {"step": state["step"], "changes": changes}]
            self._open_metrics(state["step"])
            return Progress(
                state["step"],
                path,
                state.get("state", {}),
                exact=state["environment"] == self.environment and repeatable(),
            )
        self._open_metrics(0)
        return None

    def _open_metrics(self, step: int) -> None:
        """Open the metrics for appending, cut in place: a kill at any moment leaves the lines of the checkpoint."""
        if self.metrics is not None:
            self.metrics.close()
        self.metrics = metrics = open(self.directory / METRICS, "a+b")  # noqa: SIM115
        metrics.seek(0)
        kept = metrics.read().splitlines(keepends=True)[:step]
        if len(kept) < step:
            print(f"iqc: {self.directory / METRICS}: {len(kept)} lines for {step} updates", file=sys.stderr)
        metrics.truncate(sum(map(len, kept)))

    def log(self, metrics: dict) -> None:
        """Add the line of an update; after `resume`. Rank 0 writes it."""
        if self.ranks.main:
            assert self.metrics is not None
            try:
                self.metrics.write(orjson.dumps(metrics) + b"\n")
                self.metrics.flush()
            except OSError as error:
                raise unwritable(error, self.directory / METRICS) from None

    def need(self, size: int, saves: int) -> None:
        """Before the first update: IqcError unless there is room for so many checkpoints of `size` bytes, of which
        KEPT stay and one more is written beside them."""
        self._as_main(lambda: self._room(size, min(saves, KEPT + 1)))
        self.saver.reserve(size // self.ranks.size if saves and self.ranks.device.type == "cuda" else 0)

    def _room(self, size: int, saves: int) -> None:
        held = sum(file.stat().st_size for file in self.directory.glob("step-*/**/*") if file.is_file())
        wanted, free = saves * size - held, shutil.disk_usage(self.directory).free
        if wanted > free:
            raise IqcError(
                f"{in_words(free)} of disk are free for {saves} checkpoints of {in_words(size)}, {in_words(held)} of "
                "them written",
                where=str(self.directory),
                remedy="make room, or name an -o on a larger disk",
            )

    def save(
        self,
        step: int,
        model: Decoder,
        pieces: Iterable[Piece],
        lineage: Callable[[str], dict],
        done: bool,
        state: dict | None = None,
    ) -> None:
        """Begin the checkpoint of `step` updates. It is published when it is whole, then those too old are dropped.

        All ranks call it, each with the pieces that it holds. `model` is asked for its config alone.
        `lineage` makes the lineage from the digest of the weights. `state`: JSON that `resume` gives back.

        Errors (a full disk, a weight that is not finite) are raised by a later call; then nothing is published.
        """
        kept = orjson.loads(orjson.dumps(state or {}))  # it may change while this is written

        def finish(building: Path, layout: Layout, digests: dict[str, str]) -> None:
            self._finish(building, step, layout, digests, lineage, done, kept)

        self.saver.start(pieces, model.config, self.directory, step, finish)

    def _finish(
        self,
        building: Path,
        step: int,
        layout: Layout,
        digests: dict[str, str],
        lineage: Callable[[str], dict],
        done: bool,
        kept: dict,
    ) -> None:
        """Put beside the tensors what makes them a checkpoint, and give it its name."""
        written = dict(layout.indexes)
        tokenizer = [self.tokenizer / name for name in TOKENIZER] if self.tokenizer else []
        for file in filter(is_model, layout.slots):
            place, slots = file.removesuffix(MODEL), layout.slots[file].values()
            dtype = str(next(iter(slots)).dtype).removeprefix("torch.")
            written[f"{place}{CONFIG}"] = json.dumps(layout.config.to_hf(dtype), indent=2).encode() + b"\n"
            written |= {f"{place}{path.name}": path.read_bytes() for path in tokenizer}
            weights = [digests[path] for path in sorted({slot.path for slot in slots})]
            made = lineage(joint_digest(weights))
            written[f"{place}{LINEAGE}"] = orjson.dumps(made, option=orjson.OPT_INDENT_2) + b"\n"
        for path, data in written.items():
            (building / path).write_bytes(data)
        state = {
            "step": step,
            "done": done,
            "settings": self.settings,
            "environment": self.environment,
            "sha256": dict(sorted((digests | {path: sha256(building / path) for path in written}).items())),
        }
        state |= {name: value for name, value in (("state", kept), ("drifts", self.drifts)) if value}
        state["digest"] = identity(state)
        (building / STATE).write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2) + b"\n")
        if self.metrics is not None:
            os.fsync(self.metrics.fileno())
        target = self.directory / f"step-{step:08d}"
        publish(building, target)
        ours = [path for path in sorted(self.directory.glob("step-*")) if path <= target]  # a damaged one may be ahead
        for old in ours[:-KEPT]:
            hidden = old.with_name(f".{old.name}")  # never half of a checkpoint under its name
            old.rename(hidden)
            shutil.rmtree(hidden)

    def copied(self) -> None:
        """Call before weights, optimiser or anything else that is saved changes. Raises what went wrong in writing."""
        self.saver.copied()

    def newest(self) -> int | None:
        """The number of updates of the newest checkpoint, None where there is none. Waits until it is published."""
        self.settle()
        names = self.ranks.once(lambda: sorted(path.name for path in self.directory.glob("step-*")))
        return int(names[-1].removeprefix("step-")) if names else None

    def settle(self) -> None:
        """Wait until the last checkpoint is published."""
        self.saver.wait()

    def name(self, name: str, step: int) -> None:
        """Give the checkpoint of `step` updates the name of what a stage ends in: RUN/NAME leads to it."""
        self.settle()
        self._as_main(lambda: self._link(name, f"step-{step:08d}"))

    def _link(self, name: str, target: str) -> None:
        link, place = self.directory / f".{name}", self.directory / name
        if place.is_symlink() or not place.exists():  # else the run was copied without links: it is the checkpoint
            link.unlink(missing_ok=True)
            link.symlink_to(target)  # relative: the run can be moved
            link.replace(place)


def in_words(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        state = orjson.loads((path / STATE).read_bytes())
        if identity({key: value for key, value in state.items() if key != "digest"}) != state["digest"]:
            return f"{STATE} was altered"
        with ThreadPoolExecutor(usable_cores()) as pool:
            found = pool.map(sha256, [path / name for name in state["sha256"]])
            wrong = [name for (name, digest), now in zip(state["sha256"].items(), found) if now != digest]
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
        whole = checkpoint_of(place)
        if (whole / STATE).is_file() and (fault := damage(whole)):
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


def checkpoint_of(model: Path) -> Path:
    """The checkpoint that a model directory is, or is a part of, such as an average of its weights."""
    return model.parent if (model.parent / STATE).is_file() else model


def stage_of(model: Path) -> str | None:
    """The name of the stage that made a checkpoint, or None for a model from elsewhere."""
    try:
        return orjson.loads((checkpoint_of(model) / STATE).read_bytes())["settings"].get("stage")
    except FileNotFoundError:
        return None


def weights_digest(checkpoint: Path) -> str:
    """The digest of a model's weights, in one file or in shards."""
    return joint_digest([sha256(path) for path in sorted(checkpoint.glob("model*.safetensors"))])


def joint_digest(digests: list[str]) -> str:
    return "sha256:" + (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())


def lineage_inputs(checkpoint: Path) -> dict | None:
    """The lineage of a checkpoint, if it has one."""
    path = checkpoint / LINEAGE
    return orjson.loads(path.read_bytes()) if path.is_file() else None


def read_metrics(directory: str | Path) -> list[dict]:
    path = Path(directory) / METRICS
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
