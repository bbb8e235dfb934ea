"""What `git log --raw` and `git ls-tree` say, parsed as it comes: fields end with NUL, so any path may be in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

SUBMODULE = "160000"  # the mode of a tree entry that is a commit of another repository
LOG = [
    *("-z", "--raw", "--no-abbrev", "--no-renames", "--diff-merges=first-parent", "--encoding=UTF-8"),
    *("--no-show-signature", "--format=%x01%H%x00%P%x00%ct%x00%an <%ae>%x00%B"),
]


@dataclass(frozen=True, slots=True)
class Change:
    """One path that a commit changed against its first parent. A side that does not exist has mode 000000."""

    path: bytes
    old_mode: str
    new_mode: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a line. `changes` are against the first parent, without renames.

    time     the committer's, in seconds since 1970; 0 when it says none
    author   name and address as in a mail's header
    damage   why the changes cannot be used (a tree is absent or damaged); empty otherwise
    """

    id: str
    parents: tuple[str, ...]
    time: int
    author: str
    message: str
    changes: tuple[Change, ...]
    damage: str = ""


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A file, link or submodule of a tree. `size` in bytes; None for a submodule, or a blob that is not there."""

    path: bytes
    mode: str
    oid: str
    size: int | None


def commits(stream: IO[bytes]) -> Iterator[Commit]:
    """The output of `git log` with LOG: id, parents, time, author, message, then each change as modes, ids and path.

    Of output that was cut, the whole commits.
    """
    found = fields(stream)
    head: list[bytes] = []
    changed: list[Change] = []
    for token in found:
        if token.startswith(b"\x01"):
            if head:
                yield _commit(head, changed)
            head, changed = [token[1:], *islice(found, 4)], []
            if len(head) < 5:
                return
        else:
            path = next(found, None)
            if path is None:
                return
            changed.append(_change(token, path))
    if head:
        yield _commit(head, changed)


def changes(stream: IO[bytes]) -> Iterator[Change]:
    """The output of `git diff-tree --raw -z`."""
    found = fields(stream)
    for token in found:
        yield _change(token, next(found))


def _change(about: bytes, path: bytes) -> Change:
    old_mode, new_mode, old, new, _ = about.lstrip(b"\n:").decode().split(" ")
    return Change(path, old_mode, new_mode, old, new)


def _commit(head: list[bytes], changes: list[Change]) -> Commit:
    name, parents, time, author, message = (part.decode(errors="replace") for part in head)
    # Git itself never writes such a tree, and no directory can hold it.
    damage = "" if len({change.path for change in changes}) == len(changes) else "a tree holds one path twice"
    return Commit(name, tuple(parents.split()), int(time or 0), author, message.strip(), tuple(changes), damage)


def fields(stream: IO[bytes]) -> Iterator[bytes]:
    """The fields of a stream, each ended by NUL; one that is cut is left out."""
    begun: list[bytes] = []  # the pieces of a field whose end has not come yet
    while chunk := stream.read(1 << 16):
        first, *others = chunk.split(b"\0")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]


def tree_entries(stream: IO[bytes]) -> Iterator[TreeEntry]:
    """The output of `git ls-tree -l -z`."""
    for row in fields(stream):
        about, _, path = row.partition(b"\t")
        mode, _, oid, size = about.decode().split()
        yield TreeEntry(path, mode, oid, int(size) if size.isdigit() else None)
