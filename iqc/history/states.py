"""What a state of a repository holds beside the files that a change touches: nothing, their dependencies, or all of it.

Both states get the same context, so that the patch leads from one to the other exactly. With `dependencies` these are
the untouched files that the touched ones import, before or after the change, found by `iqc.syntax.imports`; those that
most of them import come first, and what is above a cap is left out. A snapshot is whole or the triplet is dropped:
`state_files`, `state_bytes`, `path`. A context file that is no text in a known encoding, is above the size of a file,
or is a submodule, is listed with `text: null`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from iqc.errors import UsageError
from iqc.history.change import writable
from iqc.history.git import MissingObject, Repository
from iqc.history.log import SUBMODULE, Change, TreeEntry
from iqc.history.texts import Rejected, Texts
from iqc.streams.stage import Record
from iqc.syntax.imports import Resolver
from iqc.syntax.languages import language_of

STATES = ("touched", "dependencies", "snapshot")
_PROJECT_FILE_BYTES = 1_000_000  # a go.mod or package.json above this is not read


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Which untouched files states hold.

    state      touched: none; dependencies: what the touched files import; snapshot: all
    depth      dependencies of dependencies, and so on: how many steps
    max_files  untouched files of a state, at most
    max_bytes  their sizes together, at most
    """

    state: str = "touched"
    depth: int = 1
    max_files: int = 1000
    max_bytes: int = 2_000_000

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise UsageError(f"states with {self.state}", remedy=f"use one of {', '.join(STATES)}")


class Context:
    """The context of the changes of one repository."""

    def __init__(self, repository: Repository, texts: Texts, options: ContextOptions):
        self.repository, self.texts, self.options = repository, texts, options

    def of(self, commit: str, changes: Sequence[Change], old: list[Record], new: list[Record]) -> list[Record]:
        """The untouched files of both states, by path; `commit` is that of the old one. Rejected by name."""
        if self.options.state == "touched":
            return []
        touched = {change.path for change in changes}
        try:
            tree = [entry for entry in self.repository.tree(commit) if entry.path not in touched]
        except MissingObject as error:
            raise Rejected("missing_object", error.what) from None
        chosen = self._whole(tree) if self.options.state == "snapshot" else self._imported(tree, old, new)
        self.texts.prefetch(entry.oid for entry in chosen if entry.mode != SUBMODULE)
        return [self._entry(entry) for entry in chosen]

    def _whole(self, tree: list[TreeEntry]) -> list[TreeEntry]:
        size = sum(entry.size or 0 for entry in tree)
        if len(paths := {entry.path for entry in tree}) < len(tree):
            raise Rejected("path", f"one twice among {len(paths)}")
        if len(tree) > self.options.max_files:
            raise Rejected("state_files", len(tree), self.options.max_files)
        if size > self.options.max_bytes:
            raise Rejected("state_bytes", size, self.options.max_bytes)
        return tree

    def _imported(self, tree: list[TreeEntry], old: list[Record], new: list[Record]) -> list[TreeEntry]:
        found = {path: entry for entry in tree if (path := writable(entry.path)) and entry.mode != SUBMODULE}
        importers = Counter[str]()
        for side in (old, new):
            touched = {file["path"]: file for file in side}

            def read(path: str, touched: dict[str, Record] = touched) -> bytes | None:
                return _data(touched[path]) if path in touched else self._blob(found[path].oid)

            resolver = Resolver([*found, *touched], read)
            edge, seen = side, set(touched)
            for _ in range(self.options.depth):
                wanted = Counter[str]()
                for file in edge:
                    data = _data(file)
                    if data is not None and file["lang"] is not None:
                        wanted.update(resolver.dependencies(file["path"], data, file["lang"]))
                fresh = {path: count for path, count in wanted.items() if path not in seen}
                importers.update(fresh)
                seen.update(fresh)
                edge = [self._entry(found[path]) for path in fresh]
        first = sorted(importers, key=lambda path: (-importers[path], path))
        return sorted(self._within_caps(found[path] for path in first), key=lambda entry: entry.path)

    def _blob(self, oid: str) -> bytes | None:
        try:
            data = self.repository.blob(oid, _PROJECT_FILE_BYTES)
        except MissingObject:
            return None
        return data if isinstance(data, bytes) else None

    def _within_caps(self, entries: Iterable[TreeEntry]) -> Iterator[TreeEntry]:
        files, size = 0, 0
        for entry in entries:
            if files < self.options.max_files and size + (entry.size or 0) <= self.options.max_bytes:
                files, size = files + 1, size + (entry.size or 0)
                yield entry

    def _entry(self, entry: TreeEntry) -> Record:
        path = writable(entry.path)
        if path is None:
            raise Rejected("path", repr(entry.path))
        if entry.mode != SUBMODULE:
            try:
                return self.texts.entry(path, entry.mode, entry.oid)
            except Rejected as rejected:
                if rejected.rule == "missing_object":
                    raise
        return {"path": path, "text": None, "lang": language_of(path), "mode": entry.mode, "encoding": None}


def _data(file: Record) -> bytes | None:
    """The text of an entry in UTF-8, which parsers read."""
    return None if file["text"] is None else file["text"].encode()
