"""The checks of one training process against silent errors: bits that must be equal are compared before they count.

At every update, before it is applied, across ranks: parameters and reduced gradients, where the engine holds them whole
on every rank, and both ends of every message. At every `every`-th update also

- recomputation: a rank's rows are computed once more; every gradient that backward makes and the loss must be the same
  bits. At every fourth of these another rank computes them a third time: a device that is wrong in the same way twice
  differs from another;
- reduction: what the second computation's reduction gives this rank must be the same bits;
- memory: the weights and the optimiser's state of this rank must be the bits that the update before left.

`matrix.toml` says which fault is seen by which check, and which by none. A GPU computes the same bits twice in
deterministic mode alone (`--deterministic`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from iqc.kernels.fingerprint import fingerprint, fingerprints
from iqc.tokens.loader import Batch
from iqc.train.audit.finding import Finding, differing
from iqc.train.audit.messages import Ledger, ObservedBackend
from iqc.train.audit.recorder import Recorder

ELSEWHERE = 4  # every so many audited updates are also computed on another rank


class Audit:
    """`every` 0: nothing is checked. `rows(step, data_rank)` gives the batch of another data rank."""

    def __init__(
        self,
        engine: Any,
        every: int,
        rows: Callable[[int, int], Batch] | None = None,
        ledger: Ledger | None = None,
    ):
        self.engine, self.ranks, self.every, self.rows = engine, engine.ranks, every, rows
        self.ledger = ledger or Ledger(engine.ranks)
        self.forget()
        if not every:
            return
        self.recorder = Recorder(engine.model)
        if getattr(engine, "zero", 0):
            ObservedBackend.install(self.ledger)
        several = engine.ranks.size > 1
        self.shared = [(name, p) for name, p in engine.model.named_parameters() if several and whole(engine, p)]
        # Experts are balanced over the rows of all ranks: their sum in another order of ranks rounds otherwise.
        self.comparable = engine.ranks.data_ranks > 1 and not engine.model.config.num_experts
        self.gradients_are_shared = several and "gradients" in engine.replicated

    def forget(self) -> None:
        """Of an earlier update; after weights were loaded."""
        self.ledger.clear()
        self.seal: dict[str, Tensor] = {}  # of memory, when the next update is audited
        self.begun: dict[str, Tensor] = {}  # fingerprints of this update
        self.failed: tuple[int, dict[str, list[list[int]]]] | None = None  # an update that was not applied: its tables

    def audited(self, step: int) -> bool:
        return self.every > 0 and step % self.every == self.every - 1

    def elsewhere(self, step: int) -> bool:
        """Whether the audited update is computed on another rank too."""
        return self.rows is not None and self.comparable and step // self.every % ELSEWHERE == 0

    def gradients(self, step: int, batch: Batch, accumulate: Callable[[Batch], Any]) -> Any:
        """`accumulate(batch)`: all micro-batches through the engine, up to the reduction; on an audited update twice.

        What `accumulate` returns (this rank's loss: tensors, in tuples or alone) must be all that it counts.
        """
        self.begun = {}
        if not self.audited(step):
            return accumulate(batch)
        self.seal = self.seal or self._memory()
        if self.elsewhere(step):
            assert self.rows is not None
            other = self.rows(step, (self.ranks.data_rank + 1) % self.ranks.data_ranks)
            self.begun["elsewhere"] = self.recorder.record(lambda: accumulate(other))[1]
            self.engine.discard()
        self.begun["again"] = self.recorder.record(lambda: accumulate(batch))[1]
        self.engine.reduce()
        self.begun["reduced again"] = self._reduced()
        self.engine.discard()
        made, self.begun["once"] = self.recorder.record(lambda: accumulate(batch))
        return made

    def check(self, step: int) -> list[Finding]:
        """After the reduction, before anything is applied: what differs, the same list on every rank; [] is good."""
        if not self.every:
            return []
        begun, device = self.begun, self.ranks.device
        if self.shared:
            begun["parameters"] = fingerprints(parameter for _, parameter in self.shared)
        if self.gradients_are_shared or self.audited(step):
            begun["gradients"] = self._reduced()
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        if self.audited(step):
            now = self._memory()
            self.seal = {name: value for name, value in self.seal.items() if name in now}
            begun["memory"], begun["sealed"] = (torch.stack([d[name] for name in self.seal]) for d in (now, self.seal))
            for one, other in self._pairs():
                wrong = wrong + (one != other).any()
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        keys = ("parameters", "gradients", "once", "elsewhere")
        numbers = torch.stack([fingerprint(begun.get(key, nothing)) for key in keys] + [wrong])
        table = self.ranks.gather(torch.cat([numbers, self.ledger.summary()])).tolist()  # waits for the device
        findings = self._findings(step, table)
        self.ledger.clear()
        if findings:
            self.failed = (step, self._tables())
        return findings

    def to_blame(self, step: int) -> tuple[int, ...]:
        """After a repetition that was sound: the ranks whose bits had been others the first time."""
        if self.failed is None or self.failed[0] != step:
            return ()
        before, now = self.failed[1], self._tables()
        self.failed = None
        for keys in (("once", "again", "elsewhere"), ("gradients",)):
            changed = [r for r in range(self.ranks.size) if any(before[k][r] != now[k][r] for k in keys if k in before)]
            if changed:  # one wrong share changes all replicas of the sum: a rank's own gradients tell more
                return tuple(changed)
        return ()

    def applied(self, step: int) -> None:
        """After the update was applied: what memory must still hold when an audited one follows."""
        if self.every:
            self.seal = self._memory() if self.audited(step + 1) else {}

    def _findings(self, step: int, table: list[list[int]]) -> list[Finding]:
        """table[rank]: the summaries of `check`. Where any differ, the ranks look closer together."""
        parameters, gradients, once, elsewhere, wrong, sent, received, shares, wholes = zip(*table)
        found: list[Finding] = []
        if self.shared and len(set(parameters)) > 1:
            found += self._across(step, "parameters", [name for name, _ in self.shared], "differs between replicas")
        if (sum(sent) - sum(received)) % (1 << 64) or any((sum(shares) - whole) % (1 << 64) for whole in wholes):
            found += list(self.ledger.differences(step))
        if any(wrong):
            found += self._at_home(step)
        if self.audited(step) and self.elsewhere(step):
            shift, size = self.ranks.context, self.ranks.size
            if any(elsewhere[rank] != once[(rank + shift) % size] for rank in range(size)):
                found += self._between_ranks(step, shift)
        if self.gradients_are_shared and len(set(gradients)) > 1:
            found += self._across(step, "gradients", self._gradient_names(), "differs between replicas when reduced")
        return found

    def _across(self, step: int, key: str, names: list[str], what: str) -> Iterator[Finding]:
        table = self.ranks.gather(self.begun[key]).tolist()
        return (Finding(step, key, names[number], ranks, what) for number, ranks in differing(table))

    def _between_ranks(self, step: int, shift: int) -> Iterator[Finding]:
        once, elsewhere = (self.ranks.gather(self.begun[key]).tolist() for key in ("once", "elsewhere"))
        for rank, own in enumerate(elsewhere):
            owner = (rank + shift) % self.ranks.size
            what = f"of rank {owner}'s rows is another when computed on rank {rank}"
            for name, one, other in zip(self.recorder.names, own, once[owner]):
                if one != other:
                    yield Finding(step, "recomputation", name, tuple(sorted((rank, owner))), what)

    def _at_home(self, step: int) -> list[Finding]:
        """What each rank finds within itself, told to all."""
        kinds = [
            ("recomputation", self.recorder.names, "is another when computed again"),
            ("reduction", self._gradient_names(), "is another when reduced again"),
            ("memory", list(self.seal), "changed in memory between updates"),
        ]
        mine = []
        for (check, names, what), (one, other) in zip(kinds, self._pairs()):
            mine += [(check, name, what) for name, bad in zip(names, (one != other).tolist()) if bad]
        told: list[list[tuple[str, str, str]]] = [mine] * self.ranks.size
        if self.ranks.size > 1:
            dist.all_gather_object(told, mine)
        return [Finding(step, check, name, (rank,), what) for rank, own in enumerate(told) for check, name, what in own]

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """On an audited update: what must be equal within a rank."""
        pairs = ("once", "again"), ("gradients", "reduced again"), ("memory", "sealed")
        return [(self.begun[one], self.begun[other]) for one, other in pairs]

    def _tables(self) -> dict[str, list[list[int]]]:
        """What is computed anew when the update is repeated, by rank."""
        kept = ["once", "again", "elsewhere"] + ["gradients"] * self.gradients_are_shared
        return {key: self.ranks.gather(self.begun[key]).tolist() for key in kept if key in self.begun}

    def _memory(self) -> dict[str, Tensor]:
        tensors = held(self.engine)
        return dict(zip(tensors, fingerprints(tensors.values()).to(self.ranks.device)))

    def _reduced(self) -> Tensor:
        return fingerprints(gradient for _, gradient in self.engine.gradients())

    def _gradient_names(self) -> list[str]:
        return [f"gradient of {name}" for name, _ in self.engine.gradients()]


def whole(engine: Any, parameter: Tensor) -> bool:
    """Whether every rank holds all of a parameter between updates: under ZeRO-3 of small ones alone."""
    return "parameters" in engine.replicated or getattr(parameter, "ds_persist", False)


def held(engine: Any) -> dict[str, Tensor]:
    """All weights and optimiser state that this rank stores, whole or its shares, by name."""
    found: dict[str, Tensor] = {}
    names = {}
    for name, parameter in engine.model.named_parameters():
        if hasattr(parameter, "ds_tensor"):
            found[f"shard of {name}"] = parameter.ds_tensor
        if not hasattr(parameter, "ds_tensor") or (whole(engine, parameter) and parameter.numel()):
            found[name] = parameter  # ZeRO-3 puts small ones together in the first forward pass, and leaves them so
        names[parameter] = name
    for number, (parameter, state) in enumerate(engine.optimizer.state.items()):
        name = names.get(parameter, f"partition {number}")
        if name not in found:
            found[name] = parameter
        found |= {f"{key} of {name}": value for key, value in sorted(state.items()) if isinstance(value, Tensor)}
    return found
