"""`mix` as a stage: lanes to one stream, or to shards that resume.

Every shard says in its lineage how many records each lane has given up to its end, which is the whole state of the
mixture: a run that was killed goes on after the last shard there is. The order of the records is made in this process;
frames are compressed in threads beside it.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import groupby
from math import inf
from operator import and_
from pathlib import Path

import orjson

from iqc import __version__
from iqc.errors import UsageError
from iqc.streams.container import CHUNK, LEVEL, Frame, compress
from iqc.streams.lineage import Input, Stage, line_digest
from iqc.streams.output import Outputs, shard_name
from iqc.streams.reader import MANIFEST
from iqc.streams.runner import Counts, Job, Settings, identity_factory, report
from iqc.streams.shards import find_finished, prepare, publish
from iqc.streams.worker import Work
from iqc.streams.writer import ROW, ROW_LEVEL, AtomicFile
from iqc.tokens.mix.lanes import LEAST_WINDOW, WINDOWS, Lane, Queue, Spill
from iqc.tokens.mix.plan import Plan, plan
from iqc.tokens.mix.recipe import Recipe
from iqc.tokens.mix.schedule import curves, turns
from iqc.tokens.mix.sources import Sources

MARKS = 50  # places in the output, evenly, at which the summary says what each lane has given


class Mixer:
    """Gives the lines of the mixture in order; its `state` after any batch is what a later run goes on from."""

    def __init__(self, plan: Plan, lanes: list[Lane], by: str, seed: int, shuffle: bool):
        self.plan, self.lanes, self.by, self.seed, self.shuffle = plan, lanes, by, seed, shuffle
        self.total = plan.total
        self.window = max(WINDOWS // max(1, sum(lane.records > 0 for lane in lanes)), LEAST_WINDOW)
        nothing = [0] * len(lanes)
        self.start({"given": nothing, "taken": nothing, "text": nothing, "marks": [], "done": False})

    def start(self, state: dict) -> None:
        """Go on from a state."""
        self.given, self.text, self.marks = state["given"][:], state["text"][:], state["marks"][:]
        self.done = state["done"]
        self.queues = [
            Queue(lane, self.by, self.seed, self.shuffle, self.window, limit, taken)
            for lane, limit, taken in zip(self.lanes, self.plan.limits, state["taken"])
        ]
        self.turns = self._turns()

    @property
    def state(self) -> dict:
        taken = [queue.taken for queue in self.queues]
        return {"given": self.given, "taken": taken, "text": self.text, "marks": self.marks, "done": self.done}

    def _turns(self) -> Iterator[tuple[int, int]]:
        wanted = curves(self.plan.phases)
        yield from turns(wanted, self.total, self.given, lambda lane: self.queues[lane].next_size())
        for lane, owed in enumerate(self.plan.owed):  # records of size zero, and what rounding left
            while owed and (size := self.queues[lane].next_size()) is not None:
                self.given[lane] += size
                yield lane, size

    def batches(self, most: float = inf) -> Iterator[list[bytes]]:
        """Lines until they have `most` bytes of text, or all; each batch ends at the first one at or after CHUNK."""
        queues, text = self.queues, self.text
        batch: list[bytes] = []
        written, given, cut = 0, sum(self.given), min(CHUNK, most)
        mark = self._next_mark()
        for lane, size in self.turns:
            line = queues[lane].take()
            batch.append(line)
            text[lane] += len(line) + 1
            written += len(line) + 1
            given += size
            if given >= mark:
                mark = self._next_mark(given)
            if written >= cut:
                yield batch
                if written >= most and not self._nothing_left(given):
                    return
                batch, cut = [], min(written + CHUNK, most)
        self.done = True
        if batch:
            yield batch

    def _nothing_left(self, given: int) -> bool:
        """Whether no record comes any more, so that no shard is begun for none."""
        left = [queue.next_size() is not None for queue in self.queues]
        return not any(left) or (given >= self.total and not any(map(and_, left, self.plan.owed)))

    def _next_mark(self, given: int = 0) -> float:
        """Set the marks that have been passed; returns where the next one is."""
        while (mark := self.total * (len(self.marks) + 1) / MARKS) <= given and len(self.marks) < MARKS:
            self.marks.append(self.given[:])
        return mark if len(self.marks) < MARKS else inf

    def by_source(self) -> dict[str, dict]:
        """What lineage says of each source: records that were given, and how often all of it was."""
        found: dict[str, dict] = {}
        for lane, queue in zip(self.lanes, self.queues):
            row = found.setdefault(lane.source, {"there": 0, "given": 0})
            row["there"] += lane.records
            row["given"] += queue.taken
        return found

    def table(self) -> list[dict]:
        """One row a lane: what there is, what was given, and both shares."""
        whole = sum(self.given) or 1
        return [
            {"source": lane.source, "language": lane.language, "band": lane.band}
            | {"there": {"records": lane.records, "amount": lane.amount, "bytes": lane.text}}
            | {"given": {"records": queue.taken, "amount": given, "bytes": text}}
            | {"wanted": round(wanted, 6), "share": round(given / whole, 6)}
            | {"epochs": round(queue.taken / (lane.records or 1), 4)}
            for lane, queue, given, text, wanted in zip(
                self.lanes, self.queues, self.given, self.text, self.plan.wanted
            )
        ]


def write(outputs: Outputs, batches: Iterator[list[bytes]], settings: Settings) -> None:
    """Batches of lines to frames, a thread each; what they are does not depend on the number of threads."""
    if settings.plain:
        for batch in batches:
            outputs.main.add_text(joined(batch), len(batch), b"")
        return
    with ThreadPoolExecutor(settings.jobs) as pool:
        waiting: deque[Future] = deque()
        for batch in batches:
            waiting.append(pool.submit(frames_of, batch))
            while len(waiting) > settings.jobs or (waiting and waiting[0].done()):
                add_frames(outputs, waiting.popleft())
        for future in waiting:
            add_frames(outputs, future)


def add_frames(outputs: Outputs, made: Future) -> None:
    for frame, digests in made.result():
        outputs.main.add_frame(frame, digests)


def joined(lines: list[bytes]) -> bytes:
    return b"\n".join([*lines, b""])


def frames_of(batch: list[bytes]) -> list[tuple[Frame, bytes]]:
    """Frames with the digests of their lines: one of all, but a training row is a frame of its own, as elsewhere."""
    found = []
    for alone, group in groupby(batch, is_row):
        lines = list(group)
        for part in [[line] for line in lines] if alone else [lines]:
            frame = compress(joined(part), len(part), ROW_LEVEL if alone else LEVEL)
            found.append((frame, b"".join(map(line_digest, part))))
    return found


def is_row(line: bytes) -> bool:
    """Whether a line is a sequence record. Inside a string its quotes would be escaped: few lines are parsed for it."""
    return b'"lengths":"' in line and orjson.loads(line).keys() >= ROW


def mix(
    paths: dict[str, str], recipe: Recipe, tokenizer: str | None, settings: Settings, seed: int, shuffle: bool
) -> Counts:
    """Mix sources, by name, to the output that the settings name."""
    started = time.monotonic()
    paths = {name: path for name, path in paths.items() if recipe.wishes[name].weight != 0}
    settings = replace(settings, inputs=list(paths.values()))
    stage = Stage("mix", __version__, options_of(recipe, tokenizer, shuffle), seed)
    job = Job(stage, settings, Work(identity_factory))
    sources = Sources(paths, recipe, tokenizer, settings)
    if settings.sharded:
        mixer, counts = run_shards(job, sources, seed, shuffle)
    else:
        with Outputs(settings) as outputs, Spill(spill_directory(settings)) as spill:
            sources.scan(spill, outputs)
            mixer, counts = (
                Mixer(plan(recipe, sources.lanes), sources.lanes, sources.recipe.by, seed, shuffle),
                sources.counts,
            )
            write(outputs, mixer.batches(), settings)
            counts.extra = {"sources": mixer.by_source()}
            outputs.finish(stage, sources.results(), counts)
    counts.extra |= {"mixture": {"by": recipe.by, "lanes": mixer.table(), "marks": mixer.marks}}
    report("mix", settings, counts, time.monotonic() - started)
    return counts


def run_shards(job: Job, sources: Sources, seed: int, shuffle: bool) -> tuple[Mixer, Counts]:
    """Make the shards that are not there yet, in order: each begins in the state in which the one before it ended."""
    settings, counts = job.settings, sources.counts
    directory = prepare(job)
    with AtomicFile(directory / MANIFEST) as manifest, Spill(str(directory)) as spill:
        made_by = maker(job, sources)
        if None in made_by["input"] and any(directory.glob("part-*")):
            raise UsageError(
                "shards of another run, and a source is a pipe",
                where=str(directory),
                remedy="name a file instead of the pipe, or remove the directory to make it anew",
            )
        finished = find_finished(directory, made_by, [settings.explain, settings.quarantine])
        lineages = []
        with Outputs(settings, shard_name(0)) if 0 not in finished else nullcontext() as first:
            sources.scan(spill, first)
            mixer = Mixer(plan(sources.recipe, sources.lanes), sources.lanes, sources.recipe.by, seed, shuffle)
            if first:
                lineages.append(fill(first, job, mixer, 0, made_by))
        while not mixer.done:
            number = len(lineages)
            if number in finished:
                lineages.append(finished[number])
                mixer.start(finished[number]["shard"]["state"])
            else:
                with Outputs(settings, shard_name(number)) as outputs:
                    lineages.append(fill(outputs, job, mixer, number, made_by))
        for number in finished.keys() - set(range(len(lineages))):
            (directory / shard_name(number)).unlink()
        counts.kept = sum(lineage["output"]["records"] for lineage in lineages)
        counts.bytes_out = sum(lineage["output"]["bytes"] for lineage in lineages)
        counts.extra = {"sources": mixer.by_source()}
        publish(job, manifest, lineages, sources.results(), counts)
    return mixer, counts


def fill(outputs: Outputs, job: Job, mixer: Mixer, number: int, made_by: dict) -> dict:
    """Make one shard; returns its lineage."""
    write(outputs, mixer.batches(job.settings.shard_mib << 20), job.settings)
    inputs = [Input(digest) for digest in made_by["input"]]
    shard = {"number": number, "made_by": made_by, "state": mixer.state}
    return outputs.finish(job.stage, inputs, Counts(read=outputs.main.records), {"shard": shard})


def maker(job: Job, sources: Sources) -> dict:
    """All that a shard's bytes depend on, as JSON: what a resume compares."""
    settings = job.settings
    known = {"input": sources.identity(), "shard_mib": settings.shard_mib, "on_error": settings.on_error_mode}
    return orjson.loads(orjson.dumps(job.stage.node() | known))


def options_of(recipe: Recipe, tokenizer: str | None, shuffle: bool) -> dict:
    """What changes the output, as lineage has it."""
    from iqc.tokens.tokenizer import load

    sources = {name: given(asdict(wish)) for name, wish in recipe.wishes.items()}
    phases = [given(asdict(phase)) for phase in recipe.phases]
    whole = given(asdict(recipe) | {"phases": phases}) | {"wishes": sources}
    whole |= {"tokenizer": load(Path(tokenizer)).digest} if tokenizer else {}
    return whole | {"shuffle": shuffle, "sources": whole.pop("wishes")}


def given(options: dict) -> dict:
    """Less what was left out."""
    return {name: value for name, value in options.items() if value not in (None, {}, [])}


def spill_directory(settings: Settings) -> str | None:
    """Beside the output, where there is room for as much again; the system's place for the standard output."""
    return None if settings.output in (None, "-") else os.path.dirname(os.path.abspath(settings.output))
