"""Running untrusted Python: a pool of isolated workers, and what a run came back with.

`Sandbox.run` sends code and inputs in and gets plain data out; comparing it with what was expected is done on this side
of the wall (`verdict.py`). The wall clock is kept here. Without isolation nothing runs, unless the caller says
`unsafe=True`.

What bounds the memory of a run: RLIMIT_AS a process, times the number of processes, plus its /tmp; there is no cgroup.
"""

import json
import os
import queue
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from iqc.cores import usable_cores
from iqc.errors import IqcError
from iqc.sandbox import seccomp
from iqc.sandbox.values import decode, encode
from iqc.sandbox.verdict import Verdict, run_tests

_ROOT = Path(__file__).parents[2]
_START = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from iqc.sandbox.zygote import main; sys.path.pop(0); main()"
_GRACE = 5.0  # seconds that a worker has to answer after "stop", before it is killed with everything in it
_STDERR_TAIL = 4096  # bytes
_REMEDY = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, "
    "user.max_user_namespaces>0), or run as root with CAP_SYS_ADMIN, on Linux >= 5.12; "
    "--unsafe-exec runs the code without a wall"
)

Call = tuple[str, Sequence[Any], dict[str, Any]]  # function name, args, kwargs
T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, frozen=True)
class Limits:
    """What one run may use. Sizes in bytes; `seconds` is wall clock for all calls together, and CPU up to one more."""

    seconds: float = 5.0
    memory: int = 512 << 20  # address space of a process
    processes: int = 8  # with threads
    file_size: int = 16 << 20
    tmp_size: int = 16 << 20
    output: int = 256 << 10  # all results together


@dataclass(slots=True)
class Outcome:
    """One call: its value, or an error (`Type: message`)."""

    value: Any = None
    error: str | None = None


@dataclass(slots=True)
class RunResult:
    """How a run ended, with one outcome a call that returned.

    `status`: ok (every call has an outcome, errors included), error (the code did not load, or the process ended before
    the last call), timeout (wall or CPU), memory (MemoryError), output (more results than `Limits.output`).
    """

    status: str
    results: list[Outcome]
    stderr: str
    seconds: float


@dataclass(slots=True)
class Layer:
    """One thing that the wall is made of, and whether it holds here."""

    name: str
    holds: bool
    detail: str = ""


@dataclass(slots=True)
class _Raw:
    """What came out of one run, before anything is made of it."""

    received: bytes  # JSON lines of the harness
    stderr: str
    stopped: str | None  # why this side ended the run: timeout, output
    ended: str | None  # how the run's first process ended, when not by exit(0): timeout (CPU), or a description
    seconds: float


