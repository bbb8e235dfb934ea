"""What the tests of all rooms share: the checkout, the real inputs beside it, the command line, sample streams."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("iqc", deadline=None)  # time tells of the machine's other work, not of a fault
hypothesis.settings.load_profile("iqc")

REPO = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start several processes come first, then those with most tests: a long file at the end would
    leave the other cores idle."""
    slow = {item.path for item in items if "torchrun" in getattr(item, "fixturenames", ())}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -sizes[item.path], item.path))


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real inputs beside the checkout."""
    path = REPO.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is absent")
    return path


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """That of a subprocess that imports the checkout; no setting of the caller's leaks into it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IQC_")}
    return kept | {"PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""}  # what a GPU does has tests of its own


@pytest.fixture(scope="session")
def iqc(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess]:
    """Run the command line: `iqc("head", "-n", "all", path, stdin=bytes)`; fails when it hangs or shows a traceback."""

    def run(*args: object, stdin: bytes = b"", env: dict[str, str] | None = None, **how) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "iqc", *map(str, args)]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | how
        done = subprocess.run(command, input=stdin, env=environment | (env or {}), **how)
        errors = done.stderr or b""
        assert b"Traceback" not in errors and b"internal error" not in errors, errors.decode()
        return done

    return run


@pytest.fixture(scope="session")
def torchrun(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess]:
    """Run a script, or a module `-m NAME`, as several ranks on CPUs; none of its processes outlives the call."""

    def run(ranks: int, *args: object, timeout: float = 120, env: dict[str, str] | None = None):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        threads = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        world = subprocess.Popen(
            [*launcher, *map(str, args)],
            env=environment | threads | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = world.communicate(timeout=timeout)
        finally:
            # The launcher starts each rank in a session of its own; told to end, it ends them.
            if world.poll() is None:
                world.terminate()
                world.wait(timeout=60)
        return subprocess.CompletedProcess(world.args, world.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def make_stream() -> Callable[..., Path]:
    """Write records to a stream file, `per_frame` of them a frame."""
    from iqc.streams import container
    from iqc.streams.lineage import Digest, Input, Stage, line_digest, lineage_of
    from iqc.streams.writer import dump

    def make(path: Path, records: Iterable[dict], per_frame: int = 1000) -> Path:
        lines = [dump(record) for record in records]
        digest, size = Digest(), 0
        with open(path, "wb") as file:
            writer = container.FrameWriter(file)
            for start in range(0, len(lines), per_frame):
                part = lines[start : start + per_frame]
                text = b"".join(line + b"\n" for line in part)
                writer.write(container.compress(text, len(part)))
                size += len(text)
            for line in lines:
                digest.add(line_digest(line))
            output = {"digest": digest.text(), "records": len(lines), "bytes": size}
            raw = [Input("sha256:" + "0" * 64, label="made up")]
            writer.finish(lineage_of(Stage("sample", "1"), raw, {"read": len(lines), "kept": len(lines)}, output))
        return path

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[dict]]:
    """Sequence records: row i has i % 9 + 2 tokens base + 100 * i + place, in two documents where it has more than
    three."""
    import numpy as np

    from iqc.tokens.sequence import encode_sequence

    def make(count: int, weight: float = 1.0, base: int = 0) -> list[dict]:
        out = []
        for i in range(count):
            size = i % 9 + 2
            lengths = np.array([size] if size < 4 else [2, size - 2], np.uint32)
            tokens = base + 100 * i + np.arange(size, dtype=np.uint32)
            ids = [f"{i}-{d}" for d in range(lengths.size)]
            loss = np.full(size, weight, "f4")
            out.append(encode_sequence(id=str(i), ids=ids, tokens=tokens, lengths=lengths, loss=loss))
        return out

    return make


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., dict]:
    """Write records to a stream file, a sequence a frame, as a stage does that gathers its records."""
    from iqc.streams.lineage import Stage, lineage_of
    from iqc.streams.writer import AtomicFile, StreamWriter

    def write(path: Path, records: list[dict], counts: dict | None = None, options: dict | None = None) -> dict:
        out = StreamWriter(AtomicFile(path))
        for record in records:
            out.add_record(record)
        stage = Stage("pack", "1", options or {})
        made = lineage_of(stage, [], {"read": 0, "kept": len(records)} | (counts or {}), out.output())
        out.finish(made)
        return made

    return write


class ThreadRing:
    """A ring (iqc.kernels.ring) of threads in this process, with a box for each pair of ranks."""

    def __init__(self, rank: int, size: int, boxes: dict):
        self.rank, self.size, self.boxes, self.sent = rank, size, boxes, 0

    def transfer(self, sends, receives):
        for tensor, to in sends:
            assert to != self.rank and tensor.is_contiguous()
            self.boxes[self.rank, to].put(tensor.clone())  # what is written to it later does not arrive
            self.sent += tensor.nbytes
        for buffer, _ in receives:
            assert buffer.is_contiguous()
            if buffer.is_floating_point():
                buffer.fill_(float("nan"))  # what is read too early

        def wait():
            for buffer, source in receives:
                came = self.boxes[source, self.rank].get(timeout=60)
                assert came.shape == buffer.shape and came.dtype == buffer.dtype
                buffer.copy_(came)

        return wait


@pytest.fixture(scope="session")
def on_ring() -> Callable[..., list]:
    """Run function(ring) on every rank of a ring of threads; their results by rank. Nothing may be left unread."""
    import queue
    import threading

    def run(size: int, function: Callable) -> list:
        boxes = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
        results: list = [None] * size
        errors: list[BaseException] = []

        def work(rank: int) -> None:
            try:
                results[rank] = function(ThreadRing(rank, size, boxes))
            except BaseException as error:  # told to the test below
                errors.append(error)

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        real = [error for error in errors if not isinstance(error, queue.Empty)] or errors
        if real:
            raise real[0]
        assert all(box.empty() for box in boxes.values())
        return results

    return run
