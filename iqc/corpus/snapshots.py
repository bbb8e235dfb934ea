"""One state of a repository: the files of a commit, or of a source tree, as text.

A directory with a Git repository in it, bare or with a work tree, is read at a commit: that state has a name, and what
lies uncommitted in the work tree is nobody's. Any other directory is a source tree, read as it lies; its folders of
version control, caches and installed packages (trees.py) are not entered, and what is neither file nor link is not
listed. Either way a file that is left out is Dropped with its reason, and the others stay:

    symlink, submodule   they have no text of their own
    path                 not UTF-8, absolute, with `..`, control characters or too long: it may be written to a disk
    folder               of a commit: below a folder that is not entered in a tree
    file_bytes, binary, encoding, missing_object, unreadable
    duplicate            a second entry of the same path, in a damaged tree
"""

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from iqc.corpus.trees import MAX_BYTES, SKIPPED, NotText, decode, walk
from iqc.errors import BadRecord
from iqc.history.git import MissingObject, Repository
from iqc.history.log import SUBMODULE
from iqc.streams.stage import Dropped, Record
from iqc.syntax.languages import language_of

MAX_PATH = 1024  # bytes
MAX_FILES = 1_000_000  # a tree object that holds itself many times over lists as many files as it likes
MAX_LISTING = 256 << 20  # bytes of their paths
MAX_REPOSITORY = 4 << 30  # bytes of the files that would be read
SYMLINK = "120000"  # the mode of Git's symbolic links
_BLOBS = 256  # asked for at a time
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(slots=True)
class Snapshot:
    """`files`: {path, text, lang, mode, encoding}, sorted by path. `digest` names the state, `size` its bytes."""

    name: str
    commit: str | None
    files: list[Record] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    digest: bytes = b""
    size: int = 0

    @property
    def id(self) -> str:
        """The repository's name and its commit, or what stands for one in a source tree."""
        return f"{self.name}@{self.commit[:12] if self.commit else self.digest.hex()[:12]}"

    def dropped_file(self, path: str, rule: str, value: object, threshold: object = None) -> Dropped:
        record = {"id": f"{self.id}:{path}", "repo": self.name, "commit": self.commit, "path": path}
        return Dropped(record, rule, value, threshold)

    def drop(self, path: str, rule: str, value: object, threshold: object = None) -> None:
        self.dropped.append(self.dropped_file(path, rule, value, threshold))


@dataclass(slots=True)
class _Entry:
    """A file that is to be read; `key` is what the source reads it by."""

    path: str
    mode: str
    key: str


def is_git(path: str | os.PathLike[str]) -> bool:
    """Whether a directory is a Git repository, bare or not."""
    place = Path(path)
    return (place / ".git").exists() or ((place / "objects").is_dir() and (place / "HEAD").is_file())


def read_commit(path: str, name: str, revision: str = "HEAD", max_bytes: int = MAX_BYTES) -> Snapshot:
    """The state of a Git repository at a commit; a shallow clone will do. IqcError: it cannot be read."""
    with Repository(path, revision, shallow=True) as repository:
        found = Snapshot(name, repository.head, digest=hashlib.sha256(f"{name} {repository.head}".encode()).digest())
        choice = _Choice(found, max_bytes)
        for listed in repository.tree(repository.head):
            choice.add(listed.path, listed.mode, listed.oid, listed.size)
        entries = choice.entries()
        for start in range(0, len(entries), _BLOBS):
            some = entries[start : start + _BLOBS]
            for entry, data in zip(some, repository.blobs([entry.key for entry in some], max_bytes), strict=True):
                if isinstance(data, MissingObject):
                    found.drop(entry.path, "missing_object", data.what)
                elif isinstance(data, int):
                    found.drop(entry.path, "file_bytes", data, max_bytes)
                else:
                    _keep(found, entry, data)
    return found


