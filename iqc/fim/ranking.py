"""BM25 over texts that stay as they are: the scores of iqc.bm25, from arrays instead of tables that can change.

A repository of 16 MB has 16,000 snippets; every one of its files asks for all their scores. Here that takes one
millisecond, with an index made for changes fifty.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from iqc.bm25 import K1, B, words


class Ranking(Protocol):
    """How similar each of some texts is to a query."""

    def scores(self, query: str) -> NDArray[np.floating]:
        """[texts]; 0 or less where there is no similarity."""


class Bm25:
    """Okapi BM25 over the words of identifiers; repeated words of the query count again."""

    def __init__(self, texts: Sequence[str]):
        numbers: dict[str, int] = {}
        of_text: list[int] = []  # one entry for each distinct word of each text, in the three
        of_word: list[int] = []
        times: list[int] = []
        sizes = np.zeros(len(texts))
        for place, text in enumerate(texts):
            counts = Counter(words(text))
            sizes[place] = counts.total()
            of_text += [place] * len(counts)
            of_word += [numbers.setdefault(word, len(numbers)) for word in counts]
            times += counts.values()
        word, count = np.array(of_word, np.int32), np.array(times, np.float64)
        order = np.argsort(word, kind="stable")
        self._texts = np.array(of_text, np.int32)[order]
        holders = np.bincount(word, minlength=len(numbers))
        self._starts = np.concatenate(([0], np.cumsum(holders)))
        self._numbers = numbers
        self._count = len(texts)
        idf = np.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        norm = K1 * (1 - B + B * sizes / (sizes.mean() or 1.0)) if len(texts) else sizes
        count = count[order]
        self._weights = idf[word[order]] * (K1 + 1) * count / (count + norm[self._texts])

    def scores(self, query: str) -> NDArray[np.float64]:
        found = np.zeros(self._count)
        for word, times in sorted(Counter(words(query)).items()):  # sorted: floats are added in one order
            if (number := self._numbers.get(word)) is not None:
                part = slice(self._starts[number], self._starts[number + 1])
                found[self._texts[part]] += times * self._weights[part]
        return found
