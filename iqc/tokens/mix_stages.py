"""`mix` as a stage: sources to lanes, lanes to one stream or to shards that resume.

Every shard says in its lineage how much each lane has given up to its end, which is the whole state of the mixture: a
run that was killed goes on after the last shard there is.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import orjson

from iqc import __version__
from iqc.errors import UsageError
from iqc.streams.container import read_index
from iqc.streams.lineage import Input, Stage, line_digest
from iqc.streams.output import Outputs, shard_name
from iqc.streams.pool import ordered_map
from iqc.streams.reader import MANIFEST, Chunk, is_regular
from iqc.streams.runner import Counts, Job, Settings, StreamInput, checked, report
from iqc.streams.shards import find_finished, prepare, publish
from iqc.streams.stage import Record, Transform, require
from iqc.streams.worker import Result, Work
from iqc.streams.writer import AtomicFile, dump
from iqc.tokens.lanes import Block, Lane, Queue, Spill
from iqc.tokens.mix import curves, turns
from iqc.tokens.mixture import Plan, Recipe, plan

BATCH = 256 << 10  # bytes of lines that are handed to the writer at once


def measuring(by: str, tokenizer: str | None, with_lines: bool) -> Transform:
    """The map of the first reading: a record to its size, and its line where that is to be kept."""
    size = sizer(by, tokenizer)

    def transform(record: Record) -> Iterator[tuple[int, bytes | None]]:
        require(record, "id")
        line = dump(record) if with_lines or by == "bytes" else b""
        yield size(record, line), line if with_lines else None

    return transform


def sizer(by: str, tokenizer: str | None) -> Callable[[Record, bytes], int]:
    """The size of a record with its line: 1, the bytes of the line with its end, or tokens."""
    if by == "records":
        return lambda record, line: 1
    if by == "bytes":
        return lambda record, line: len(line) + 1
    from iqc.tokens.render import render
    from iqc.tokens.sequence import decode_sequence
    from iqc.tokens.tokenizer import load

    loaded = load(Path(tokenizer)) if tokenizer else None

    def tokens(record: Record, line: bytes) -> int:
        if "tokens" in record and "lengths" in record:
            return decode_sequence(record).tokens.size
        if loaded is None:
            raise UsageError("--by tokens of records that are text", remedy="--tokenizer DIR counts them")
        segments = render(record).segments
        return sum(1 if segment.is_control else len(loaded.encode_ordinary(segment.value)) for segment in segments)

    return tokens


class Sources:
    """The inputs of a mixture by name, and what their first reading found."""

    def __init__(self, paths: dict[str, str]):
        self.inputs = {name: StreamInput([path]) for name, path in paths.items()}
        self.lanes: list[Lane] = []
        self.bad: list[Result] = []
        self.read = self.size = 0

    def identity(self) -> list[str | None]:
        return [digest for source in self.inputs.values() for digest in source.identity()]

    def results(self) -> list[Input]:
        found = []
        for name, source in self.inputs.items():
            for item in source.results():
                item.label = name
                found.append(item)
        return found

    def scan(self, recipe: Recipe, tokenizer: str | None, settings: Settings, spill: Spill) -> None:
        for name, source in self.inputs.items():
            lane = Lane(name)
            self._scan(source, lane, partial(measuring, recipe.by, tokenizer), settings, spill)
            self.lanes.append(lane)
        spill.finish()

    def _scan(
        self, source: StreamInput, lane: Lane, measure: Callable[[bool], Transform], settings: Settings, spill: Spill
    ) -> None:
        stays = all(is_stream(one.name) for one in source.sources)
        work = Work(partial(measure, not stays), values=True, stop_at_error=settings.on_error_mode == "fail")
        job = Job(Stage("mix", __version__), settings, work)
        handed: deque[Chunk] = deque()

        def chunks() -> Iterator[Chunk]:
            for chunk in source.chunks():
                handed.append(chunk)
                yield chunk

        mapped = ordered_map(chunks(), work, settings.jobs, source.digest_input)
        before: Counter = Counter()  # lines of each file
        for result in checked(mapped, job, source, before):
            chunk = handed.popleft()
            self.read += result.read
            self.size += result.size
            sizes, lines = [size for size, _ in result.values], [line for _, line in result.values]
            if stays and not result.bad:
                lane.add(Block(chunk, result.size, result.read, np.array(sizes, np.uint32)))
                continue
            if result.bad:
                self.bad.append(Result(result.source, bad=result.bad))
                if stays:
                    passed_over = {bad.line - before[result.source] + result.lines for bad in result.bad}
                    lines = [line for number, line in enumerate(chunk.lines(), 1) if number not in passed_over]
            for size, line in zip(sizes, lines):
                spill.add(lane, line, size)


def is_stream(name: str) -> bool:
    """Whether a file is a whole stream of ours, which can be read from any frame on."""
    return name != "-" and is_regular(name) and read_index(name) is not None


class Mixer:
    """Gives the lines of the mixture; `state` after any of them is what another one goes on from."""

    def __init__(self, plan: Plan, lanes: list[Lane], seed: int, shuffle: bool):
        self.plan, self.lanes, self.seed, self.shuffle = plan, lanes, seed, shuffle
        self.start({"given": [0] * len(lanes), "taken": [0] * len(lanes), "done": False})

    def start(self, state: dict) -> None:
        self.given, self.done = list(state["given"]), state["done"]
        self.queues = [
            Queue(lane, self.seed, self.shuffle, limit, taken)
            for lane, limit, taken in zip(self.lanes, self.plan.limits, state["taken"])
        ]
        self.turns = self._turns()

    def _turns(self) -> Iterator[int]:
        wanted = curves(self.plan.phases)
        yield from turns(wanted, self.plan.total, self.given, lambda lane: self.queues[lane].next_size())
        for lane, owed in enumerate(self.plan.owed):  # records of size zero, and what rounding left
            while owed and (size := self.queues[lane].next_size()) is not None:
                self.given[lane] += size
                yield lane

    @property
    def state(self) -> dict:
        taken = [queue.taken for queue in self.queues]
        return {"given": list(self.given), "taken": taken, "done": self.done}

    def fill(self, outputs: Outputs, limit: int | None) -> None:
        """Put lines into an output until it has `limit` bytes of text, or all."""
        lines: list[bytes] = []
        waiting = 0
        for lane in self.turns:
            line = self.queues[lane].take()
            lines.append(line)
            waiting += len(line) + 1
            if waiting >= BATCH:
                put(outputs, lines)
                lines, waiting = [], 0
                if limit is not None and outputs.main.bytes >= limit:
                    return
        put(outputs, lines)
        self.done = True


def put(outputs: Outputs, lines: list[bytes]) -> None:
    outputs.main.add_text(b"\n".join([*lines, b""]) if lines else b"", len(lines), b"".join(map(line_digest, lines)))


def mix(
    paths: dict[str, str], recipe: Recipe, tokenizer: str | None, settings: Settings, seed: int, shuffle: bool
) -> Counts:
    """Mix sources, by name, to the output that the settings name."""
    started = time.monotonic()
    settings = replace(settings, inputs=list(paths.values()))
    sources = Sources({name: path for name, path in paths.items() if recipe.wishes[name].weight != 0})
    job = Job(Stage("mix", __version__, options_of(recipe, tokenizer, shuffle), seed), settings, Work(lambda: iter))
    made_by = None
    spill = Spill(spill_directory(settings))
    if settings.sharded:
        prepare(job)
        made_by = orjson.loads(
            orjson.dumps(
                job.stage.node()
                | {"input": sources.identity(), "shard_mib": settings.shard_mib, "on_error": settings.on_error_mode}
            )
        )
    sources.scan(recipe, tokenizer, settings, spill)
    mixer = Mixer(plan(recipe, sources.lanes), sources.lanes, seed, shuffle)
    counts = Counts(read=sources.read, bytes_in=sources.size)
    counts.skipped = sum(len(result.bad) for result in sources.bad)
    if made_by is not None:
        run_shards(job, sources, mixer, made_by, counts)
    else:
        with Outputs(settings) as outputs:
            for result in sources.bad:
                outputs.add(result)
            mixer.fill(outputs, None)
            outputs.finish(job.stage, sources.results(), counts)
    report("mix", settings, counts, time.monotonic() - started)
    return counts


def run_shards(job: Job, sources: Sources, mixer: Mixer, made_by: dict, counts: Counts) -> None:
    """Make the shards that are not there yet, in order: each begins in the state in which the one before it ended."""
    settings = job.settings
    directory = Path(settings.output or "")
    lineages: list[dict] = []
    with AtomicFile(directory / MANIFEST) as manifest:
        finished = find_finished(directory, made_by, [settings.quarantine])
        for number in count():
            if number in finished:
                lineages.append(finished[number])
                mixer.start(finished[number]["shard"]["state"])
            else:
                lineages.append(make_shard(job, sources, mixer, number, made_by))
            if mixer.done:
                break
        counts.kept = sum(lineage["output"]["records"] for lineage in lineages)
        counts.bytes_out = sum(lineage["output"]["bytes"] for lineage in lineages)
        publish(job, manifest, lineages, sources.results(), counts)


def make_shard(job: Job, sources: Sources, mixer: Mixer, number: int, made_by: dict) -> dict:
    with Outputs(job.settings, shard_name(number)) as outputs:
        for result in sources.bad if number == 0 else []:
            outputs.add(result)
        mixer.fill(outputs, job.settings.shard_mib << 20)
        inputs = [Input(digest) for digest in made_by["input"]]
        shard = {"number": number, "made_by": made_by, "state": mixer.state}
        return outputs.finish(job.stage, inputs, Counts(read=outputs.main.records), {"shard": shard})


def options_of(recipe: Recipe, tokenizer: str | None, shuffle: bool) -> dict:
    """What changes the output, as lineage has it."""
    from iqc.tokens.tokenizer import load

    sources = {name: {k: v for k, v in asdict(wish).items() if v is not None} for name, wish in recipe.wishes.items()}
    whole = {name: value for name, value in asdict(recipe).items() if name != "wishes" and value is not None}
    digest = load(Path(tokenizer)).digest if tokenizer else None
    return {"sources": sources, "shuffle": shuffle, "tokenizer": digest} | whole


def spill_directory(settings: Settings) -> str | None:
    """Beside the output, where there is room for as much again; the system's place for the standard output."""
    if settings.output in (None, "-"):
        return None
    return settings.output if settings.sharded and os.path.isdir(settings.output) else os.path.dirname(settings.output)