class _Worker:
    """The parent's end of one zygote."""

    def __init__(self, isolated: bool):
        if sys.platform != "linux":
            raise IqcError("untrusted code is run on Linux only", remedy="use a Linux machine, or a virtual one")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = seccomp.program() if isolated else None
        # a clean environment; the hash seed is fixed so that the order of sets, thus a verdict, is the same every time
        keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self.process = subprocess.Popen(
            [getattr(sys, "_base_executable", None) or sys.executable, "-P", "-s", "-S", "-B", "-c", _START],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": "/tmp", **keep},
            cwd="/",
            umask=0o022,
            start_new_session=True,
        )
        theirs.close()
        config = {"isolated": isolated, "seccomp": program.hex() if program else None}
        try:
            self.control.send(json.dumps(config).encode())
            self.control.settimeout(60)
            answer = self.control.recv(65536)
        except OSError:
            answer = b""
        hello = json.loads(answer) if answer else {"failed": "start", "why": "the worker ended"}
        if "failed" in hello:
            why = f"{hello['failed']}: {hello['why']}"
            self.process.kill()
            assert self.process.stderr
            noise = self.process.stderr.read().decode(errors="replace").strip()
            self.close()
            if noise:
                why += f" ({noise.splitlines()[-1]})"
            raise IqcError(f"no isolation for untrusted code here: {why}", remedy=_REMEDY)

    def close(self) -> None:
        """End the worker, and with it every process of its namespace."""
        self.control.close()
        self.process.kill()
        self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()

    def exchange(self, request: dict[str, Any], limits: Limits) -> _Raw | None:
        """One run. None when the worker did not answer: it must be closed."""
        job = os.memfd_create("request")
        results, results_in = os.pipe()
        output, output_in = os.pipe()
        try:
            try:
                with os.fdopen(job, "wb", closefd=False) as file:
                    file.write(json.dumps(request).encode())
                os.lseek(job, 0, os.SEEK_SET)
                start = time.monotonic()
                socket.send_fds(self.control, [json.dumps(asdict(limits)).encode()], [job, results_in, output_in])
            except OSError:
                return None
            finally:
                for fd in (job, results_in, output_in):
                    os.close(fd)
            return self._watch(results, output, start, limits)
        finally:
            os.close(results)
            os.close(output)

    def _watch(self, results: int, output: int, start: float, limits: Limits) -> _Raw | None:
        """Read both pipes until the worker says that the run is over; say "stop" at the deadline or at a flood."""
        received, tail = bytearray(), b""
        reply: dict[str, Any] | None = None
        stopped: str | None = None
        deadline = start + limits.seconds
        control = self.control.fileno()
        poll = select.poll()
        for fd in (results, output, control):
            poll.register(fd, select.POLLIN)
        waiting = {results, output, control}
        while waiting:
            events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            late = time.monotonic() >= deadline
            if (late or len(received) > limits.output) and not stopped and reply is None:
                stopped = "timeout" if late else "output"
                deadline = time.monotonic() + _GRACE
                try:
                    self.control.send(b"stop")
                except OSError:
                    return None
            elif late:
                return None  # the worker did not keep its grace
            for fd, _ in events:
                try:
                    data = self.control.recv(65536) if fd == control else os.read(fd, 65536)
                except OSError:
                    return None
                if fd == control:
                    if not data:
                        return None
                    reply = json.loads(data)
                    deadline = time.monotonic() + _GRACE  # both pipes end now: nothing that held them is alive
                elif fd == output:
                    tail = (tail + data)[-_STDERR_TAIL:]
                elif len(received) <= limits.output:
                    received += data
                if fd == control or not data:
                    poll.unregister(fd)
                    waiting.discard(fd)
        assert reply is not None
        ended = None
        if os.WIFSIGNALED(reply["status"]):
            number = os.WTERMSIG(reply["status"])
            cpu = number in (signal.SIGKILL, signal.SIGXCPU) and reply["cpu"] >= limits.seconds
            ended = "timeout" if cpu else f"killed by {signal.Signals(number).name}"
        elif reply["status"] != 0:
            ended = f"exit status {os.waitstatus_to_exitcode(reply['status'])}"
        if len(received) > limits.output:
            stopped = stopped or "output"
        return _Raw(bytes(received), tail.decode(errors="replace"), stopped, ended, time.monotonic() - start)


def _parse(received: bytes) -> list[dict[str, Any]]:
    """The harness's lines, as far as they are what it writes: the code under test can write here too."""
    lines = []
    for line in received.splitlines():
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(data, dict):
            break
        lines.append(data)
    return lines


def _outcome(line: dict[str, Any]) -> Outcome:
    if "value" not in line:
        return Outcome(error=str(line.get("error", "malformed result")))
    try:
        return Outcome(value=decode(line["value"]))
    except (ValueError, TypeError, RecursionError) as error:
        return Outcome(error=f"malformed result: {error}")


