"""What the loop asks about each update before it is applied: the audit, the watch, and the thread that sees it hang."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from iqc.tokens.loader import Batch
from iqc.train.audit.audit import Audit
from iqc.train.audit.messages import Ledger
from iqc.train.audit.stalls import Stalls
from iqc.train.audit.watch import Watch
from iqc.train.engines.engine import Engine
from iqc.train.run import read_metrics
from iqc.train.settings import TrainSettings


class Guard:
    """A `Checks` of step.py.

    ledger: the messages of context ranks. rows: gives another data rank's batch of an update. newest: the number of
    updates of the newest checkpoint, None where there is none.
    """

    def __init__(
        self,
        settings: TrainSettings,
        engine: Engine,
        ledger: Ledger,
        rows: Callable[[int, int], Batch],
        directory: Path,
        newest: Callable[[], int | None],
    ):
        policy = {"mismatch": settings.on_mismatch, "spike": settings.on_spike, "nan": settings.on_nan}
        self.ranks, self.directory, self.stop = engine.ranks, directory, settings.on_stall == "stop"
        self.audit = Audit(engine, settings.audit_every, rows, ledger)
        self.watch = Watch(policy, directory, engine.ranks, newest)

    def resume(self, first: int) -> None:
        """Update `first` comes next."""
        self.watch.resume(self.ranks.once(lambda: read_metrics(self.directory)[:first]))
        self.audit.forget()

    def stalls(self) -> Stalls:
        table = self.watch.table
        limits = table["stall"], table["stall_least"], table["stall_first"]
        return Stalls(*limits, partial(self.watch.stalled, self.stop), self.stop)

    def gradients(self, step: int, batch: Batch, accumulate: Callable[[Batch], dict[str, Tensor]]) -> dict[str, Tensor]:
        return self.audit.gradients(step, batch, accumulate)

    def judge(self, step: int, metrics: dict) -> str:
        findings = self.audit.check(step)
        return self.watch.judge(step, metrics, findings, () if findings else self.audit.to_blame(step))

    def applied(self, step: int) -> None:
        self.audit.applied(step)
