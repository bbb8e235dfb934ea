"""Histories as a source stage: parts of repositories in; triplets, commits or pull requests out.

What comes out is said by the type of the options. A part is a section of a first-parent line, or some threads of an
export. A repository that cannot be read is an item as well: whether it ends the run is for --on-error to say.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from iqc.errors import BadRecord, IqcError
from iqc.history import commits, pulls, triplets
from iqc.history.filters import Limits, judge, read_metadata
from iqc.history.git import Repository
from iqc.history.inputs import name_repositories
from iqc.history.life import Section, cut
from iqc.history.threads import Threads, read_export
from iqc.streams.runner import ItemInput
from iqc.streams.stage import Dropped, Raw, Record, Transform

Options = triplets.Options | commits.Options | pulls.Options
_COMMITS = 1024  # in a section, where each is a record; sections start with reading what changed since the last one
_PULLS = 2000  # in an item, each of which reads the whole line


@dataclass(frozen=True, slots=True)
class Source:
    """A repository: its directory, and its name in records."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Item:
    """A part of a repository to be mined, or why there is none."""

    source: Source
    part: Section | Threads | Dropped | IqcError


def sources(inputs: Sequence[str]) -> list[Source]:
    """The INPUTs of the command, [NAME=]DIR."""
    return [Source(path, name) for name, path in name_repositories(inputs).items()]


def open_repositories(
    found: Sequence[Source],
    options: Options,
    metadata: str | None = None,
    limits: Limits | None = None,
    skip_bad: bool = False,
) -> ItemInput:
    """Parts of repositories as the items of a source stage; a resume compares names, heads and side files.

    With `metadata`, the file of filters.py, repositories are held against the limits. With `skip_bad` a bad line of the
    export is an item, not an error.
    """

    def listing() -> str:
        rows = [f"{source.name} {_head(source.path)}" for source in found]
        files = [metadata] if metadata else []
        files += options.export if isinstance(options, pulls.Options) else []
        rows += [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
        return "sha256:" + hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def items() -> Iterator[Item]:
        names = [source.name for source in found]
        known = read_metadata(metadata, names) if metadata else {}
        bad: list[BadRecord] = []
        threads = read_export(options.export, names, skip_bad, bad) if isinstance(options, pulls.Options) else {}
        for line in bad:
            yield Item(Source("", "export"), line)
        for source in found:
            try:
                if limits and (dropped := judge(source.path, source.name, known, limits)):
                    yield Item(source, dropped)
                    continue
                for part in _parts(source, options, threads.get(source.name, {})):
                    yield Item(source, part)
            except IqcError as error:
                yield Item(source, error)

    return ItemInput(items(), f"git history of {', '.join(source.name for source in found)}", listing=listing)


def _head(path: str) -> str:
    try:
        with Repository(path) as repository:
            return repository.head
    except IqcError as error:
        return error.what


def _parts(source: Source, options: Options, threads: Threads) -> Iterator[Section | Threads]:
    if isinstance(options, pulls.Options):
        issues = {number: thread for number, thread in threads.items() if not thread.pull}
        numbers = sorted(threads.keys() - issues.keys())
        for start in range(0, len(numbers), _PULLS):
            yield issues | {number: threads[number] for number in numbers[start : start + _PULLS]}
        return
    with Repository(source.path) as repository:
        if isinstance(options, triplets.Options):
            yield from triplets.sections(repository, options)
            return
        line = commits.window(repository, options.window).line
        starts = range(line.first, line.last + 1, _COMMITS)
        yield from cut(repository, line, [(start, min(start + _COMMITS - 1, line.last)) for start in starts])


def transform(options: Options) -> Transform:
    """The map: the records of a part; what is wrong with it is a bad record."""
    states: dict = {}  # of the last commit that this process was at

    def records(item: Item) -> Iterable[Record | Dropped]:
        path, part, own = item.source.path, item.part, replace(options, name=item.source.name)
        if isinstance(part, IqcError):
            raise part
        if isinstance(part, Dropped):
            return [part]
        if isinstance(own, pulls.Options):
            assert isinstance(part, dict)
            return pulls.pulls(path, own, part)
        assert isinstance(part, Section)
        if isinstance(own, triplets.Options):
            return triplets.triplets(path, own, part)
        return commits.commits(path, own, part, states)

    def one(item: Item) -> Iterator[Record | Dropped | Raw]:
        try:
            yield Raw(hashlib.sha256(f"{item.source.name} {_identity(item.part)!r}".encode()).digest(), 0)
            yield from records(item)
        except IqcError as error:
            raise BadRecord(error.what, where=error.where or item.source.path, remedy=error.remedy) from None

    return one


def _identity(part: Section | Threads | Dropped | IqcError) -> object:
    """What tells a part from others: of threads, the pull requests."""
    return [thread for thread in part.values() if thread.pull] if isinstance(part, dict) else part


def factory(options: Options) -> Callable[[], Transform]:
    return partial(transform, options)
