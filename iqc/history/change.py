"""One change of a repository as the files before it, the patch, and the files after it; or the rule that drops it."""

from collections.abc import Sequence
from dataclasses import dataclass

from iqc.history.log import SUBMODULE, Change
from iqc.history.score import FileChange, reject_paths, reject_texts
from iqc.history.texts import Rejected, Texts, verified_patch
from iqc.streams.stage import Record

ABSENT = "000000"  # the mode of a side that does not exist


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
    if rule := reject_paths(paths):
        return Rejected(rule, len(paths))
    return None


def blobs_of(changes: Sequence[Change]) -> list[str]:
    """What has to be read of a change, for `Texts.prefetch`."""
    sides = [side for c in changes for side in ((c.old_mode, c.old), (c.new_mode, c.new))]
    return [oid for mode, oid in sides if mode != ABSENT]


def read_change(texts: Texts, changes: Sequence[Change], diff: bytes, max_patch_bytes: int) -> Whole:
    """The change whose `diff` Git made; Rejected by what its files and its patch are."""
    judged, old, new = [], [], []
    for change in changes:
        path = change.path.decode()
        was = now = None
        if change.old_mode != ABSENT:
            old.append(was := texts.entry(path, change.old_mode, change.old))
        if change.new_mode != ABSENT:
            new.append(now := texts.entry(path, change.new_mode, change.new))
        lang = (now or was or {})["lang"]
        judged.append(FileChange(path, was["text"] if was else None, now["text"] if now else None, lang))
    if rule := reject_texts(judged):
        raise Rejected(rule, len(judged))
    if len(diff) > max_patch_bytes:
        raise Rejected("patch_bytes", len(diff), max_patch_bytes)
    patch, encoding = verified_patch(diff, old, new)
    return Whole(old, patch, new, encoding, sum(one.old is None and one.new is None for one in judged))
