"""Weights move towards the sources whose losses are above their reference, and stay in their bounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.train.data.adapt import bounded, reweighted

NAMES = "abcde"
SHARES = st.integers(2, 5).flatmap(
    lambda count: st.lists(st.floats(0.01, 1), min_size=count, max_size=count).map(
        lambda found: dict(zip(NAMES, found))
    )
)
LOSSES = st.fixed_dictionaries({name: st.floats(0, 12) for name in NAMES})


def test_the_published_rule():
    shares, losses = {"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 2.0, "b": 1.5, "c": 3.0}
    found = reweighted(shares, losses, {"a": 2.0, "b": 1.0, "c": 4.0}, 0.0, 1.0)
    raised = {"a": 0.5, "b": 0.25 * math.exp(0.5), "c": 0.25}  # c is below its reference: as if it were at it
    assert found == pytest.approx({name: share / sum(raised.values()) for name, share in raised.items()}, rel=1e-9)


@given(SHARES, LOSSES, LOSSES, st.floats(0, 1), st.floats(0, 1))
def test_bounds_and_sum_are_kept(shares, losses, reference, down, up):
    whole, mean = sum(shares.values()), sum(shares.values()) / len(shares)
    least, most = mean * down, mean + (whole - mean) * up
    found = reweighted(shares, losses, reference, least, most)
    assert sum(found.values()) == pytest.approx(whole)
    assert all(least <= share <= most for share in found.values())


@given(SHARES, LOSSES, LOSSES)
def test_a_source_that_is_further_behind_gains_on_the_others(shares, losses, reference):
    found = reweighted(shares, losses, reference, 0.0, sum(shares.values()))
    excess = {name: max(losses[name] - reference[name], 0) for name in shares}
    for one in shares:
        for other in shares:
            if excess[one] > excess[other] + 1e-3:
                assert found[one] / shares[one] > found[other] / shares[other]


@given(SHARES, LOSSES)
def test_nothing_changes_where_nothing_is_behind(shares, losses):
    found = reweighted(shares, losses, {name: loss + 0.5 for name, loss in losses.items()}, 0.0, sum(shares.values()))
    assert found == pytest.approx(shares)


def test_between_the_bounds_proportions_stay():
    found = bounded({"a": 0.9, "b": 0.06, "c": 0.03, "d": 0.01}, 0.05, 0.6)
    assert found["a"] == 0.6 and found["d"] == 0.05
    assert found["b"] / found["c"] == pytest.approx(2) and sum(found.values()) == pytest.approx(1)


def test_the_last_bits_of_a_loss_decide_nothing():
    shares = {"a": 0.5, "b": 0.5}
    one, other = ({"a": 1.00001 + bits, "b": 2.5} for bits in (0, 1e-5))
    assert reweighted(shares, one, {"a": 1.0, "b": 2.0}, 0, 1) == reweighted(shares, other, {"a": 1.0, "b": 2.0}, 0, 1)
