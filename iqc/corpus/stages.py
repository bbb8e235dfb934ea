"""`crawl-clean` as a stage: source trees, web archives or streams of documents in, clean documents out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from iqc.corpus.clean import CleanOptions, clean
from iqc.corpus.trees import list_files, read_file
from iqc.corpus.warc import documents
from iqc.errors import BadRecord, IqcError, UsageError
from iqc.streams.reader import MANIFEST
from iqc.streams.runner import ItemInput, StreamInput
from iqc.streams.stage import Dropped, Raw, Record, Transform

BATCH = 256  # files that a worker takes at a time
ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".warc.zst", ".wet", ".wet.gz", ".warc.wet.gz", ".arc", ".arc.gz")


@dataclass(slots=True, frozen=True)
class TreeFile:
    """One file of a source tree; `repo` is the tree's name."""

    root: str
    path: str
    source: str
    repo: str


@dataclass(slots=True, frozen=True)
class Archive:
    """One WARC or WET file."""

    path: str


def is_tree(name: str) -> bool:
    return os.path.isdir(name) and not os.path.exists(os.path.join(name, MANIFEST))


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def open_corpus(names: list[str], source: str | None) -> ItemInput | StreamInput:
    """What the INPUTs are: trees and archives are items, anything else is a stream of documents; never both."""
    raw = [name for name in names if is_tree(name) or is_archive(name)]
    if not raw:
        return StreamInput(names)
    if len(raw) < len(names):
        mixed = next(name for name in names if name not in raw)
        raise UsageError(
            f"{mixed} is a stream, {raw[0]} is not", remedy="clean streams of documents in a call of their own"
        )
    for name in raw:
        if not os.path.exists(name):
            raise IqcError("no such file", where=name, remedy="name source trees, web archives, or streams")
    kinds = sorted({"source tree" if is_tree(name) else "web archive" for name in raw})
    label = f"{' and '.join(kinds)} {source or ', '.join(Path(name).resolve().name for name in raw)}"
    return ItemInput(Items(raw, source), label, batch=BATCH if "source tree" in kinds else 1, listing=listing(raw))


class Items:
    """The files of trees, and archives, in the order of the INPUTs; listed anew each time it is iterated."""

    def __init__(self, names: list[str], source: str | None):
        self.names = names
        self.source = source

    def __iter__(self) -> Iterator[TreeFile | Archive]:
        for name in self.names:
            if is_tree(name):
                repo = Path(name).resolve().name
                yield from (TreeFile(name, path, self.source or repo, repo) for path in list_files(name))
            else:
                yield Archive(name)


def listing(names: list[str]) -> Callable[[], str]:
    """A digest of the contents, for a resume to compare; costs a reading of everything, so only when asked."""

    def digest() -> str:
        whole = hashlib.sha256()
        for item in Items(names, None):
            path = os.path.join(item.root, item.path) if isinstance(item, TreeFile) else item.path
            name = f"{item.repo}/{item.path}" if isinstance(item, TreeFile) else os.path.basename(item.path)
            with open(path, "rb") as file:
                whole.update(os.fsencode(name) + hashlib.file_digest(file, "sha256").digest())
        return "sha256:" + whole.hexdigest()

    return digest


def read_item(item: TreeFile | Archive, source: str | None) -> Iterator[Record | Dropped | Raw]:
    """The documents of one item, and what was read of it."""
    if isinstance(item, TreeFile):
        found = read_file(item.root, item.path, item.source, item.repo)
        record = found.record if isinstance(found, Dropped) else found
        yield Raw(hashlib.sha256(record["id"].encode()).digest(), record["metadata"]["bytes"])
        yield found
        return
    with open(item.path, "rb") as file:
        yield Raw(hashlib.file_digest(file, "sha256").digest(), os.fstat(file.fileno()).st_size)
    yield from documents(item.path, source)


def crawl_clean(options: CleanOptions, source: str | None) -> Transform:
    """The map: an item or a document record to clean documents. What is wrong with one item is a bad record."""
    cleaned = clean(options)

    def transform(item: TreeFile | Archive | Record) -> Iterable[Record | Dropped | Raw]:
        if isinstance(item, dict):
            yield from cleaned(item)
            return
        try:
            for found in read_item(item, source):
                if isinstance(found, Dropped | Raw):
                    yield found
                else:
                    yield from cleaned(found)
        except IqcError as error:
            raise BadRecord(error.what, where=error.where, remedy=error.remedy) from None

    return transform
