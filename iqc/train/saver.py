"""Writing a checkpoint while training goes on: a copy of the state first, the disk in a thread of its own.

The copy is what a step may wait for. On a CPU it is made at once. From a GPU it is made on a stream beside the one that
computes, while the next forward and backward only read what is copied; `copied` keeps the update behind it. Then the
thread writes each rank's pieces at their places, syncs them, has every file's SHA-256 from one of the ranks, and calls
`publish` on rank 0. One checkpoint at a time is under way. An error of any rank's thread is raised on all ranks by the
next call; the files that it leaves are taken away.
"""

import hashlib
import math
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from iqc.errors import IqcError
from iqc.model.config import ModelConfig
from iqc.train.checkpoints import Layout, Piece, as_bytes, check_cover, is_model
from iqc.train.ranks import Ranks

T = TypeVar("T")
Publish = Callable[[Path, Layout, dict[str, str]], None]  # of a finished directory, its layout, its SHA-256s by path
ALIGNED = 64  # bytes: a cache line
LONGEST = timedelta(hours=2)  # that a rank waits for the slowest disk of the others


class Saver:
    """One rank's writer. All ranks call `start` with the same step, and in the same order."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        # The thread has a group of its own: its collectives must not come between those of the training thread.
        self._group = dist.new_group(backend="gloo", timeout=LONGEST) if ranks.size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._stream: Any = torch.cuda.Stream(ranks.device) if ranks.device.type == "cuda" else None
        self._copied: Any = None  # an event on that stream

    def together(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank; what it returned on each. Raises on all what it raised on one."""
        result, error = None, None
        try:
            result = action()
        except Exception as caught:
            error = caught
        found: list[tuple[T, Exception | None]] = [(result, error)]  # type: ignore[list-item]
        if self._group is not None:
            found *= self.ranks.size
            try:
                dist.all_gather_object(found, (result, error), group=self._group)
            except RuntimeError:
                remedy = "the same command goes on from the last checkpoint"
                raise IqcError("another rank ended, and a checkpoint needs all", remedy=remedy) from None
        for _, failure in found:
            if failure is not None:
                raise failure
        return [value for value, _ in found]

    def start(
        self,
        pieces: Iterable[Piece],
        config: ModelConfig,
        home: Path,
        step: int,
        publish: Publish,
    ) -> None:
        """Copy the pieces and write them into a new hidden directory in `home`; then publish it, on rank 0."""
        self.wait()
        # The event goes to the thread by hand: `copied` may have taken it before the thread's first line.
        job = (self._copy(list(pieces)), self._copied, config, home, step, publish)
        self._thread = threading.Thread(target=self._run, args=job, name="checkpoint", daemon=True)
        self._thread.start()

    def copied(self) -> None:
        """Call before what is being saved changes. Raises the error of the writing thread, once."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None
        self._check()

    def _check(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until nothing is under way; raises as `copied`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._check()

    def reserve(self, size: int) -> None:
        """Make the host's copy at least that large, in bytes. For a GPU its pages are locked, which takes seconds."""
        if len(self._buffer) >= size:
            return
        runtime: Any = torch.cuda.cudart() if self._stream is not None else None
        if runtime is not None and len(self._buffer):
            runtime.cudaHostUnregister(self._buffer.data_ptr())
        self._buffer = torch.empty(size, dtype=torch.uint8)
        if runtime is not None:  # one that cannot be locked is copied to all the same, only slower
            runtime.cudaHostRegister(self._buffer.data_ptr(), size, 0)

    def _copy(self, pieces: list[Piece]) -> list[Piece]:
        """The same pieces in this rank's buffer."""
        sizes = [-(-piece.values.nbytes // ALIGNED) * ALIGNED for piece in pieces]
        self.reserve(sum(sizes))
        copies, end = [], 0
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # of None: does nothing
            for piece, size in zip(pieces, sizes):
                place = self._buffer[end : end + piece.values.nbytes].view(piece.dtype)
                end += size
                place.copy_(piece.values, non_blocking=True)
                if piece.values.is_cuda:
                    piece.values.record_stream(self._stream)
                copies.append(replace(piece, values=place))
        if self._stream is not None:
            self._copied = self._stream.record_event()
        return copies

    def _run(
        self, pieces: list[Piece], copied: Any, config: ModelConfig, home: Path, step: int, publish: Publish
    ) -> None:
        main = self.ranks.main
        building: Path | None = None
        try:
            if copied is not None:
                copied.synchronize()
            described = self.together(lambda: [(p.entry, p.start, len(p.values)) for p in finite(pieces, step)])
            layout = Layout(check_cover(one for rank in described for one in rank), config)
            prefix = f".step-{step:08d}."  # and a name that no dying process of an earlier run knows
            made = self.together(lambda: tempfile.mkdtemp(prefix=prefix, dir=home) if main else "")
            building = place = Path(made[0])
            self.together(lambda: write(pieces, layout, place, main))
            mine = sorted(layout.sizes)[self.ranks.rank :: self.ranks.size]
            digests = self.together(lambda: {path: sha256(place / path) for path in mine})
            every = {path: digest for found in digests for path, digest in found.items()}
            self.together(lambda: publish(place, layout, every) if main else None)
        except OSError as error:
            self._error = unwritable(error, Path(error.filename or home))
        except BaseException as error:
            self._error = error
        if self._error is not None and building is not None and main:
            shutil.rmtree(building, ignore_errors=True)


def finite(pieces: Sequence[Piece], step: int) -> Sequence[Piece]:
    """The pieces; IqcError when a weight is not finite: the last update's loss was computed before its step."""
    for piece in pieces:
        # The sum takes no memory, where a tensor of booleans would; in float64 nothing finite overflows.
        if is_model(piece.file) and not math.isfinite(piece.values.sum(dtype=torch.float64)):
            raise IqcError(
                f"{piece.name} is not finite after update {step}", remedy="lower --rate, or look at the data"
            )
    return pieces


def write(pieces: Sequence[Piece], layout: Layout, directory: Path, headers: bool) -> None:
    """Put pieces at their places in the files of `directory`, and on the disk. IqcError names the file that fails."""
    todo: dict[str, list[tuple[int, memoryview]]] = defaultdict(list)
    for piece in pieces:
        data, size = as_bytes(piece.values), piece.dtype.itemsize
        for part in layout.parts(piece.entry, piece.start, len(piece.values)):
            todo[part.path].append((part.offset, data[part.start * size : part.end * size]))
    for name, header in layout.headers.items() if headers else ():
        todo[name].append((0, memoryview(header)))
    for name, found in sorted(todo.items()):
        path = directory / name
        try:
            if path.parent != directory:
                path.parent.mkdir(exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                for offset, data in found:
                    done = 0
                    while done < len(data):
                        done += os.pwrite(file, data[done:], offset + done)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise unwritable(error, path) from None


def unwritable(error: OSError, path: Path) -> IqcError:
    return IqcError(
        f"cannot be written: {error.strerror}",
        where=str(path),
        remedy="make room on the disk and give the same command again: the run goes on from its last checkpoint",
    )


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
