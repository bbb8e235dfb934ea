"""Whose turn it is: lanes of records to one stream, as near to wanted amounts as whole records allow, everywhere in it.

A lane is wanted as a curve: how much of it is to have been given when the output has reached a length. All curves
together grow as the output does, so this is the schedule of a fluid that serves every lane at once. Records are whole:
a record may start when the fluid would (its release), and of those that may, the one goes first that the fluid would
finish first (its deadline). With time-constant shares this is WF2Q (Bennett and Zhang 1996), whose bounds it keeps for
any curves: where a record ends, with L the largest record of all lanes, a lane

    has at most L less than its curve        (a deadline is missed by the one record that was under way, no more)
    has at most its own largest record more  (it started when the curve was there already)

whatever the number of lanes. A greedy choice of the lane furthest behind lets lanes fall behind by more, the more
lanes there are. Nothing is drawn at random, and the whole state is how much each lane has given.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from math import inf

STEEPEST = 1e300  # of a rate: that of next to nothing is no infinity, which times 0 is no number


class Curve:
    """What one lane is to have given when the output has a length: from 0 at 0, linear between knots."""

    __slots__ = ("amounts", "lengths", "rates")

    def __init__(self, lengths: Sequence[float], amounts: Sequence[float]):
        """Both of one size, from 0, not decreasing; a lane cannot be given faster than the output grows."""
        self.lengths, self.amounts = list(lengths), list(amounts)
        steps = zip(pairwise(lengths), pairwise(amounts))
        slopes = [(end - start) / (after - before or inf) for (start, end), (before, after) in steps]
        self.rates = [
            STEEPEST,
            *(min(slope, STEEPEST) for slope in slopes),
        ]  # length for one of the amount, up to a knot

    def at(self, length: float) -> float:
        """The amount wanted at a length."""
        right = min(bisect_right(self.lengths, length), len(self.lengths) - 1)
        left, rate = right - 1, self.rates[right]
        grown = min(length, self.lengths[right]) - self.lengths[left]
        return self.amounts[left] + (grown / rate if rate else 0.0)

    def span(self, amount: float, size: float) -> tuple[float, float]:
        """When the fluid serves a record of `size` that comes after `amount`: the lengths from which on more than
        `amount` is wanted, and at which both are. Infinite where that never is."""
        amounts = self.amounts
        right = bisect_right(amounts, amount)
        if right == len(amounts):
            return inf, inf
        left, end = right - 1, amount + size
        release = self.lengths[left] + (amount - amounts[left]) * self.rates[right]
        if end > amounts[right]:
            right = bisect_left(amounts, end)
            if right == len(amounts):
                return release, inf
            left = right - 1
        return release, max(release, self.lengths[left] + (end - amounts[left]) * self.rates[right])


def curves(phases: Sequence[Sequence[float]]) -> list[Curve]:
    """One curve a lane, from the amounts [phases][lanes] that the lanes give in each phase."""
    lengths = [0.0, *accumulate(map(sum, phases))]
    return [Curve(lengths, [0.0, *accumulate(amounts)]) for amounts in zip(*phases)]


def turns(
    wanted: Sequence[Curve], total: float, given: list[int], next_size: Callable[[int], int | None]
) -> Iterator[tuple[int, int]]:
    """(lane, size of its record) in the order of their turns, until the output has the length `total`.

    `given`: what every lane has given, which is counted on here: zeros, or where an earlier run stopped.
    `next_size(lane)`: the size of its next record, None after its last; the record is due when the lane is yielded.
    """
    waiting: list[tuple[float, int, float]] = []  # (release, lane, deadline)
    ready: list[tuple[float, int]] = []  # (deadline, lane)
    sizes = [0] * len(wanted)

    def enter(lane: int) -> None:
        size = next_size(lane)
        if size is not None:
            sizes[lane] = size
            release, deadline = wanted[lane].span(given[lane], size)
            heappush(waiting, (release, lane, deadline))

    for lane in range(len(wanted)):
        enter(lane)
    done = sum(given)
    while done < total and (waiting or ready):
        while waiting and (waiting[0][0] <= done or not ready):  # none ready: rounding, or a lane ended too early
            _, lane, deadline = heappop(waiting)
            heappush(ready, (deadline, lane))
        _, lane = heappop(ready)
        given[lane] += sizes[lane]
        done += sizes[lane]
        yield lane, sizes[lane]
        enter(lane)
