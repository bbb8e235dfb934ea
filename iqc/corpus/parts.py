"""A repository cut to a size: its independent parts together, in records of at most so many bytes or tokens.

Files that have nothing to do with each other, directly or through others, can be in different records without loss. So
a repository that is too long is taken apart into its independent subgraphs (Seed-Coder, section 2.2.5 on long
context): whole ones fill a record while they fit, and one that is too long by itself is cut between two files, in the
order of dependencies, so that what comes first stands without what comes later. Files of a record keep their order.
"""

from collections.abc import Callable, Sequence
from io import StringIO
from itertools import pairwise

Size = tuple[int, ...]  # in every unit that has a limit


def split(groups: Sequence[Sequence[int]], sizes: Sequence[Size], limit: Size) -> list[list[int]]:
    """Numbers of files to records of at most `limit`, in every unit. `groups`: the independent parts, in order; the
    numbers count the files in the order that they have in a record. No file is larger than the limit."""
    parts: list[list[int]] = []
    current: list[int] = []
    used = _nothing(limit)

    def start() -> None:
        nonlocal current, used
        if current:
            parts.append(sorted(current))
        current, used = [], _nothing(limit)

    for group in groups:
        whole = _nothing(limit)
        for number in group:
            whole = _sum(whole, sizes[number])
        if not fits(_sum(used, whole), limit):
            start()
        for number in group:
            if not fits(_sum(used, sizes[number]), limit):
                start()
            current.append(number)
            used = _sum(used, sizes[number])
    start()
    return parts


def cut(text: str, size: Callable[[str], Size], limit: Size) -> list[tuple[int, str]]:
    """A text cut at line ends into pieces of at most `limit`, each with the number of its first line, from 1.

    Empty when a line alone is larger. The size of a piece may differ from the sum over its lines (tokens across line
    ends), so each piece is measured, and halved while it is too large.
    """
    lines = list(StringIO(text, newline="\n"))
    empty = size("")  # what a piece costs beside its text
    used = empty
    starts = [0]
    for number, line in enumerate(lines):
        more = tuple(whole - part for whole, part in zip(size(line), empty, strict=True))
        if not fits(_sum(used, more), limit) and number > starts[-1]:
            starts.append(number)
            used = empty
        used = _sum(used, more)
    found: list[tuple[int, str]] = []
    pending = list(pairwise([*starts, len(lines)]))[::-1]
    while pending:
        first, last = pending.pop()
        piece = "".join(lines[first:last])
        if fits(size(piece), limit):
            found.append((first + 1, piece))
        elif last - first == 1:
            return []
        else:
            middle = (first + last) // 2
            pending += [(middle, last), (first, middle)]
    return found


def _nothing(limit: Size) -> Size:
    return (0,) * len(limit)


def _sum(one: Size, other: Size) -> Size:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def fits(size: Size, limit: Size) -> bool:
    return all(a <= b for a, b in zip(size, limit, strict=True))
