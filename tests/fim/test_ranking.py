"""The scores are those of the index that can be changed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.bm25 import Index, words
from iqc.fim.ranking import Bm25

text = st.lists(st.sampled_from(["parseFile", "read", "HTTPServer2", "the", "node", "+", "\n", ""]), max_size=12).map(
    " ".join
)


@given(st.lists(text, min_size=1, max_size=8), text)
def test_the_scores_are_those_of_the_index(texts, query):
    index = Index()
    for number, each in enumerate(texts):
        index.add(str(number), Counter(words(each)))
    expected = dict(index.top(words(query), len(texts)))
    found = Bm25(texts).scores(query)
    assert {str(k) for k, score in enumerate(found) if score > 0} == set(expected)
    for number, score in expected.items():
        assert found[int(number)] == pytest.approx(score, rel=1e-12)


def test_no_texts():
    assert len(Bm25([]).scores("a")) == 0
