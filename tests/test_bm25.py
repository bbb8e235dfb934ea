"""The index against the formula written out, and a changed index against one built anew."""

from collections import Counter
from math import isclose, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.bm25 import K1, B, Index, words

TEXTS = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("uvwxyz"), max_size=12), min_size=1)


def by_formula(texts, query):
    mean = sum(map(len, texts.values())) / len(texts) or 1.0
    scores = {}
    for key, text in texts.items():
        score = 0.0
        for word in query:
            holding = sum(word in other for other in texts.values())
            idf = log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            count = text.count(word)
            score += idf * count * (K1 + 1) / (count + K1 * (1 - B + B * len(text) / mean))
        if set(query) & set(text):
            scores[key] = score
    return scores


def build(texts):
    index = Index()
    for key, text in texts.items():
        index.add(key, Counter(text))
    return index


@given(TEXTS, st.lists(st.sampled_from("uvwxyz"), max_size=5))
def test_the_scores_are_the_formula(texts, query):
    expected = by_formula(texts, query)
    found = build(texts).top(query, 10)
    assert {key for key, _ in found} == set(expected)
    assert all(isclose(score, expected[key], rel_tol=1e-12) for key, score in found)
    assert found == sorted(found, key=lambda item: (-item[1], item[0]))


@given(TEXTS, TEXTS, st.lists(st.sampled_from("uvwxyz"), max_size=5))
def test_a_changed_index_is_one_built_anew(before, after, query):
    index = build(before)
    for key in before.keys() | after.keys():
        old, new = Counter(before.get(key, [])), Counter(after.get(key, []))
        if key not in after:
            index.remove(key, old)
        elif key not in before:
            index.add(key, new)
        else:
            index.change(key, new - old, old - new)
    assert index.top(query, 10) == build(after).top(query, 10)
    assert len(index) == len(after)


@given(
    st.lists(st.lists(st.sampled_from("tuvwxyz"), max_size=9), min_size=1, max_size=40),
    st.lists(st.sampled_from("tuvwxyz"), max_size=6),
    st.integers(1, 3),
    st.sets(st.integers(0, 39), max_size=3),
    st.sets(st.integers(0, 39), max_size=9),
)
def test_the_best_few_are_the_best_of_all(texts, query, k, skip, gone):
    """What is passed over to be fast is not among the best; texts that left by discard leave nothing behind."""
    index = build(dict(enumerate(texts)))
    index.discard(gone & set(range(len(texts))))
    left = {key: text for key, text in enumerate(texts) if key not in gone}
    everything = build(left).top(query, len(texts))
    assert index.top(query, k, skip) == [item for item in everything if item[0] not in skip][:k]
    assert len(index) == len(left) and index._postings == build(left)._postings


def test_keys_may_be_skipped_and_the_best_come_first():
    index = build({"a": ["x"] * 3, "b": ["x"], "c": ["y"], "d": ["x"] * 3})
    assert [key for key, _ in index.top(["x"], 2)] == ["a", "d"]
    assert [key for key, _ in index.top(["x"], 2, skip={"a"})] == ["d", "b"]
    assert Index().top(["x"], 2) == []


def test_what_is_not_there_cannot_go():
    index = build({"a": ["x"]})
    with pytest.raises(ValueError):
        index.add("a", {})
    for wrong in ({"x": 2}, {"y": 1}, {}):
        with pytest.raises(KeyError):
            build({"a": ["x"]}).remove("a", wrong)
    index.remove("a", {"x": 1})
    assert "a" not in index


def test_words_are_the_parts_of_identifiers():
    assert words("parseHTTPServer2_name = XMLHttp.get(3.14) # größe 名前") == [
        *("parse", "http", "server", "2", "name", "xml", "http", "get", "3", "14"),
        *("größe", "名前"),
    ]
