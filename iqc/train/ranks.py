"""The processes of one training run: who they are, the few sums they share, and that none outlives another's failure.

Started by `torchrun` (or the `deepspeed` launcher), each process is a rank, on a GPU of its own with NCCL, on CPUs with
gloo. Without their environment there is one process and no process group.

A collective that one rank never enters would keep the others waiting. So every rank has a thread that says twice a
second, in the run's key-value store, that it lives, and reads whether a rank has failed. The error of the first rank to
fail ends all others within seconds; a rank that dies without a word is missed by its neighbour after SILENCE. A rank
that lives and hangs is left to the collective's own TIMEOUT.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from iqc.errors import IqcError, UsageError

TIMEOUT = timedelta(minutes=10)  # of a collective: longer than any rank waits for another that works
SILENCE = 40.0  # seconds without a word after which a rank is dead; a busy process may hold the interpreter for some
BEAT = 0.5  # seconds
FAILED = "iqc/failed"  # the store's key for the first failure

T = TypeVar("T")


@dataclass(slots=True)
class Ranks:
    """This process among those of the run. `context` consecutive ranks share every row, a part of its tokens each."""

    rank: int = 0
    size: int = 1
    context: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    context_group: Any = None  # the process group of the ranks that share this one's rows; None when context is 1
    _watch: "Watch | None" = None

    @classmethod
    def start(cls, context: int = 1) -> "Ranks":
        """Join the run that the environment describes. Use it as a context manager: leaving waits for the others.

        UsageError when the ranks cannot be split into groups of `context`, IqcError when there are too few GPUs.
        """
        rank, size, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        size = max(size, 1)
        if context < 1 or size % context:
            raise UsageError(
                f"{context} context ranks for {size} {'ranks' if size > 1 else 'rank'}",
                remedy="torchrun --nproc-per-node N, N a multiple of --context-ranks",
            )
        device = torch.device("cpu")
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise IqcError(
                    f"rank {rank} is number {local} on a machine of {torch.cuda.device_count()} GPUs",
                    remedy="torchrun --nproc-per-node with at most the number of GPUs",
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if "WORLD_SIZE" not in os.environ:
            return cls(device=device)
        store, rank, size = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        watch = Watch(store, rank, size)  # before the group is made: that waits for all ranks, too
        shared = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=TIMEOUT)
        group = dist.new_subgroups(context)[0] if context > 1 else None
        return cls(rank, size, context, device, group, watch)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait until all ranks are done; after an error, tell it to the others first."""
        if self._watch is None:
            return
        if error is None:
            self._watch.finish()
            dist.destroy_process_group()
            self._watch.leave()
            return
        lost = broken(error)
        if lost:
            time.sleep(4 * BEAT)  # if the rank that went away has said why, this process ends here
        first = self._watch.fail(error)
        if lost and first:
            reason = (str(error).splitlines() or [""])[0]
            remedy = "the same command goes on from the newest checkpoint; the rank that ended may have said why"
            raise IqcError(f"another rank of the run ended: {reason}", remedy=remedy) from None
        if not first:
            time.sleep(8 * BEAT)  # another rank failed first, and says why: launchers would not let it
            os._exit(1)

    @property
    def main(self) -> bool:
        """Whether this is the rank that prints, logs and publishes."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which of the `data_ranks` shares of an update's rows is this rank's."""
        return self.rank // self.context

    @property
    def data_ranks(self) -> int:
        return self.size // self.context

    @property
    def context_rank(self) -> int:
        return self.rank % self.context

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in float64; a new tensor, the same bits on every rank."""
        total = tensor.detach().to(torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        """[size, ...]: the tensors of all ranks, which have the same shape and dtype."""
        if self.size == 1:
            return tensor[None]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous())
        return torch.stack(found)

    def same(self, tensor: Tensor) -> bool:
        """Whether all ranks hold the same integers."""
        return bool((self.gather(tensor) == tensor).all())

    def once(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, where alone it runs, on every rank. What it raises is raised there, which
        ends the others."""
        result = [function() if self.main else None]
        if self.size > 1:
            dist.broadcast_object_list(result, src=0)
        return result[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def broken(error: BaseException) -> bool:
    """Whether this is what a collective raises when another rank is gone."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


class Watch:
    """The thread that tells the other ranks of this one's life, and this one of their failures."""

    def __init__(self, store: Any, rank: int, size: int):
        self.rank, self.size = rank, size
        # A client holds a lock while it waits: the main thread's own must not keep this one from speaking.
        self.store, self.own = dist.PrefixStore("watch", store.clone()), dist.PrefixStore("watch", store)
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self.thread.start()

    def fail(self, error: BaseException) -> bool:
        """Tell all ranks; False when another one failed before."""
        text = f"rank {self.rank} failed: {type(error).__name__}: {error}"
        self._stop()
        try:
            first = self.own.compare_set(FAILED, "", text).decode() == text
        except RuntimeError:  # the store is gone, and with it the rank that held it
            return True
        if first:
            time.sleep(3 * BEAT)  # they read it before this rank, or its launcher, takes the store away
        return first

    def finish(self) -> None:
        """Wait for all ranks, however long the last of them still works: each is watched."""
        self.own.add("finished", 1)
        while self.own.add("finished", 0) < self.size:
            time.sleep(BEAT / 10)
        self._stop()

    def leave(self) -> None:
        """Rank 0 may hold the store: it leaves last."""
        left, until = self.own.add("left", 1), time.monotonic() + SILENCE
        while self.rank == 0 and left < self.size and time.monotonic() < until:
            time.sleep(BEAT / 10)
            left = self.own.add("left", 0)

    def _stop(self) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        neighbour = (self.rank + 1) % self.size
        seen, since = -1, time.monotonic()
        while not self.done.wait(BEAT):
            try:
                self.store.add(f"beat/{self.rank}", 1)
                beats = self.store.add(f"beat/{neighbour}", 0)
                failed = self.store.get(FAILED).decode() if self.store.check([FAILED]) else None
            except RuntimeError as error:
                failed = f"rank {self.rank} lost the store of the run: {error}"
                self._end(failed, aloud=True)
                return
            if failed:
                self._end(failed, aloud=self.rank == 0)
            elif beats != seen:
                seen, since = beats, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                said = f"rank {neighbour} has said nothing for {SILENCE:.0f} s"
                self._end(self.store.compare_set(FAILED, "", said).decode(), aloud=True)

    def _end(self, why: str, aloud: bool) -> None:
        """End this process at once: its main thread may wait in a collective that nothing can interrupt."""
        if self.done.is_set():
            return
        if aloud:
            print(f"iqc train: {why}", file=sys.stderr, flush=True)
        time.sleep(6 * BEAT)  # launchers take the first to exit for the one that failed
        os._exit(1)
