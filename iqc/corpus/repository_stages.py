"""`repos` as a source stage: repositories in, the best first, records of them or of their files out."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from iqc.corpus.repositories import Options, documents, repositories
from iqc.corpus.scores import Scores
from iqc.corpus.snapshots import Snapshot, is_git, read_commit, read_tree
from iqc.errors import BadRecord, IqcError, UsageError
from iqc.history.git import Repository
from iqc.history.inputs import name_repositories
from iqc.streams.runner import ItemInput
from iqc.streams.stage import Dropped, Raw, Record, Transform
from iqc.tokens.tokenizer import load


@dataclass(frozen=True, slots=True)
class Source:
    """One repository: its directory, its name in records, the commit that is read where it is a Git repository."""

    path: str
    name: str
    revision: str = "HEAD"
    scores: Scores = field(default_factory=Scores)


def sources(inputs: Sequence[str], revision: str) -> list[Source]:
    """The INPUTs of the command, [NAME=]DIR. UsageError: one is not a directory."""
    found = name_repositories(inputs)
    for path in found.values():
        if not Path(path).is_dir():
            raise UsageError(f"{path} is no directory", remedy="name source trees or git repositories: [NAME=]DIR")
    return [Source(path, name, revision) for name, path in found.items()]


def ranked(found: Sequence[Source], scores: dict[str, Scores]) -> list[Source]:
    """Repositories by their mean score, the highest first, then those without one; equal ones as they were given."""
    scored = [Source(one.path, one.name, one.revision, scores[one.name]) for one in found]
    return sorted(scored, key=lambda one: (one.scores.mean is None, -(one.scores.mean or 0.0)))


def read(source: Source, max_bytes: int) -> Snapshot:
    if is_git(source.path):
        return read_commit(source.path, source.name, source.revision, max_bytes)
    return read_tree(source.path, source.name, max_bytes)


def open_sources(found: list[Source], max_bytes: int) -> ItemInput:
    """Repositories as the items of a stage; a resume compares their names with their commits or contents."""

    def state(source: Source) -> str:
        if not is_git(source.path):
            return read_tree(source.path, source.name, max_bytes).digest.hex()
        with Repository(source.path, source.revision, shallow=True) as repository:
            return repository.head

    def listing() -> str:
        whole = "\n".join(f"{source.name} {state(source)}" for source in found)
        return "sha256:" + hashlib.sha256(whole.encode()).hexdigest()

    return ItemInput(found, f"repositories {', '.join(source.name for source in found)}", listing=listing)


def transform(options: Options, tokenizer: str | None) -> Transform:
    """The map. A repository that cannot be read is a bad record; a file of it that cannot be used is Dropped."""
    loaded = load(Path(tokenizer)) if tokenizer else None

    def one(source: Source) -> Iterator[Record | Dropped | Raw]:
        mean = source.scores.mean
        if options.min_quality is not None and (mean is None or mean < options.min_quality):
            record = {"id": source.name, "repo": source.name, "files": [], "metadata": {"quality": mean}}
            yield Dropped(record, "quality", mean, options.min_quality)
            return
        try:
            snapshot = read(source, options.max_file_bytes)
        except IqcError as error:
            raise BadRecord(error.what, where=error.where or source.path, remedy=error.remedy) from None
        yield Raw(snapshot.digest, snapshot.size)
        yield from snapshot.dropped
        if options.whole:
            yield from repositories(snapshot, options, source.scores, loaded)
        else:
            yield from documents(snapshot, options, source.scores)

    return one


def factory(options: Options, tokenizer: str | None) -> Callable[[], Transform]:
    return partial(transform, options, tokenizer)
