"""The first reading of a mixture's sources: every record is checked, measured and told its lane.

A stream of ours whose records all go to one lane stays where it is. Anything else (a pipe, plain text, gzip, a source
that is parted by language or difficulty, a frame with a bad record in it) is copied into the temporary file.
"""

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iqc import __version__
from iqc.errors import BadRecord, UsageError
from iqc.streams.container import read_index
from iqc.streams.lineage import Input, Stage
from iqc.streams.output import Outputs
from iqc.streams.pool import ordered_map
from iqc.streams.progress import Progress
from iqc.streams.reader import Chunk, is_regular
from iqc.streams.runner import Counts, Job, Settings, StreamInput, checked
from iqc.streams.stage import Dropped, Record, Transform, metadata_of, require
from iqc.streams.worker import Result, Work
from iqc.streams.writer import ROW, dump
from iqc.tokens.mix.lanes import Block, Lane, Spill, repeat_of
from iqc.tokens.mix.recipe import REST, Difficulty, Recipe


@dataclass(slots=True)
class Parting:
    """How the records of a source are told apart: by languages, all there are where none is named, and by bands."""

    by_language: bool
    languages: list[str]
    difficulty: Difficulty | None

    @property
    def parts(self) -> bool:
        return self.by_language or self.difficulty is not None

    def language(self, record: Record) -> str | None:
        """The language of its lane; None when the proportions have no room for it."""
        if not self.by_language:
            return ""
        lang = metadata_of(record).get("lang")
        lang = lang if isinstance(lang, str) and lang else REST
        if not self.languages or lang in self.languages:
            return lang
        return REST if REST in self.languages else None

    def band(self, record: Record) -> str:
        """The band of its score, "" where it has none."""
        value = None if self.difficulty is None else score(record, self.difficulty.field)
        if self.difficulty is None or value is None:
            return ""
        return self.difficulty.bands[bisect_right(self.difficulty.bounds, value)]


def score(record: Record, name: str) -> float | None:
    """A number at a dotted place; None where there is nothing. BadRecord: something else is there."""
    value: Any = record
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise BadRecord(f'field "{name}": expected a number, found {type(value).__name__}')
    return value


def counter(by: str, tokenizer: str | None) -> Callable[[Record], int]:
    """The tokens of a record as `pack` makes them, none of what it would drop; 0 where nobody asks for tokens."""
    if by != "tokens":
        return lambda record: 0
    from iqc.tokens.pack import Encoded
    from iqc.tokens.sequence import decode_sequence
    from iqc.tokens.tokenise import Options, samples
    from iqc.tokens.tokenizer import load

    loaded, options = load(Path(tokenizer)) if tokenizer else None, Options()

    def tokens(record: Record) -> int:
        if record.keys() >= ROW:
            return decode_sequence(record).tokens.size
        if loaded is None:
            raise UsageError(
                "--by tokens of records that are no sequences", remedy="--tokenizer DIR counts their tokens"
            )
        return sum(one.row.tokens.size for one in samples(record, loaded, options) if isinstance(one, Encoded))

    return tokens


def measuring(by: str, tokenizer: str | None, parting: Parting, copied: bool) -> Transform:
    """The map of the first reading: a record to its tokens, where they are asked for; to (tokens, line, language, band)
    where it is copied."""
    tokens = counter(by, tokenizer)
    if by != "tokens" and not copied:
        return checked_record

    def transform(record: Record) -> Iterator[Any]:
        yield from checked_record(record)
        language = parting.language(record)
        if language is None:
            yield Dropped(record, "language", metadata_of(record).get("lang"))
        elif copied:
            yield tokens(record), dump(record), language, parting.band(record)
        else:
            yield tokens(record)

    return transform


class Repeat(int):
    """How often a record was given up to here, by its id."""


def checked_record(record: Record) -> tuple[Repeat, ...]:
    """The map of the first reading where nothing is measured."""
    _, number = repeat_of(require(record, "id"))
    return (Repeat(number),) if number > 1 else ()


def scoring(name: str) -> Transform:
    """The map of a reading before it, which quantiles need: a record to its score."""

    def transform(record: Record) -> Iterator[float]:
        value = score(record, name)
        if value is not None:
            yield value

    return transform


