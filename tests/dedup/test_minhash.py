"""Shingles against their definition, MinHash against its probability."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.dedup.minhash import SHINGLE, Lsh, band_keys, jaccard, shingles

texts = st.text(st.sampled_from("ab_1 \n.(é中—😀\u0301"), max_size=80) | st.text(max_size=200)


def shingle_set(text: str) -> set[tuple[str, ...]]:
    tokens = re.findall(r"\w+", text)
    return {tuple(tokens[i : i + SHINGLE]) for i in range(len(tokens) - SHINGLE + 1)}


@given(texts)
@settings(deadline=None)
def test_as_many_shingles_as_the_definition_gives(text):
    assert len(shingles(text)) == len(shingle_set(text))


@given(texts, texts)
@settings(deadline=None)
def test_jaccard_is_that_of_the_sets(a, b):
    a, b = a * 2, a + b
    left, right = shingle_set(a), shingle_set(b)
    expected = len(left & right) / len(left | right) if left and right else 0.0
    assert jaccard(shingles(a), shingles(b)) == expected


def test_case_and_order_count_but_punctuation_does_not():
    base = shingles("def f(x): return x + offset")
    assert np.array_equal(base, shingles("def   f x\n return (x) - offset;"))
    assert jaccard(base, shingles("def F(x): return x + offset")) == 0
    assert jaccard(base, shingles("offset + x return :(x)f def")) == 0


def test_band_keys_are_fixed_for_all_time():
    """Signatures are written to files by one run and read by another: these values may never change."""
    keys = band_keys(shingles("one two three four five six seven"), Lsh(2, 3))
    assert keys.tolist() == [12497320645495581186, 1598912629275768085]


def test_pairs_share_a_band_as_often_as_the_curve_says():
    """1 - (1 - J^r)^b, over 1000 pairs of random sets with J = 0.6, 0.8: four standard deviations."""
    generator = np.random.default_rng(0)
    lsh = Lsh(14, 8)
    for common, apart in ((120, 40), (160, 20)):
        expected = 1 - (1 - (common / (common + 2 * apart)) ** lsh.rows) ** lsh.bands
        found = 0
        for _ in range(1000):
            pool = generator.integers(0, 2**64, common + 2 * apart, dtype=np.uint64)
            left, right = np.sort(pool[: common + apart]), np.sort(pool[apart:])
            found += bool(np.any(band_keys(left, lsh) == band_keys(right, lsh)))
        assert abs(found / 1000 - expected) < 4 * (expected * (1 - expected) / 1000) ** 0.5


def test_lsh_for_a_threshold_uses_no_more_permutations_than_given():
    low, high = Lsh.for_threshold(0.5, 112), Lsh.for_threshold(0.9, 112)
    assert low.bands * low.rows <= 112 and high.bands * high.rows <= 112
    assert low.rows < high.rows
    assert Lsh.for_threshold(0.7) == Lsh(22, 5)  # finds 98 pairs in 100 at J = 0.7
