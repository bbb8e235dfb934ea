"""The runner: it alone knows files, processes, order, progress, errors, lineage and resume.

`run_stage` takes the input of a stage (streams, or the items of a source), a factory of its transform and, for a set
stage, the `reduce` that turns all mapped values into records in this process. It returns the counts.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson

from iqc import __version__
from iqc.cores import usable_cores
from iqc.errors import BadRecord, UsageError
from iqc.streams.lineage import Input, Stage, line_digest
from iqc.streams.output import Outputs, RollingOutputs, check_parent
from iqc.streams.pool import ordered_map
from iqc.streams.progress import Progress
from iqc.streams.reader import Chunk, Source, open_inputs, results, shown
from iqc.streams.stage import Dropped, Record, Transform
from iqc.streams.worker import Bad, Items, Result, Work, parse
from iqc.streams.writer import write_file

Reduce = Callable[[Iterator[Any]], Iterator[Record | Dropped]]


@dataclass(slots=True)
class Settings:
    """The options that all stages share; the command line fills it."""

    inputs: list[str] | None = None  # standard input
    output: str | None = None
    plain: bool = False
    jobs: int = 0  # 0: all usable cores
    on_error: str = "fail"  # or skip, or quarantine=FILE
    explain: str | None = None
    summary: str | None = None
    quiet: bool = False
    ray: str | None = None
    input_digest: str | None = None
    shard_mib: int = 256

    def __post_init__(self) -> None:
        self.jobs = self.jobs or usable_cores()
        mode, _, path = self.on_error.partition("=")
        if mode not in ("fail", "skip", "quarantine") or (mode == "quarantine") != bool(path):
            raise UsageError(f"--on-error {self.on_error}", remedy="use --on-error fail, skip, or quarantine=FILE")
        self._check_paths()

    def _check_paths(self) -> None:
        """No file is written twice, no input is written over by a side stream, and none is found missing at the end."""
        sides = {"--explain": self.explain, "--on-error quarantine": self.quarantine, "--summary": self.summary}
        taken = {os.path.realpath(name): "an INPUT" for name in self.inputs or [] if os.path.isfile(name)}
        if self.output not in (None, "-") and (os.path.isfile(self.output) or not os.path.exists(self.output)):
            taken[os.path.realpath(self.output)] = "-o"
        for option, path in sides.items():
            if path is None or (os.path.exists(path) and not os.path.isfile(path)):
                continue  # a directory is checked with its shards; a device takes any number of writers
            place = os.path.realpath(path)
            if place in taken:
                raise UsageError(f"{option} {path} is {taken[place]}, too", remedy="give each stream a file of its own")
            taken[place] = option
            if not path.endswith("/"):
                check_parent(path)

    @property
    def on_error_mode(self) -> str:
        """fail, skip or quarantine."""
        return self.on_error.partition("=")[0]

    @property
    def quarantine(self) -> str | None:
        return self.on_error.partition("=")[2] or None

    @property
    def sharded(self) -> bool:
        return self.output is not None and (self.output.endswith("/") or os.path.isdir(self.output))


@dataclass(slots=True)
class Counts:
    """What became of the records: the same numbers in lineage, in --summary and on the terminal."""

    read: int = 0
    kept: int = 0
    skipped: int = 0  # bad records passed over by --on-error
    dropped: Counter = field(default_factory=Counter)
    noted: Counter = field(default_factory=Counter)
    bytes_in: int = 0
    bytes_out: int = 0
    extra: dict = field(default_factory=dict)  # what a stage measured of itself

    def add(self, result: Result) -> None:
        self.read += result.read
        self.bytes_in += result.size
        self.skipped += len(result.bad)
        self.dropped.update(result.dropped)
        self.noted.update(result.noted)

    def merge(self, counts: dict) -> None:
        """Add the counts that a finished shard has in its lineage."""
        self.read += counts["read"]
        self.kept += counts["kept"]
        self.skipped += counts.get("skipped", 0)
        self.dropped.update(counts["dropped"])
        self.noted.update(counts.get("noted", {}))

    def json(self) -> dict:
        counts = {"read": self.read, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}
        counts |= {"noted": dict(sorted(self.noted.items()))} if self.noted else {}
        return counts | ({"skipped": self.skipped} if self.skipped else {}) | self.extra


class StreamInput:
    """Stream files, or the standard input, as the input of a stage."""

    def __init__(self, names: list[str], digest: str | None = None):
        self.sources: list[Source] = open_inputs(names)
        self.given_digest = digest

    def chunks(self) -> Iterator[Chunk]:
        for source in self.sources:
            yield from source.chunks()

    def digest_input(self, chunk: Chunk) -> bool:
        source = self.sources[chunk.source]
        return not source.ours and not source.prepared

    def add(self, result: Result) -> None:
        self.sources[result.source].add(result.read, result.input_digests)

    def name(self, number: int) -> str:
        return shown(self.sources[number].name)

    def results(self) -> list[Input]:
        return results(self.sources)

    def identity(self) -> list[str | None]:
        """The digests of the inputs before the work starts: what a resume compares."""
        return [self.given_digest] if self.given_digest else [source.known_digest() for source in self.sources]


class ItemInput:
    """The items of a source stage (files, archives, repositories), handed out `batch` at a time.

    `label` is what lineage and errors call them; `listing` gives a digest of what they are, for a resume to compare.
    """

    def __init__(self, items: Iterable[Any], label: str, batch: int = 1, listing: Callable[[], str] | None = None):
        self.items = items
        self.batch = batch
        self.label = label
        self.listing = listing
        self.source = Source(label)
        self.source.whole = True

    def chunks(self) -> Iterator[Items]:
        batch: list[Any] = []
        for item in self.items:
            batch.append(item)
            if len(batch) == self.batch:
                yield Items(batch)
                batch = []
        if batch:
            yield Items(batch)

    def digest_input(self, chunk: Items) -> bool:
        return True

    def add(self, result: Result) -> None:
        self.source.add(result.read, result.input_digests)

    def name(self, number: int) -> str:
        return self.label

    def results(self) -> list[Input]:
        found = self.source.result()
        found.label = self.label
        return [found]

    def identity(self) -> list[str | None]:
        return [self.listing() if self.listing else None]


StageInput = StreamInput | ItemInput


@dataclass(slots=True)
class Job:
    """A stage with all that is needed to run it on some chunks, here or elsewhere."""

    stage: Stage
    settings: Settings
    work: Work


def run_stage(
    command: str,
    options: dict,
    settings: Settings,
    factory: Callable[[], Transform],
    source: StageInput | None = None,
    seed: int | None = None,
    reduce: Reduce | None = None,
    measure: Callable[[], dict] | None = None,
) -> Counts:
    """Run a stage from its inputs to its output.

    `options` are those that change the output. `factory` (picklable) makes the transform, once a process. With `reduce`
    the transform's values go to it, in order, in this process. `measure` gives the stage's own numbers for the summary.
    """
    started = time.monotonic()
    work = Work(
        factory,
        values=reduce is not None,
        plain=settings.plain,
        explain=settings.explain is not None,
        stop_at_error=settings.on_error == "fail",
    )
    job = Job(Stage(command, __version__, options, seed), settings, work)
    source = source or StreamInput(settings.inputs or [], settings.input_digest)
    if settings.ray or (settings.sharded and reduce is None):
        from iqc.streams.shards import run_sharded

        counts = run_sharded(job, source, reduce)
    elif settings.sharded and reduce is not None:
        from iqc.streams.shards import run_rolling

        counts = run_rolling(job, source, reduce, measure)
    else:
        counts = Counts()
        with Outputs(settings) as outputs:
            run_chunks(job, source, source.chunks(), outputs, counts, Counter(), reduce)
            counts.extra = measure() if measure else {}
            outputs.finish(job.stage, source.results(), counts)
    report(command, settings, counts, time.monotonic() - started)
    return counts


def run_chunks(
    job: Job,
    source: StageInput,
    chunks: Iterable[Any],
    outputs: Outputs | RollingOutputs,
    counts: Counts,
    lines: Counter,
    reduce: Reduce | None = None,
) -> None:
    """Put what becomes of the chunks into the outputs. `lines`: how many lines of each input came before them."""
    with Progress(job.stage.command, job.settings) as progress:
        mapped = checked(ordered_map(chunks, job.work, job.settings.jobs, source.digest_input), job, source, lines)

        def values() -> Iterator[Any]:
            for result in mapped:
                counts.add(result)
                outputs.add(result)
                progress.update(result)
                yield from result.values

        for record in (reduce or iter)(values()):
            if isinstance(record, Dropped):
                counts.dropped[record.rule] += 1
                outputs.drop(record)
            else:
                outputs.add_record(record)


def checked(found: Iterator[Result], job: Job, source: StageInput, lines: Counter) -> Iterator[Result]:
    """Number the lines of bad records; raise the first one when none is allowed; keep the digests of the inputs."""
    for result in found:
        for bad in result.bad:
            bad.file, bad.line = source.name(result.source), bad.line + lines[result.source]
        if result.bad and job.work.stop_at_error:
            first = result.bad[0]
            place = first.file if isinstance(source, ItemInput) else f"{first.file}:{first.line}"
            raise located(first, place)
        lines[result.source] += result.lines
        source.add(result)
        yield result


def located(bad: Bad, place: str) -> BadRecord:
    remedy = bad.remedy or "--on-error skip passes over such records and counts them"
    return BadRecord(bad.what, where=place, remedy=remedy)


def keep(record: Record) -> tuple[Record]:
    """The transform that changes nothing."""
    return (record,)


def identity_factory() -> Transform:
    return keep


def read_records(
    source: StreamInput, skip_bad: bool = False, factory: Callable[[], Transform] = identity_factory
) -> Iterator[Any]:
    """All records of streams, in order, for sinks, or what a transform makes of them; a bad one is named by file and
    line. Afterwards `source.results()` is what lineage says of them."""
    work = Work(factory, values=True, stop_at_error=not skip_bad)
    job = Job(Stage("read", __version__), Settings(jobs=1), work)
    for result in checked(ordered_map(source.chunks(), work, 1, source.digest_input), job, source, Counter()):
        yield from result.values


def write_records(
    command: str,
    options: dict,
    settings: Settings,
    records: Iterable[Record],
    inputs: Callable[[], list[Input]],
    seed: int | None = None,
) -> Counts:
    """Write the records that a command makes by itself (it generated or scored them). `inputs` is called at the end."""
    started = time.monotonic()
    counts = Counts()
    with one_output(command, settings) as outputs:
        for record in records:
            outputs.add_record(record)
            counts.read += 1
        outputs.finish(Stage(command, __version__, options, seed), inputs(), counts)
    report(command, settings, counts, time.monotonic() - started)
    return counts


def report(command: str, settings: Settings, counts: Counts, seconds: float) -> None:
    """The summary: JSON for --summary, and a line for a person."""
    if settings.summary:
        times = {"bytes_in": counts.bytes_in, "bytes_out": counts.bytes_out, "seconds": round(seconds, 3)}
        summary = {"command": command} | counts.json() | times
        write_file(settings.summary, orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    if not settings.quiet:
        dropped = ", ".join(f"{rule} {count}" for rule, count in counts.dropped.most_common())
        parts = [f"read {counts.read}", f"kept {counts.kept}"]
        parts += [f"dropped {counts.dropped.total()} ({dropped})"] if dropped else []
        parts += [f"skipped {counts.skipped} bad"] if counts.skipped else []
        parts += [f"{key} {value}" for key, value in counts.extra.items() if not isinstance(value, dict | list)]
        print(f"iqc {command}: {', '.join(parts)}; {counts.bytes_out / 1e6:.1f} MB in {seconds:.1f} s", file=sys.stderr)


def run_first(number: int, settings: Settings) -> Counts:
    """The first `number` records of streams; what comes after them is not looked at."""
    started = time.monotonic()
    source, counts = StreamInput(settings.inputs or []), Counts()
    with one_output("head -n N", settings) as outputs:
        for record in islice(one_by_one(source, settings, outputs, counts), number):
            outputs.add_record(record)
        outputs.finish(Stage("head", __version__, {"count": number}), source.results(), counts)
    report("head", settings, counts, time.monotonic() - started)
    return counts


def one_by_one(source: StreamInput, settings: Settings, outputs: Outputs, counts: Counts) -> Iterator[Record]:
    """The records of streams, each parsed when it is asked for."""
    lines: Counter = Counter()
    for chunk in source.chunks():
        for line in chunk.lines():
            lines[chunk.source] += 1
            if not line or line.isspace():
                continue
            result = Result(chunk.source, read=1, size=len(line) + 1)
            if source.digest_input(chunk):
                result.input_digests = line_digest(line)
            try:
                record = parse(line)
            except BadRecord as error:
                bad = Bad(lines[chunk.source], error.what, error.remedy, line, source.name(chunk.source))
                if settings.on_error == "fail":
                    raise located(bad, f"{bad.file}:{bad.line}") from None
                result.bad = [bad]
            counts.add(result)
            outputs.add(result)
            source.add(result)
            if not result.bad:
                yield record


def one_output(command: str, settings: Settings) -> Outputs:
    """The output of a command that makes one file."""
    if settings.sharded or settings.ray:
        raise UsageError(f"{command} writes one file", remedy="name a FILE as -o, without --ray")
    return Outputs(settings)