def read_tree(path: str, name: str, max_bytes: int = MAX_BYTES) -> Snapshot:
    """The state of a source tree. IqcError: it cannot be read."""
    found = Snapshot(name, None)
    choice = _Choice(found, max_bytes)
    whole = hashlib.sha256(name.encode())
    for file, status in sorted(walk(path)):
        executable = status.st_mode & stat.S_IXUSR
        mode = SYMLINK if stat.S_ISLNK(status.st_mode) else "100755" if executable else "100644"
        if stat.S_ISREG(status.st_mode) or mode == SYMLINK:
            choice.add(os.fsencode(file), mode, file, status.st_size)
            whole.update(b"\0".join((os.fsencode(file), mode.encode(), str(status.st_size).encode(), b"")))
    read: list[tuple[_Entry, bytes]] = []
    for entry in choice.entries():
        try:
            with open(os.path.join(path, entry.key), "rb", opener=_no_link) as source:
                data = source.read(max_bytes + 1)
        except OSError as error:
            found.drop(entry.path, "unreadable", error.strerror)
            continue
        whole.update(entry.path.encode() + b"\0" + hashlib.sha256(data).digest())
        read.append((entry, data))
    found.digest = whole.digest()
    for entry, data in read:
        if len(data) > max_bytes:
            found.drop(entry.path, "file_bytes", len(data), max_bytes)
        else:
            _keep(found, entry, data)
    for dropped in found.dropped:  # those from before the digest was known
        dropped.record["id"] = f"{found.id}:{dropped.record['path']}"
    return found


def _no_link(path: str, flags: int) -> int:
    """A file may have become a link or a pipe since it was listed: neither is followed, or waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _keep(found: Snapshot, entry: _Entry, data: bytes) -> None:
    found.size += len(data)
    try:
        text, encoding = decode(data)
    except NotText as error:
        found.drop(entry.path, error.rule, error.value, error.threshold)
        return
    lang = language_of(entry.path, text)
    found.files.append({"path": entry.path, "text": text, "lang": lang, "mode": entry.mode, "encoding": encoding})


class _Choice:
    """Which entries of a listing are files to read, before any is read."""

    def __init__(self, found: Snapshot, max_bytes: int):
        self.found, self.max_bytes = found, max_bytes
        self.chosen: dict[str, _Entry] = {}
        self.bytes = self.listed = self.paths = 0

    def add(self, raw: bytes, mode: str, key: str, size: int | None) -> None:
        self.listed += 1
        self.paths += len(raw)
        if self.listed > MAX_FILES:
            raise BadRecord(f"more than {MAX_FILES} files", where=self.found.name, remedy="read a part of it")
        if self.paths > MAX_LISTING:
            raise BadRecord(
                f"more than {MAX_LISTING} bytes of paths", where=self.found.name, remedy="read a part of it"
            )
        path = raw.decode(errors="backslashreplace")
        if reason := _reason(raw, mode):
            self.found.drop(path, *reason)
        elif path in self.chosen:
            self.found.drop(path, "duplicate", key)
        elif size is not None and size > self.max_bytes:
            self.found.drop(path, "file_bytes", size, self.max_bytes)
        else:
            self.chosen[path] = _Entry(path, mode, key)
            self.bytes += size or 0
            if self.bytes > MAX_REPOSITORY:
                raise BadRecord(
                    f"more than {MAX_REPOSITORY} bytes of files", where=self.found.name, remedy="read a part of it"
                )

    def entries(self) -> list[_Entry]:
        return [self.chosen[path] for path in sorted(self.chosen)]


def _reason(raw: bytes, mode: str) -> tuple[str, object, object] | None:
    """The rule that leaves an entry out for its path or mode, with value and threshold."""
    if mode == SYMLINK:
        return "symlink", mode, None
    if mode == SUBMODULE:
        return "submodule", mode, None
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        return "path", "encoding", "utf-8"
    parts = path.split("/")
    if len(raw) > MAX_PATH:
        return "path", len(raw), MAX_PATH
    if _CONTROL.search(path):
        return "path", "control characters", "none"
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        return "path", "not below the top", "relative, without . and .."
    folder = next((part for part in parts[:-1] if part in SKIPPED), None)
    return ("folder", folder, None) if folder else None
