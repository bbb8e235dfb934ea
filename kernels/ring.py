"""Messages between the ranks that share rows (context parallelism): point to point, under way while others compute."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

Message = tuple[Tensor, int]  # what is sent and to which rank, or where to put what comes and from which rank


class Ring(Protocol):
    """The ranks 0 to `size` - 1 that share rows, and this process's `rank` among them."""

    rank: int
    size: int

    def transfer(self, sends: Sequence[Message], receives: Sequence[Message]) -> Callable[[], None]:
        """Start to send and receive contiguous tensors; the returned function waits until all of it is done.

        Every rank calls this in the same order, so that each message meets its buffer. No tensor of it may be written
        to before the wait, and no buffer read.
        """
        ...


class Observer(Protocol):
    """Told of every message, as it leaves and as it came; ranks are those of the whole run."""

    def sent(self, to: int, tensor: Tensor) -> None: ...

    def received(self, source: int, tensor: Tensor) -> None: ...


class ProcessRing:
    """A ring of processes: a group of torch.distributed. NCCL sends on a stream of its own, and a wait
    holds up the device's current stream, not the processor; gloo sends in threads."""

    def __init__(self, group: dist.ProcessGroup, observer: Observer | None = None):
        self.group, self.observer = group, observer
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)

    def transfer(self, sends: Sequence[Message], receives: Sequence[Message]) -> Callable[[], None]:
        if self.observer is not None:
            for tensor, to in sends:
                self.observer.sent(self._global(to), tensor)
        operations = [dist.P2POp(dist.isend, tensor, group=self.group, group_peer=to) for tensor, to in sends]
        operations += [dist.P2POp(dist.irecv, buffer, group=self.group, group_peer=to) for buffer, to in receives]
        works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            for work in works:
                work.wait()
            if self.observer is not None:
                for buffer, source in receives:
                    self.observer.received(self._global(source), buffer)
            operations.clear()  # which held the tensors

        return wait

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank)
