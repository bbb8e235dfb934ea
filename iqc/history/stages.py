"""`triplets` as a source stage: sections of repositories in, (R_old, P, R_new) records out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iqc.errors import BadRecord, IqcError
from iqc.history.git import Repository
from iqc.history.life import Section
from iqc.history.triplets import Options, sections, triplets
from iqc.streams.runner import ItemInput
from iqc.streams.stage import Dropped, Raw, Record, Transform


@dataclass(frozen=True, slots=True)
class Item:
    """A section of the repository at `path`, or why there is none."""

    path: str
    section: Section | None = None
    error: IqcError | None = None


def name_of(path: str) -> str:
    """What a repository is called when nothing else is said: its directory's name, which its records carry."""
    return Path(path).resolve().name.removesuffix(".git")


def open_repositories(paths: list[str], options: Options) -> ItemInput:
    """Sections of repositories as the items of a source stage; a resume compares the names and heads."""

    def listing() -> str:
        return (
            "sha256:"
            + hashlib.sha256("\n".join(f"{name_of(path)} {_head(path)}" for path in paths).encode()).hexdigest()
        )

    return ItemInput(_items(paths, options), f"git history of {', '.join(map(name_of, paths))}", listing=listing)


def _head(path: str) -> str:
    try:
        with Repository(path) as repository:
            return repository.head
    except IqcError as error:
        return error.what


def _items(paths: list[str], options: Options) -> Iterator[Item]:
    """A repository that cannot be read is an item, too: whether it ends the run is for --on-error to say."""
    for path in paths:
        try:
            with Repository(path) as repository:
                for section in sections(repository, options):
                    yield Item(path, section)
        except IqcError as error:
            yield Item(path, error=error)


def mine(options: Options, item: Item) -> Iterator[Record | Dropped | Raw]:
    """The triplets of one section; what is wrong with it is a bad record."""
    try:
        if item.error is not None:
            raise item.error
        assert item.section is not None
        yield Raw(hashlib.sha256(f"{name_of(item.path)} {item.section}".encode()).digest(), 0)
        yield from triplets(item.path, options, item.section)
    except IqcError as error:
        raise BadRecord(error.what, where=error.where or item.path, remedy=error.remedy) from None


def transform(options: Options) -> Transform:
    def one(item: Item) -> Iterable[Record | Dropped | Raw]:
        return mine(options, item)

    return one


def factory(options: Options) -> Callable[[], Transform]:
    return partial(transform, options)
