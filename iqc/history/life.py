"""The life of a repository: its first-parent line, the window of it that is mined, and sections that are mined alone.

A percentile of the life is a commit's rank among the first-parent commits, or its date between that of the first and
that of the last. Dates are what committers' clocks said: one that is earlier than a date before it counts as that one,
one that is later than the date of HEAD is passed over. The line is streamed each time it is asked for; it may be of any
length.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil, floor

from iqc.errors import IqcError, UsageError
from iqc.history.git import Repository


def check_window(window: tuple[float, float]) -> None:
    """UsageError unless these are two rising shares of a life."""
    if not 0 <= window[0] < window[1] <= 1:
        raise UsageError(f"the window of percentiles is {window}", remedy="give two rising shares from 0 to 1")


@dataclass(frozen=True, slots=True)
class Line:
    """A first-parent line, and its window: the ranks `first` to `last`, from 0, both included; none when first > last.

    Dates, in seconds since 1970, are only asked for where percentiles go by them.
    """

    commits: int
    first: int
    last: int
    birth: int | None = None
    death: int | None = None

    def clock(self, now: int, time: int) -> int:
        """The date of a commit whose committer said `time`, where that of the commit before it is `now`."""
        return now if self.death is None or time > self.death else max(now, time)

    def percentile(self, rank: int, now: int) -> float:
        """The share of the life that was over at the commit of that rank and date, in [0, 1]."""
        if self.birth is None or self.death is None:
            return rank / (self.commits - 1) if self.commits > 1 else 0.0
        return (now - self.birth) / (self.death - self.birth)


@dataclass(frozen=True, slots=True)
class Section:
    """`count` commits of a line that follow each other: from rank `start` to the one with the id `last`.

    `now` is the date of the first, where percentiles go by dates.
    """

    line: Line
    start: int
    count: int
    last: str
    now: int = 0


def line_of(repository: Repository, window: tuple[float, float], by: str = "rank") -> Line:
    """The first-parent line of HEAD with the window, two percentiles as shares, by `rank` or by `time`.

    A commit that follows the window's last must exist. IqcError when all dates are one, by time.
    """
    commits = repository.count()
    life = commits - 1
    if by == "rank":
        return Line(commits, ceil(window[0] * life), min(floor(window[1] * life), life - 1))
    _, death = next(repository.line(newest_first=True))
    _, birth = next(repository.line())
    if death <= birth:
        raise IqcError(
            f"{repository.path} ends at the date at which it began, or before: it has no percentiles by time",
            remedy="take percentiles by rank",
        )
    line = Line(commits, 0, life - 1, birth, death)
    now = birth
    inside: list[int] = []  # the first rank in the window, and the last
    for rank, (_, time) in enumerate(repository.line()):
        now = line.clock(now, time)
        if window[0] <= line.percentile(rank, now) <= window[1]:
            inside = [*inside[:1], rank]
    return replace(line, first=inside[0], last=min(inside[-1], life - 1)) if inside else replace(line, first=life)


def cut(repository: Repository, line: Line, ranges: Iterable[tuple[int, int]]) -> Iterator[Section]:
    """The sections with these ranks, (from, to), both included; both must rise, `from` not beyond the last `to`."""
    ranks = enumerate(repository.line())
    rank, now, oid = -1, line.birth or 0, ""
    for start, stop in ranges:
        began = now
        while rank < stop:
            rank, (oid, time) = next(ranks)
            now = line.clock(now, time)
            if rank == start:
                began = now
        yield Section(line, start, stop - start + 1, oid, began)
