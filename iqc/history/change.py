"""One change of a repository as the files before it, the patch, and the files after it; or the rule that drops it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from iqc.history.git import MissingObject, Repository
from iqc.history.log import SUBMODULE, Change
from iqc.history.score import FileChange, reject_paths, reject_texts
from iqc.history.texts import Rejected, Texts, verified_patch
from iqc.streams.stage import Record
from iqc.syntax.languages import language_of

_COMPARED_FILES = 1000  # of a change that Git is asked to compare
_COMPARED_BYTES = 1 << 24  # of their two sides
ABSENT = "000000"  # the mode of a side that does not exist
_DOT_GIT = re.compile(r"(?:\.git|git~1)[ .]*(?:$|[\\:])", re.IGNORECASE)  # as NTFS reads it
_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")  # by HFS+


@dataclass(frozen=True, slots=True)
class Whole:
    """A change that was verified: the patch, encoded, turns the entries `old` into `new`. `binaries` have no text."""

    old: list[Record]
    patch: str
    new: list[Record]
    encoding: str
    binaries: int


def reject_changes(changes: Sequence[Change], max_files: int) -> Rejected | None:
    """The rule that speaks against a change before any of its files is read."""
    if len(changes) > max_files:
        return Rejected("files", len(changes), max_files)
    if any(SUBMODULE in (change.old_mode, change.new_mode) for change in changes):
        return Rejected("submodule")
    try:
        paths = [change.path.decode() for change in changes]
    except UnicodeDecodeError as error:
        return Rejected("path_encoding", repr(error.object))
    if refused := next(filter(unwritable, paths), None):
        return Rejected("path", refused)
    if rule := reject_paths(paths):
        return Rejected(rule, len(paths))
    return None


@lru_cache(maxsize=1 << 14)
def unwritable(path: str) -> bool:
    """Whether a path leaves its directory or reaches into a `.git`, by any name that a file system takes for it.

    The rules of Git's verify_path (read-cache.c), which `git apply` keeps, for all file systems at once.
    """
    parts = _IGNORED.sub("", path).split("/")
    return any(part in ("", ".", "..") or _DOT_GIT.match(part) for part in parts)


def writable(raw: bytes) -> str | None:
    """A path that a record may have: text, inside its directory, outside of any `.git`; None for another."""
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        return None
    return None if unwritable(path) else path


def blobs_of(changes: Sequence[Change]) -> list[str]:
    """What has to be read of a change, for `Texts.prefetch`."""
    sides = [side for c in changes for side in ((c.old_mode, c.old), (c.new_mode, c.new))]
    return [oid for mode, oid in sides if mode not in (ABSENT, SUBMODULE)]


def incomparable(
    repository: Repository, many: Sequence[Sequence[Change]], max_file_bytes: int
) -> list[Rejected | None]:
    """Of each change, what speaks against asking Git for its diff, of which the memory is many times the files' size.

    The rules are `files` and `change_bytes`, by limits far above those of a record; `file_bytes` when one file is over
    the limit of records, and the change so large; `missing_object`. Sizes are asked, nothing is read.
    """
    oids = [blobs_of(changes) if len(changes) <= _COMPARED_FILES else [] for changes in many]
    sizes = repository.sizes([oid for part in oids for oid in part])
    return [_large(changes, list(islice(sizes, len(part))), max_file_bytes) for changes, part in zip(many, oids)]


def _large(changes: Sequence[Change], sizes: list[int | MissingObject], max_file_bytes: int) -> Rejected | None:
    if len(changes) > _COMPARED_FILES:
        return Rejected("files", len(changes), _COMPARED_FILES)
    known = [size for size in sizes if isinstance(size, int)]
    if sum(known) > _COMPARED_BYTES:
        largest = max(known)
        if largest > max_file_bytes:
            return Rejected("file_bytes", largest, max_file_bytes)
        return Rejected("change_bytes", sum(known), _COMPARED_BYTES)
    missing = [size.what for size in sizes if isinstance(size, MissingObject)]
    return Rejected("missing_object", missing[0]) if missing else None


def read_change(texts: Texts, changes: Sequence[Change], diff: bytes, max_patch_bytes: int) -> Whole:
    """The change whose `diff` Git made; Rejected by what its files and its patch are."""
    judged = [file_change(texts, change) for change in changes]
    if rule := reject_texts(judged):
        raise Rejected(rule, len(judged))
    if len(diff) > max_patch_bytes:
        raise Rejected("patch_bytes", len(diff), max_patch_bytes)
    old, new = entries(texts, changes)
    patch, encoding = verified_patch(diff, old, new)
    return Whole(old, patch, new, encoding, sum(one.old is None and one.new is None for one in judged))


def file_change(texts: Texts, change: Change) -> FileChange:
    """What a change is judged by; Rejected when a side cannot be read."""
    path = change.path.decode()
    old = texts.read(change.old)[0] if change.old_mode != ABSENT else None
    new = texts.read(change.new)[0] if change.new_mode != ABSENT else None
    return FileChange(path, old, new, language_of(path, new if change.new_mode != ABSENT else old))


def entries(texts: Texts, changes: Sequence[Change]) -> tuple[list[Record], list[Record]]:
    """The files of both sides, without those that are absent; Rejected when one cannot be read."""
    old = [texts.entry(c.path.decode(), c.old_mode, c.old) for c in changes if c.old_mode != ABSENT]
    new = [texts.entry(c.path.decode(), c.new_mode, c.new) for c in changes if c.new_mode != ABSENT]
    return old, new
