"""What ranks send each other, fingerprinted at both ends, and compared once, before the update is applied.

Point-to-point messages (context ranks pass keys and values on) are told by `sent` and `received`. Gathers (ZeRO puts a
parameter together from all ranks' shares) are told by an observed backend of DeepSpeed: the fingerprints of the shares,
each from its place on, add up to that of the whole. A sum over ranks cannot be checked so: what the reduction gives is
compared between replicas where there are any, and by audited updates.

What all ranks sent and all received is summed, each fingerprint times an odd weight of its own, so one difference shows
for certain; only then the lists are exchanged, to name the message.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from iqc.kernels.fingerprint import fingerprint
from iqc.train.audit.finding import Finding
from iqc.train.ranks import Ranks


class Ledger:
    """The messages of one rank since the last `clear`."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.clear()

    def clear(self) -> None:
        self.sends: dict[int, list[Tensor]] = defaultdict(list)  # by the other rank, in order
        self.receipts: dict[int, list[Tensor]] = defaultdict(list)
        self.shares: list[Tensor] = []  # by gather, in order
        self.wholes: list[Tensor | None] = []

    def sent(self, to: int, tensor: Tensor) -> None:
        self.sends[to].append(fingerprint(tensor))

    def received(self, source: int, tensor: Tensor) -> None:
        self.receipts[source].append(fingerprint(tensor))

    def summary(self) -> Tensor:
        """int64 [4], sums modulo 2^64: sent, received, shares, wholes."""
        size, own = self.ranks.size, self.ranks.rank
        out = [(f, (n * size + own) * size + to) for to, found in self.sends.items() for n, f in enumerate(found)]
        into = [(f, (n * size + by) * size + own) for by, found in self.receipts.items() for n, f in enumerate(found)]
        shares = [(f, n) for n, f in enumerate(self.shares)]
        wholes = [(f, n) for n, f in enumerate(self.wholes) if f is not None]
        return torch.stack([self._sum(found) for found in (out, into, shares, wholes)])

    def _sum(self, found: list[tuple[Tensor, int]]) -> Tensor:
        if not found:
            return torch.zeros((), dtype=torch.int64, device=self.ranks.device)
        weights = torch.tensor([2 * key + 1 for _, key in found], device=self.ranks.device)
        return (torch.stack([f.to(self.ranks.device) for f, _ in found]) * weights).sum()

    def differences(self, step: int) -> Iterator[Finding]:
        """What differs, message by message. All ranks call it together."""
        size = self.ranks.size
        sends, receipts = (
            [self._exchange(found.get(peer, [])) for peer in range(size)] for found in (self.sends, self.receipts)
        )
        for source in range(size):
            for to in range(size):
                one, other = sends[to][source], receipts[source][to]
                if one != other:
                    short = min(len(one), len(other))
                    number = next((n for n in range(short) if one[n] != other[n]), short)
                    name = f"message {number} from rank {source} to rank {to}"
                    yield Finding(step, "messages", name, (to,), "is not what was sent")
        shares = self._exchange(self.shares)
        missing = torch.zeros((), dtype=torch.int64, device=self.ranks.device)
        wholes = self._exchange([missing if whole is None else whole for whole in self.wholes])
        for number, column in enumerate(zip(*shares)):
            whole = sum(column) % (1 << 64)
            ranks = tuple(r for r in range(size) if len(wholes[r]) <= number or wholes[r][number] % (1 << 64) != whole)
            if ranks:
                yield Finding(step, "messages", f"gather {number}", ranks, "is not the shares that were sent")

    def _exchange(self, found: list[Tensor]) -> list[list[int]]:
        """The lists of all ranks, which may differ in length."""
        device = self.ranks.device
        counts = self.ranks.gather(torch.tensor(len(found), device=device)).tolist()
        padded = torch.zeros(max(counts), dtype=torch.int64, device=device)
        if found:
            padded[: len(found)] = torch.stack(found)
        return [row[:count] for row, count in zip(self.ranks.gather(padded).tolist(), counts)]


class ObservedBackend:
    """A backend of deepspeed.comm whose gathers over all ranks are told to a ledger; all else is the backend's."""

    def __init__(self, backend: Any, ledger: Ledger):
        self._backend, self._ledger = backend, ledger

    @classmethod
    def install(cls, ledger: Ledger) -> None:
        from deepspeed.comm import comm

        inner = comm.cdb._backend if isinstance(comm.cdb, cls) else comm.cdb
        comm.cdb = cls(inner, ledger)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def all_gather_into_tensor(self, output_tensor, input_tensor, group=None, async_op=False):
        finish = self._begin(input_tensor, [output_tensor], group)
        return finish(self._backend.all_gather_into_tensor(output_tensor, input_tensor, group, async_op))

    def all_gather(self, tensor_list, tensor, group=None, async_op=False):
        finish = self._begin(tensor, tensor_list, group)
        return finish(self._backend.all_gather(tensor_list, tensor, group, async_op))

    def all_gather_coalesced(self, output_tensors, input_tensors, group=None, async_op=False):
        finishers = [self._begin(one, [whole], group) for one, whole in zip(input_tensors, output_tensors)]
        work = self._backend.all_gather_coalesced(output_tensors, input_tensors, group, async_op)
        for finish in finishers:
            work = finish(work)
        return work

    def _begin(self, share: Tensor, parts: list[Tensor], group: Any):
        ledger = self._ledger
        if dist.get_world_size(group) != ledger.ranks.size:
            return lambda work: work
        number = len(ledger.shares)
        ledger.shares.append(fingerprint(share, dist.get_rank(group) * share.numel()))
        ledger.wholes.append(None)
        wholes = ledger.wholes  # of this update: a gather may be waited for when the next one's list has begun

        def done() -> None:
            starts = [sum(part.numel() for part in parts[:n]) for n in range(len(parts))]
            wholes[number] = torch.stack([fingerprint(part, at) for part, at in zip(parts, starts)]).sum()

        def finish(work: Any) -> Any:
            if work is None:
                done()
                return None
            return ObservedWork(work, done)

        return finish


class ObservedWork:
    """An asynchronous gather that is fingerprinted when it has been waited for, the first time."""

    def __init__(self, work: Any, done: Any):
        self._work, self._done = work, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def wait(self, *arguments: Any) -> Any:
        result = self._work.wait(*arguments)
        if self._done is not None:
            self._done()
            self._done = None
        return result
