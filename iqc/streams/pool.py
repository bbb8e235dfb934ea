"""An ordered parallel map over chunks: results come back in the order of the chunks, whoever finishes first."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any

from iqc.errors import IqcError
from iqc.streams.stage import Transform
from iqc.streams.worker import Result, Work, process

PR_SET_PDEATHSIG = 1  # linux/prctl.h
AHEAD = 2  # chunks in flight a worker: one at work and one waiting

_work: Work
_transform: Transform | None = None


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    if jobs == 1 or len(first) < 2:
        transform = work.factory()
        for chunk in chain(first, iterator):
            yield process(chunk, work, transform, digest_input(chunk))
    else:
        yield from _parallel_map(chain(first, iterator), work, jobs, digest_input)
    if deferred.failure is not None:
        raise deferred.failure


def _parallel_map(
    chunks: Iterator[Any], work: Work, jobs: int, digest_input: Callable[[Any], bool]
) -> Iterator[Result]:
    sys.stderr.flush()
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (work, os.getpid()))
    waiting: deque[Future[Result]] = deque()
    try:
        while True:
            for chunk in islice(chunks, AHEAD * jobs - len(waiting)):
                waiting.append(pool.submit(_process, chunk, digest_input(chunk)))
            if not waiting:
                break
            yield waiting.popleft().result()
        pool.shutdown()
    except BrokenProcessPool:
        raise IqcError("a worker process died", remedy="it was killed or ran out of memory: try fewer --jobs") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()


def _start_worker(work: Work, parent: int) -> None:
    global _work  # noqa: PLW0603  (a worker has one work)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent leaves no worker behind
        if os.getppid() != parent:
            os._exit(1)
    _work = work


def _process(chunk: Any, digest_input: bool) -> Result:
    global _transform  # noqa: PLW0603  (made once a process, here, where its errors travel home)
    if _transform is None:
        _transform = _work.factory()
    return process(chunk, _work, _transform, digest_input)
