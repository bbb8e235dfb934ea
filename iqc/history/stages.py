"""`triplets` as a source stage: repositories in, (R_old, P, R_new) records out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from iqc.errors import BadRecord, IqcError
from iqc.history.git import Repository
from iqc.history.triplets import Options, triplets
from iqc.streams.runner import ItemInput
from iqc.streams.stage import Dropped, Raw, Record, Transform


def head(path: str) -> str:
    """The commit that a repository's HEAD names; IqcError by name when it has none."""
    with Repository(path) as repository:
        return repository.first_parents()[-1]


def name_of(path: str) -> str:
    """What a repository is called when nothing else is said: its directory's name, which its records carry."""
    return Path(path).resolve().name.removesuffix(".git")


def open_repositories(paths: list[str]) -> ItemInput:
    """Repositories as the items of a source stage; a resume compares their names and heads."""

    def listing() -> str:
        heads = "\n".join(f"{name_of(path)} {head(path)}" for path in paths)
        return "sha256:" + hashlib.sha256(heads.encode()).hexdigest()

    return ItemInput(paths, f"git history of {', '.join(map(name_of, paths))}", listing=listing)


def mine(options: Options, path: str) -> Iterator[Record | Dropped | Raw]:
    """The triplets of one repository; what is wrong with it is a bad record."""
    try:
        yield Raw(hashlib.sha256(f"{name_of(path)} {head(path)}".encode()).digest(), 0)
        yield from triplets(path, options)
    except IqcError as error:
        raise BadRecord(error.what, where=error.where or path, remedy=error.remedy) from None


def transform(options: Options) -> Transform:
    def one(path: str) -> Iterable[Record | Dropped | Raw]:
        return mine(options, path)

    return one


def factory(options: Options) -> Callable[[], Transform]:
    return partial(transform, options)