class Sandbox:
    """A pool of `workers` isolated Pythons (default: one a core). A context manager; its methods are thread-safe.

    Raises IqcError when isolation cannot be had, unless `unsafe=True`: then the code runs in a child process with
    rlimits and, for root, under another uid, and can read, write and send whatever that uid can.
    """

    def __init__(self, workers: int | None = None, *, limits: Limits | None = None, unsafe: bool = False):
        self.workers = workers or usable_cores()
        self.limits = limits or Limits()
        self._isolated = not unsafe
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: a place whose worker is not started
        for _ in range(self.workers - 1):
            self._idle.put(None)
        self._idle.put(_Worker(self._isolated))  # the first one at once: "not available" is said before any work

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers. Runs still going on in other threads are waited for."""
        for _ in range(self.workers):
            worker = self._idle.get()
            if worker:
                worker.close()
        self.workers = 0

    def _exchange(self, request: dict[str, Any], limits: Limits) -> _Raw:
        if self.workers == 0:
            raise ValueError("the sandbox is closed")
        worker = self._idle.get()
        raw = None
        try:
            worker = worker or _Worker(self._isolated)
            raw = worker.exchange(request, limits)
        finally:
            if worker and raw is None:  # no answer, or an exception on the way: with it goes all that it ran
                worker.close()
                worker = None
            self._idle.put(worker)
        return raw or _Raw(b"", "", "timeout", None, limits.seconds)

    def run(self, code: str, calls: Sequence[Call], limits: Limits | None = None) -> RunResult:
        """Load `code`, make the calls in order in one process. Arguments and results are what `values.encode` takes."""
        limits = limits or self.limits
        request = {"code": code, "calls": [[name, encode(list(args)), encode(kwargs)] for name, args, kwargs in calls]}
        raw = self._exchange(request, limits)
        lines = _parse(raw.received)
        loaded = bool(lines) and "loaded" in lines[0]
        results = [_outcome(line) for line in lines[1:]] if loaded else []
        errors = [str(line.get("error", "")) for line in lines]
        if raw.stopped or raw.ended == "timeout":
            status = raw.stopped or "timeout"
        elif any(error.startswith("MemoryError") for error in errors):
            status = "memory"
        elif raw.ended or not loaded or len(results) != len(calls):
            status = "error"
        else:
            status = "ok"
        stderr = raw.stderr + (f"\n[{raw.ended}]" if raw.ended else "")
        return RunResult(status, results[: len(calls)], stderr, raw.seconds)

    def run_suite(self, code: str, suite: str, entry_point: str, limits: Limits | None = None) -> RunResult:
        """Run asserts in the process of the code that they test: `ok` means that it wrote back this run's nonce last.

        Such a verdict can be forged by code that looks for the nonce; a verdict from `run` cannot.
        """
        limits = limits or self.limits
        nonce = secrets.token_hex(16)
        raw = self._exchange({"code": code, "suite": suite, "entry_point": entry_point, "nonce": nonce}, limits)
        lines = _parse(raw.received)
        passed = len(lines) == 2 and lines[1] == {"nonce": nonce} and not (raw.stopped or raw.ended)
        status = "ok" if passed else raw.stopped or ("timeout" if raw.ended == "timeout" else "error")
        results = [] if passed else [_outcome(line) for line in lines if "error" in line]
        return RunResult(status, results, raw.stderr + (f"\n[{raw.ended}]" if raw.ended else ""), raw.seconds)

    def run_tests(self, task: dict[str, Any], code: str, limits: Limits | None = None) -> Verdict:
        """Whether `code` passes the tests of a task record; see `verdict.py`."""
        return run_tests(self, task, code, limits)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`work(item)` on as many threads as there are workers; results in the order of the items."""
        with ThreadPoolExecutor(self.workers) as threads:
            yield from threads.map(work, items)


def available() -> list[Layer]:
    """What the wall is made of here, found by starting a worker; `doctor` tries to break it."""
    try:
        worker = _Worker(isolated=True)
    except IqcError as error:
        return [Layer("namespaces", False, error.what)]
    worker.close()
    uid = os.getuid()
    filtered = seccomp.program() is not None
    return [
        Layer("namespaces", True, "mount, pid, network, ipc, uts" + ("" if uid == 0 else ", user")),
        Layer("private root", True, "read-only tmpfs with read-only binds, no /proc"),
        Layer(
            "own uid", uid == 0, "one for each worker" if uid == 0 else "nobody in the namespace, the caller's outside"
        ),
        Layer("no capabilities, no_new_privs", True),
        Layer("rlimits", True, "memory, CPU, file size, descriptors, core, processes"),
        Layer("seccomp", filtered, "denylist" if filtered else "no table for this architecture"),
        Layer("cgroup", False, "not used"),
    ]
