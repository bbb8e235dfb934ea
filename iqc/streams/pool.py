"""An ordered parallel map over chunks: results come back in the order of the chunks, whoever finishes first."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from iqc.errors import IqcError
from iqc.streams.stage import Transform
from iqc.streams.worker import Result, Work, process

PR_SET_PDEATHSIG = 1  # linux/prctl.h
AHEAD = 2  # chunks that a worker has: one at work and one waiting
WINDOW = 3  # chunks a worker, in flight or done before their turn
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Deferred:
    """Iterates chunks; an input that turns out to be damaged ends it, and is raised when what came before is done."""

    def __init__(self, chunks: Iterable[Any]):
        self.chunks = iter(chunks)
        self.failure: IqcError | None = None

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.chunks
        except IqcError as error:
            self.failure = error


def ordered_map(chunks: Iterable[Any], work: Work, jobs: int, digest_input: Callable[[Any], bool]) -> Iterator[Result]:
    """`process` over the chunks, by `jobs` processes. A single chunk is not worth a process."""
    deferred = Deferred(chunks)
    iterator = iter(deferred)
    first = list(islice(iterator, 2))
    _keep_memory()
    if jobs == 1 or len(first) < 2:
        transform = work.factory()
        for chunk in chain(first, iterator):
            yield process(chunk, work, transform, digest_input(chunk))
    else:
        yield from _parallel_map(chain(first, iterator), work, jobs, digest_input)
    if deferred.failure is not None:
        raise deferred.failure


def _keep_memory() -> None:
    """Let this process and its children keep what they free, up to 64 MiB, where the C library is glibc.

    Otherwise the texts of each chunk are given back and asked for again, page by page: a tenth of all processor time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 64 << 20)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes


def _parallel_map(
    chunks: Iterator[Any], work: Work, jobs: int, digest_input: Callable[[Any], bool]
) -> Iterator[Result]:
    """A chunk goes to the worker with the least to do; results that are early wait here for their turn."""
    workers = [_Worker(work) for _ in range(jobs)]
    found: dict[int, Result | Exception] = {}
    sent = turn = 0
    try:
        for chunk in chunks:
            while sent - turn == WINDOW * jobs or all(len(worker.tasks) == AHEAD for worker in workers):
                _collect(workers, found)
                while turn in found:
                    yield _result(found.pop(turn))
                    turn += 1
            min(workers, key=lambda worker: len(worker.tasks)).send(sent, chunk, digest_input(chunk))
            sent += 1
        while turn < sent:
            _collect(workers, found)
            for worker in workers:
                if not worker.tasks:
                    worker.process.kill()  # its memory is freed while the others work
            while turn in found:
                yield _result(found.pop(turn))
                turn += 1
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


def _collect(workers: "list[_Worker]", found: dict[int, Result | Exception]) -> None:
    """Wait for the next results, whosever they are."""
    busy = {worker.pipe: worker for worker in workers if worker.tasks}
    for pipe in wait(list(busy)):
        worker = busy[pipe]
        found[worker.tasks.popleft()] = worker.receive()


def _result(found: Result | Exception) -> Result:
    if isinstance(found, Exception):
        raise found
    return found


class _Worker:
    """A process with a pipe of its own, so that one that dies in the middle of a message is noticed at once.

    (A pool whose workers share a pipe, as concurrent.futures has it, waits for the rest of that message forever.)
    """

    def __init__(self, work: Work):
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        sys.stderr.flush()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
        self.process.start()
        self.tasks: deque[int] = deque()  # numbers of the chunks whose results are due
        theirs.close()

    def send(self, number: int, chunk: Any, digest_input: bool) -> None:
        try:
            self.pipe.send((chunk, digest_input))
        except OSError:
            raise self._died() from None
        self.tasks.append(number)

    def receive(self) -> Result | Exception:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None

    def _died(self) -> IqcError:
        return IqcError("a worker process died", remedy="it was killed or ran out of memory: try fewer --jobs")


def _serve(pipe: Connection, work: Work, parent: int) -> None:
    """A worker's life: results go home in the order of the chunks; a failure goes home in place of a result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent leaves no worker behind
        if os.getppid() != parent:
            os._exit(1)
    tasks: SimpleQueue = SimpleQueue()

    def receive() -> None:  # in a thread: the parent must not wait to send while this process waits to send
        while True:
            try:
                tasks.put(pipe.recv())
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone

    threading.Thread(target=receive, daemon=True).start()
    transform: Transform | None = None
    while True:
        chunk, digest_input = tasks.get()
        found: Result | Exception
        try:
            transform = transform or work.factory()  # here, where its errors travel home
            found = process(chunk, work, transform, digest_input)
        except Exception as error:
            found = error
        pipe.send(found)
