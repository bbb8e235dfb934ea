"""The order is a permutation, is the same however it is asked for, and mixes as a drawn one does."""

import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.tokens.order import permuted, row_indices

ROWS = st.integers(1, 300) | st.sampled_from([1, 2, 3, 4, 15, 16, 17, 255, 256, 257])
SEEDS = st.integers(0, 2**63 - 1)


@given(rows=ROWS, seed=SEEDS, epoch=st.integers(0, 50))
def test_every_epoch_has_every_row_once(rows, seed, epoch):
    assert sorted(row_indices(rows, seed, rows * epoch, rows).tolist()) == list(range(rows))


@given(rows=ROWS, seed=SEEDS, first=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_starting_anywhere_equals_skipping(rows, seed, first, cuts):
    whole = row_indices(rows, seed, first, sum(cuts))
    parts, at = [], first
    for count in cuts:
        parts.append(row_indices(rows, seed, at, count))
        at += count
    assert whole.tolist() == [row for part in parts for row in part.tolist()]


def test_epochs_and_seeds_differ():
    orders = [row_indices(50, seed, 50 * epoch, 50).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16


def test_the_order_is_frozen():
    """A run that is resumed under another version must see the order that it started with."""
    assert row_indices(8, 0, 0, 16).tolist() == [7, 6, 1, 2, 4, 0, 5, 3, 3, 0, 5, 2, 6, 7, 4, 1]
    assert row_indices(10**12, 7, 10**15, 3).tolist() == [967347420339, 402226369400, 102075600409]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, rows=st.sampled_from([10**6 + 3, 2**40, 10**15]))
def test_a_large_set_costs_what_a_small_one_does(seed, rows):
    places = np.arange(rows - 1000, rows)
    found = permuted(places, rows, seed, 3)
    assert len(set(found.tolist())) == 1000 and found.min() >= 0 and found.max() < rows


def test_small_orders_are_about_equally_likely():
    """Chi-square against the uniform distribution of the 24 orders of 4 rows: 23 degrees of freedom."""
    counts = Counter(tuple(permuted(np.arange(4), 4, seed, 0).tolist()) for seed in range(4800))
    wanted = 4800 / math.factorial(4)
    assert (
        sum((counts[order] - wanted) ** 2 for order in counts) / wanted + (24 - len(counts)) * wanted < 58
    )  # 1 in 10^4


def test_rows_that_were_neighbours_are_spread():
    """Of 10^5 rows in 100 shards: where a batch of 1000 comes from, and how far apart neighbours fall."""
    rows, order = 10**5, permuted(np.arange(10**5), 10**5, 1, 0)
    shards = order.reshape(100, 1000) // 1000  # [batch, row]
    counts = np.stack([np.bincount(batch, minlength=100) for batch in shards])
    chi = ((counts - 10) ** 2 / 10).sum(axis=1) / 99  # about 1 each where rows are drawn
    assert 0.9 < chi.mean() < 1.1 and chi.max() < 1.7
    where = np.empty(rows, np.int64)
    where[order] = np.arange(rows)
    distance = np.abs(np.diff(where))
    assert abs(distance.mean() / (rows / 3) - 1) < 0.02 and (distance < 100).mean() < 0.003  # 0.002 where drawn
