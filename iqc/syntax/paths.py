"""The paths of a repository as an import names them: relative to a file, or by their ends.

Paths are strings with `/`, relative to the top. Nothing here touches a file system: what is not in the list does not
exist, and a specifier that leaves the repository names nothing.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

MAX_PARTS = 32  # folders of a path, or names of a dotted specifier: a longer one is looked up whole or not at all
MAX_ENDS = 16  # parts of an end by which a path is found: each is kept in memory


def folder_of(path: str) -> str:
    """The folder of a path, '' for the top."""
    return path.rpartition("/")[0]


def join(folder: str, relative: str) -> str | None:
    """`relative` seen from `folder`, without `.` and `..`; None when it is absolute or leaves the repository."""
    if relative.startswith("/"):
        return None
    parts = folder.split("/") if folder else []
    for part in relative.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def ancestors(path: str) -> Iterator[str]:
    """The folders that a path lies in, from its own up to the top, ''."""
    for _ in range(MAX_PARTS):
        path = folder_of(path)
        yield path
        if not path:
            return


def below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def nearest(candidates: Sequence[str], path: str) -> str:
    """Of sorted candidates, one or more, the first of those that share the deepest folder with `path`.

    In sorted order the paths of one folder are neighbours, so the deepest is shared by a neighbour of where `path`
    would stand: the time is logarithmic, whatever the number of files that have one name.
    """
    at = bisect_left(candidates, path)
    folder = max((_shared(path, other) for other in candidates[max(0, at - 1) : at + 1]), key=len)
    return candidates[bisect_left(candidates, folder)]


def _shared(one: str, other: str) -> str:
    """The deepest folder that two paths lie in, with its `/`."""
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[: one.rfind("/", 0, same) + 1]


class Ends:
    """Paths by each of their ends that begins at a folder: `b/c.h` finds `a/b/c.h` and `b/c.h`."""

    def __init__(self, paths: Iterable[str] = ()):
        self._paths: dict[str, list[str]] = {}
        for path in sorted(paths):
            for end in ends_of(path):
                self.add(end, path)

    def add(self, end: str, path: str) -> None:
        """Paths must come in order."""
        self._paths.setdefault(end, []).append(path)

    def __contains__(self, end: str) -> bool:
        return end in self._paths

    def find(self, end: str, near: str) -> str | None:
        """The path with this end that is nearest to the path `near`."""
        found = self._paths.get(end)
        return nearest(found, near) if found else None


def ends_of(path: str) -> Iterator[str]:
    """`a/b/c`, `b/c`, `c`: the whole path, and its ends of at most MAX_ENDS parts."""
    yield path
    parts = path.rsplit("/", MAX_ENDS)
    for first in range(1, len(parts)):
        yield "/".join(parts[first:])