class Sources:
    """The inputs of a mixture by name, and what their first reading finds: the lanes, and counts."""

    def __init__(self, paths: dict[str, str], recipe: Recipe, tokenizer: str | None, settings: Settings):
        self.paths = paths
        self.inputs = {name: open_source(path) for name, path in paths.items()}
        self.recipe, self.tokenizer, self.settings = recipe, tokenizer, settings
        self.lanes: list[Lane] = []
        self.counts = Counts()

    def identity(self) -> list[str | None]:
        """The digests of all inputs: what a resume compares."""
        return [digest for source in self.inputs.values() for digest in source.identity()]

    def results(self) -> list[Input]:
        """What lineage says of them: each has its name as label."""
        return [replace(item, label=name) for name, source in self.inputs.items() for item in source.results()]

    def scan(self, spill: Spill, outputs: Outputs | None) -> None:
        """Find the lanes. Bad records and those that fit no proportion go to the outputs' side streams."""
        difficulty = self.recipe.difficulty
        if difficulty and difficulty.quantiles:
            difficulty = replace(difficulty, bounds=self._quantiles(difficulty))
        for name in self.inputs:
            parted = self.recipe.parted_by_language(name)
            parting = Parting(
                parted,
                list(self.recipe.wishes[name].languages or self.recipe.languages) if parted else [],
                difficulty if self.recipe.parted_by_difficulty(name) else None,
            )
            self.lanes += self._scan(name, parting, spill, outputs)
        spill.finish()
        if difficulty and not any(lane.band and lane.records for lane in self.lanes):
            raise no_score(difficulty)
        self._refuse_twins()

    def _refuse_twins(self) -> None:
        """UsageError where two sources are the same records, whose ids would then not be unique."""
        names: dict[str | None, str] = {}
        for name, source in self.inputs.items():
            for item in source.results():
                other = names.setdefault(item.digest, name) if item.records else name
                if other != name and not (self.recipe.wishes[name].languages and self.recipe.wishes[other].languages):
                    what = f"sources {other} and {name} hold the same records"
                    raise UsageError(what, remedy="name it once, with a larger weight or more epochs")

    def _scan(self, name: str, parting: Parting, spill: Spill, outputs: Outputs | None) -> list[Lane]:
        lanes: dict[tuple[str, str], Lane] = {}
        bands = ["", *(parting.difficulty.bands if parting.difficulty else [])]

        def lane_of(language: str, band: str) -> Lane:
            if (language, band) not in lanes:
                lanes.update({(language, each): Lane(name, language, each) for each in bands})
            return lanes[language, band]

        for language in parting.languages if parting.by_language else [""]:
            lane_of(language, "")
        stays = not parting.parts and all(is_stream(one.name) for one in self.inputs[name].sources)
        measure = partial(measuring, self.recipe.by, self.tokenizer, parting, not stays)
        repeats = 1
        for chunk, result, bad in self._results(name, measure):
            self.counts.add(result)
            if outputs:
                outputs.add(replace(result, output=[]))
            repeats = max([repeats, *(value for value in result.values if type(value) is Repeat)])
            result.values = [value for value in result.values if type(value) is not Repeat]
            if stays and not bad:
                lane_of("", "").add(self._block(chunk, result))
                continue
            values = result.values
            if stays:
                lines = [line for number, line in enumerate(chunk.lines(), 1) if number not in bad]
                values = [(tokens, line, "", "") for tokens, line in zip(values or [0] * len(lines), lines)]
            for tokens, line, language, band in values:
                size = {"tokens": tokens, "bytes": len(line) + 1}.get(self.recipe.by, 1)
                spill.add(lane_of(language, band), line, size)
        order = parting.languages or sorted({language for language, _ in lanes})
        for lane in lanes.values():
            lane.repeats = repeats
        return [lanes[language, band] for language in order for band in bands]

    def _block(self, chunk: Chunk, result: Result) -> Block:
        """A chunk that stays where it is."""
        sizes = np.array(result.values, np.uint32) if self.recipe.by == "tokens" else None
        amount = {"tokens": sum(result.values), "bytes": result.size}.get(self.recipe.by, result.read)
        return Block(chunk, result.size, result.read, amount, sizes)

    def _results(self, name: str, factory: Callable[[], Transform]) -> Iterator[tuple[Chunk, Result, set[int]]]:
        """What became of each chunk, and the numbers of its bad lines, from 1."""
        source = self.inputs[name]
        work = Work(
            factory,
            values=True,
            explain=self.settings.explain is not None,
            stop_at_error=self.settings.on_error_mode == "fail",
        )
        job = Job(Stage("mix", __version__), self.settings, work)
        handed: deque[Chunk] = deque()

        def chunks() -> Iterator[Chunk]:
            for chunk in source.chunks():
                handed.append(chunk)
                yield chunk

        lines: Counter = Counter()  # of each file, up to the end of the chunk
        with Progress("mix", self.settings) as progress:
            mapped = ordered_map(chunks(), work, self.settings.jobs, source.digest_input)
            for result in checked(mapped, job, source, lines):
                progress.update(result)
                first = lines[result.source] - result.lines
                yield handed.popleft(), result, {bad.line - first for bad in result.bad}

    def _quantiles(self, difficulty: Difficulty) -> list[float]:
        """The scores at the quantiles of all sources that are parted."""
        found: list[float] = []
        for name, source in list(self.inputs.items()):
            if self.recipe.parted_by_difficulty(name):
                if not all(is_regular(one.name) for one in source.sources):
                    raise UsageError(f"quantiles of source {name}, a pipe", remedy="give scores as bounds, or a file")
                for _, result, _ in self._results(name, partial(scoring, difficulty.field)):
                    found += result.values
                self.inputs[name] = open_source(self.paths[name])  # it counts what it reads
        found.sort()
        if not found:
            raise no_score(difficulty)
        return [found[int(bound * len(found))] for bound in difficulty.bounds]


def no_score(difficulty: Difficulty) -> UsageError:
    return UsageError(f'no record has a number "{difficulty.field}"', remedy="name the field of the scores")


def open_source(path: str) -> StreamInput:
    return StreamInput([] if path == "-" else [path])  # none: the standard input, unless it is a terminal


def is_stream(name: str) -> bool:
    """Whether a file is a whole stream of ours, which can be read from any frame on."""
    return name != "-" and is_regular(name) and read_index(name) is not None
