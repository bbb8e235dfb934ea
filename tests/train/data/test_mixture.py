"""Shares are kept at every row, also where they change; a row's place depends on its number and the history alone."""

from fractions import Fraction
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.train.data.mixture import UNITS, Mixture, proportions

SHARES = st.integers(0, 9) | st.sampled_from([997, UNITS - 1, UNITS])


@st.composite
def histories(draw):
    """(sources, [(first row, shares)]): up to five changes, some a row apart."""
    sources = draw(st.integers(1, 9))
    shares = st.lists(SHARES, min_size=sources, max_size=sources).filter(lambda found: 0 < sum(found) <= 2 * UNITS)
    later = draw(st.sets(st.integers(1, 300), max_size=5))
    return sources, [(first, draw(shares)) for first in sorted({0} | later)]


def mixture_of(sources, history):
    made = Mixture(sources)
    for first, shares in history:
        made.change(first, shares)
    return made


@given(histories())
@settings(max_examples=200)
def test_every_prefix_has_its_shares(case):
    sources, history = case
    source, _ = mixture_of(sources, history).places(0, 500)
    given = np.cumsum(np.eye(sources)[source], axis=0)
    wanted = np.zeros(given.shape)
    for first, shares in history:
        wanted[first:] = np.array(shares) / sum(shares)
    distance = np.abs(given - np.cumsum(wanted, axis=0)).max(axis=1)
    for changes, end in enumerate([*(first for first, _ in history[1:]), 500]):
        # A fork adds half a row to what its parent is off, which counts once more for every change of the fork's share.
        bound = sum((1 + changes) ** level for level in range(ceil(log2(sources)))) / 2
        assert (distance[:end] <= bound + 1e-6).all()
    for first, shares in history:  # a share of nothing gives nothing, from the row on where it is said
        end = min([start for start, _ in history if start > first], default=500)
        assert not np.isin(source[first:end], np.flatnonzero(np.array(shares) == 0)).any()


@given(histories(), st.integers(0, 400), st.integers(0, 90))
@settings(max_examples=200)
def test_any_row_is_found_at_once_and_a_source_gives_its_rows_in_turn(case, first, count):
    sources, history = case
    mixture = mixture_of(sources, history)
    source, number = mixture.places(0, 500)
    for name in range(sources):
        assert number[source == name].tolist() == list(range((source == name).sum()))
    assert mixture.given(first + 1) == np.bincount(source[: first + 1], minlength=sources).tolist()
    part = mixture.places(first, count)
    assert part[0].tolist() == source[first : first + count].tolist()
    assert part[1].tolist() == number[first : first + count].tolist()


@given(histories(), st.integers(1, 400))
@settings(max_examples=50)
def test_what_comes_later_changes_nothing_before(case, cut):
    sources, history = case
    before = mixture_of(sources, [change for change in history if change[0] < cut])
    whole = mixture_of(sources, history)
    assert all((a == b).all() for a, b in zip(before.places(0, cut), whole.places(0, cut)))


def test_far_into_a_run():
    """At row 10**12 the whole past is a few divisions, and counts are exact."""
    mixture = mixture_of(3, [(0, [UNITS - 3, 2, 1]), (10**12, [1, 1, 1])])
    source, number = mixture.places(10**12 - 2, 8)
    assert sorted(source[2:5]) == sorted(source[5:8]) == [0, 1, 2]
    for name, share in enumerate([UNITS - 3, 2, 1]):
        assert abs(int(number[source == name][0]) - share * 10**12 // UNITS) <= 2


def test_a_small_share_is_served_however_often_shares_change():
    """A source that is owed a hundredth of a row at each change gives a row in a hundred of them."""
    mixture = Mixture(2)
    for change in range(1000):
        mixture.change(change, [99 + change % 2, 1])
    assert mixture.places(0, 1000)[0].sum() == 10


def test_changes_come_in_order():
    mixture = Mixture(2)
    with pytest.raises(ValueError, match="row 0"):
        mixture.change(3, [1, 1])
    mixture.change(0, [1, 1])
    with pytest.raises(ValueError, match="row 0 after one at row 0"):
        mixture.change(0, [1, 2])


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6).filter(any), st.sampled_from([1, 10, 1000]))
def test_proportions_are_exact_as_written(numbers, scale):
    found = proportions([number / scale for number in numbers])
    assert [Fraction(n, sum(found)) for n in found] == [Fraction(n, sum(numbers)) for n in numbers]


def test_proportions_that_have_no_small_numbers_are_near():
    weights = [3.14159265358979, 2.71828182845905, 1e-13, 0.0]
    found = proportions(weights)
    assert found[2:] == [1, 0] and sum(found) <= UNITS + len(weights)
    assert np.allclose(np.array(found) / sum(found), np.array(weights) / sum(weights), rtol=0, atol=1e-9)
