"""Which source every row of a run comes from: by shares that change while the run goes on, and without drawing lots.

Sources are the leaves of a balanced tree. At each fork, of the n rows that came there the left side has had
floor(X + 1/2), where X is the sum over these rows of the left side's share at each. So a fork is never half a row from
what it was to do, and with S sources, while the shares stay as they are, each source has given its share of every
prefix to within ceil(log2 S) / 2 rows: half a row for two, one for four. What is owed is carried over a change of the
shares, so that small shares are served however often they change; with three sources and more a change can add to the
distance, the less, the less the shares move. It is integer arithmetic alone.

What is kept is the history of the shares: where row j comes from is found from that in the time of a step for each
change, so a run goes on from any row, and any number of ranks see the same. (`iqc mix` keeps records of different
sizes, one after the other, to their shares: its schedule has to be followed from the start.)
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

UNITS = 1 << 30  # shares that have no common denominator below it are rounded to parts of it
OWED = 30  # bits of what a fork owes from one change to the next


@dataclass(slots=True, frozen=True)
class Fork:
    """From a change of the shares on. `share` of `whole` rows go left; before it `reached` rows came here and `left` of
    them went left, which `owed` / 2**OWED of a row, 1/2 on average, were wanted beyond that."""

    reached: int = 0
    left: int = 0
    share: int = 0
    whole: int = 1
    owed: int = 1 << OWED - 1

    def lefts(self, rows: int) -> tuple[int, int]:
        """Of the first `rows` that come here how many go left, and the remainder of that division."""
        done = ((rows - self.reached) * self.share << OWED) + self.owed * self.whole
        more, rest = divmod(done, self.whole << OWED)
        return self.left + more, rest

    def changed(self, rows: int, share: int, whole: int) -> "Fork":
        """What it is from row `rows` on: itself where none will come."""
        if not whole:
            return self
        left, rest = self.lefts(rows)
        return Fork(rows, left, share, whole, rest // self.whole)


Forks = dict[tuple[int, int], Fork]  # by the sources [low, high) below it


class Mixture:
    """Sources 0 ... S - 1 with shares from row to row."""

    def __init__(self, sources: int):
        self.sources = sources
        self._starts: list[int] = []
        self._forks: list[Forks] = []

    def change(self, first: int, shares: Sequence[int]) -> None:
        """From row `first` on, which comes after every change before, the sources are wanted in these proportions:
        whole numbers whose sum is at most 2 * UNITS."""
        if self._starts and first <= self._starts[-1]:
            raise ValueError(f"a change at row {first} after one at row {self._starts[-1]}")
        if not self._starts and first:
            raise ValueError("the first shares are those of row 0")
        forks: Forks = {}
        self._plant(forks, self._forks[-1] if self._forks else {}, list(shares), 0, self.sources, first)
        self._starts.append(first)
        self._forks.append(forks)

    def _plant(self, forks: Forks, before: Forks, shares: list[int], low: int, high: int, rows: int) -> None:
        """Set the forks of sources [low, high), where `rows` rows came before."""
        if high - low == 1:
            return
        middle = (low + high) // 2
        fork = before.get((low, high), Fork())
        forks[low, high] = fork.changed(rows, sum(shares[low:middle]), sum(shares[low:high]))
        left = fork.lefts(rows)[0]
        self._plant(forks, before, shares, low, middle, left)
        self._plant(forks, before, shares, middle, high, rows - left)

    def places(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of rows `first` ... `first + count - 1` the source, and which row of the source it is, from 0: [count] each.

        The rows of one source among them follow each other without a gap.
        """
        source, number = np.empty((2, count), np.int64)
        ends = [*self._starts[1:], first + count]
        for start, end, forks in zip(self._starts, ends, self._forks):
            low, high = max(first, start), min(first + count, end)
            if low < high:
                self._walk(forks, 0, self.sources, low, np.arange(low - first, high - first), source, number)
        return source, number

    def given(self, rows: int) -> list[int]:
        """How many of the first `rows`, which are at least one, each source gives."""
        forks = self._forks[bisect_left(self._starts, rows) - 1]

        def below(low: int, high: int, here: int) -> list[int]:
            if high - low == 1:
                return [here]
            middle, left = (low + high) // 2, forks[low, high].lefts(here)[0]
            return below(low, middle, left) + below(middle, high, here - left)

        return below(0, self.sources, rows)

    def _walk(
        self,
        forks: Forks,
        low: int,
        high: int,
        rows: int,
        at: NDArray[np.int64],
        source: NDArray[np.int64],
        number: NDArray[np.int64],
    ) -> None:
        """Fill in the rows `at`, which come to the sources [low, high) after `rows` others."""
        if high - low == 1:
            source[at], number[at] = low, np.arange(rows, rows + len(at))
        elif len(at):
            fork, middle = forks[low, high], (low + high) // 2
            left, rest = fork.lefts(rows)
            lefts = (np.arange(len(at) + 1) * fork.share + (rest >> OWED)) // fork.whole
            goes_left = np.diff(lefts) == 1
            self._walk(forks, low, middle, left, at[goes_left], source, number)
            self._walk(forks, middle, high, rows - left, at[~goes_left], source, number)


def proportions(weights: Sequence[float | Fraction]) -> list[int]:
    """Weights, not all 0, as whole numbers in the same proportions: exact as they are written in decimals, where their
    sum stays below UNITS; else the parts of UNITS nearest to them, none of a positive weight below one part."""
    exact = [weight if isinstance(weight, Fraction) else Fraction(repr(weight)) for weight in weights]
    denominator = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * denominator) for weight in exact]
    common = gcd(*whole)
    if sum(whole) // common < UNITS:
        return [number // common for number in whole]
    total = sum(exact)
    return [max(1, round(weight / total * UNITS)) if weight else 0 for weight in exact]
