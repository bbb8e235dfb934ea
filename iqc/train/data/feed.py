"""What a run reads: the rows of every update, from one set or from several sources in shares.

Row j of a run comes from the source that the mixture has there (`mixture`), and is that source's next row in an order
of its own (`order`), which the run's seed and the source's name give. So the rows of update k depend on the seed, k and
the history of the shares alone: not on the number of ranks, on where the run was started again, or on the order in
which the sources were named; and a source's own order does not depend on the other sources. Inputs without names are
one set, whose order the seed alone gives.

Held-out rows are scored source by source. The shares may follow those losses (`adapt`); every change is an event, in
the state that a checkpoint keeps, from which all is found again, and in RUN/mixture.jsonl, for people.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import orjson

from iqc.streams.writer import write_file
from iqc.tokens.dataset import Dataset
from iqc.tokens.loader import Ahead, Batch, Limits, assemble
from iqc.tokens.order import row_indices
from iqc.train.data.adapt import reweighted
from iqc.train.data.curriculum import MixtureSettings, schedule
from iqc.train.data.mixture import Mixture, proportions
from iqc.train.data.sources import Sources

EVENTS = "mixture.jsonl"
Measure = Callable[[Dataset], float]  # the mean loss over a set in nats a token, the same on all ranks


class Data:
    """The batches of a run's updates, by their number, for one rank. A context manager: it ends its thread."""

    def __init__(
        self,
        sources: Sources,
        held_out: Mapping[str, Dataset],
        asked: MixtureSettings,
        limits: Limits,
        *,
        seed: int,
        batch_rows: int,
        steps: int,
        rank: int = 0,
        ranks: int = 1,
        directory: Path | None = None,
    ) -> None:
        """`directory`: of the run, where this process is to write what happens to the mixture."""
        self.sources, self.held_out, self.asked, self.limits = sources, held_out, asked, limits
        self.batch_rows, self.steps, self.rank, self.ranks = batch_rows, steps, rank, ranks
        self.domains = sources.names if sources.named else ()
        self.directory = directory if sources.named else None
        sizes = list(sources.rows.values())
        self._offsets = np.cumsum([0, *sizes])
        self._seeds = [seed_of(seed, name) for name in self.domains] or [seed]
        planned = schedule(asked, sources.rows, steps, batch_rows) if self.domains else [(0, [1])]
        self._planned = [event(update, self.domains, parts) for update, parts in planned]
        self._ahead = Ahead(lambda update: self._make(update, rank))
        self.load({})

    def __enter__(self) -> "Data":
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.close()

    def load(self, state: dict) -> None:
        """Go on from a state of `state()`, or, from {}, from the beginning."""
        self.events = state.get("events", self._planned)
        self.reference: dict[str, float] = state.get("reference", dict(self.asked.reference))
        self._follow()

    def state(self) -> dict:
        """JSON from which `load` goes on; {} where nothing but the settings decides."""
        return {"events": list(self.events), "reference": dict(self.reference)} if self.asked.adapt else {}

    def plan(self) -> str:
        """How many rows each source gives, should the shares stay as they are now; nothing for a set without names."""
        rows = self.steps * self.batch_rows
        given = self.mixture.given(rows) if rows else [0] * len(self.domains)
        sizes = self.sources.rows
        return ", ".join(f"{name} {n:,} rows ({n / sizes[name]:.2f} epochs)" for name, n in zip(self.domains, given))

    def batch(self, update: int) -> Batch:
        """This rank's rows of an update; the next ones are made meanwhile. What is wrong with a row is raised here."""
        if update >= self._known:
            raise ValueError(f"the mixture of update {update} is not known before `after({self._known})`")
        return self._ahead.take(update, self._known)

    def batch_of(self, update: int, rank: int) -> Batch:
        """Another rank's rows of an update."""
        return self._ahead.ask(lambda: self._make(update, rank))

    def start(self, measure: Measure) -> None:
        """Before the first update of a process, and after `load`: the losses to adapt towards, where none are known."""
        self._record()
        if self.asked.adapt and self.steps and not self.reference:
            self.reference = {name: measure(self.held_out[name]) for name in self._adapted()}

    def after(self, updates: int, measure: Measure) -> dict:
        """When so many updates are done: the metrics of held-out rows, where it is time for them; shares may change."""
        due = updates == self.steps or (self.asked.valid_every and updates % self.asked.valid_every == 0)
        if not due or not self.held_out:
            return {}
        losses = {name: measure(dataset) for name, dataset in self.held_out.items()}
        metrics: dict = {"valid_loss": losses.get("", losses)}
        if self.asked.adapt and updates < self.steps:
            before = self.events[-1]["shares"]
            shares = before | reweighted(
                {name: before[name] for name in self._adapted()},
                losses,
                self.reference,
                self.asked.least,
                self.asked.most,
            )
            made = event(updates, self.domains, proportions([shares[name] for name in self.domains]))
            self.events = [*self.events, made | {"valid_loss": losses, "reference": self.reference}]
            self._follow()
            self._record()
            metrics["shares"] = made["shares"]
        return metrics

    def _adapted(self) -> list[str]:
        return [name for name in self.domains if name not in self.asked.replay]

    def _follow(self) -> None:
        """Take the shares from the events."""
        self._ahead.forget()
        self.mixture = Mixture(len(self.sources.names))
        for made in self.events:
            self.mixture.change(made["update"] * self.batch_rows, made["parts"])
        self._known = self.steps
        if self.asked.adapt:
            self._known = min(self.steps, self.events[-1]["update"] + self.asked.valid_every)

    def _record(self) -> None:
        """Write all events anew: what a killed process left, or updates that are done again, are not in them."""
        if self.directory is not None:
            lines = b"".join(orjson.dumps(made) + b"\n" for made in self.events)
            write_file(self.directory / EVENTS, lines)

    def _make(self, update: int, rank: int) -> Batch:
        first, end = (self.batch_rows * number // self.ranks for number in (rank, rank + 1))
        source, number = self.mixture.places(update * self.batch_rows + first, end - first)
        indices = np.empty(end - first, np.int64)
        for at in range(len(self.sources.names)):
            here = np.flatnonzero(source == at)
            if here.size:
                begin, after = self._offsets[at : at + 2].tolist()
                order = row_indices(after - begin, self._seeds[at], int(number[here[0]]), here.size)
                indices[here] = begin + order
        batch = assemble(self.sources.dataset, indices, self.limits)
        batch.domains = source if self.domains else None
        return batch


def event(update: int, names: tuple[str, ...], parts: list[int]) -> dict:
    """From an update on the sources are wanted in these proportions: exact in `parts`, to be read in `shares`."""
    shares = {name: part / sum(parts) for name, part in zip(names, parts)}
    return {"update": update, "shares": shares, "parts": parts}


def seed_of(seed: int, name: str) -> int:
    """What gives the order of a source's rows."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8, person=b"iqc source").digest())
