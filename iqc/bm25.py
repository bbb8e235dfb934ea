"""BM25: which texts are about the same things as a query, in an index that can be changed.

Okapi BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", section 3) with the
idf that Lucene uses because it cannot be negative: log(1 + (N - n + 0.5) / (n + 0.5)). Libraries build an index once;
here texts come, change and go, as files do from commit to commit, at a cost in proportion to what changes.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from heapq import nlargest, nsmallest
from math import log
from typing import Generic, TypeVar

K1 = 1.2  # how soon a repeated word stops counting
B = 0.75  # how much long texts are held back

# The parts of identifiers: HTTPServer2_name is http, server, 2, name. Letters beyond ASCII count as small ones; most
# text has none, and is twice as fast without them.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[0-9]+")
_ASCII_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case, identifiers taken apart. None is of more than one line."""
    return [*map(str.lower, (_ASCII_WORD if text.isascii() else _WORD).findall(text))]


Key = TypeVar("Key")


class Index(Generic[Key]):
    """Texts by key, as bags of words; keys are hashable and have an order. Memory is one entry for each distinct word
    of each text."""

    def __init__(self) -> None:
        self._postings: dict[str, dict[Key, int]] = {}  # word -> key -> how often
        self._sizes: dict[Key, int] = {}  # key -> words in all
        self._total = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def add(self, key: Key, counts: Mapping[str, int]) -> None:
        """A new text. ValueError when the key is taken."""
        if key in self._sizes:
            raise ValueError(f"{key!r} is indexed already")
        self._sizes[key] = 0
        self.change(key, counts, {})

    def change(self, key: Key, plus: Mapping[str, int], minus: Mapping[str, int]) -> None:
        """A text gains and loses words. KeyError when the key, or a word that it should lose, is not there."""
        size = self._sizes[key]
        postings = self._postings
        for word, gain in plus.items():
            count = gain - minus.get(word, 0)  # most words of a changed line stay in it
            if count > 0:
                size += count
                posting = postings.get(word)
                if posting is None:
                    postings[word] = {key: count}
                else:
                    posting[key] = posting.get(key, 0) + count
            elif count < 0:
                size += count
                self._lose(key, word, -count)
        for word, count in minus.items():
            if word not in plus:
                size -= count
                self._lose(key, word, count)
        self._total += size - self._sizes[key]
        self._sizes[key] = size

    def _lose(self, key: Key, word: str, count: int) -> None:
        posting = self._postings[word]
        left = posting[key] - count
        if left > 0:
            posting[key] = left
        elif left < 0:
            raise KeyError(f"{key!r} does not hold {word!r} {count} times")
        else:
            del posting[key]
            if not posting:
                del self._postings[word]

    def remove(self, key: Key, counts: Mapping[str, int]) -> None:
        """A text goes. `counts` is what it holds: the index has no list of words by text."""
        self.change(key, {}, counts)
        if self._sizes[key]:
            raise KeyError(f"{key!r} holds more words than these")
        del self._sizes[key]

    def discard(self, keys: Iterable[Key]) -> None:
        """Texts go of which nobody knows what they hold: every word of the index is asked once."""
        gone = set(keys)
        if not gone:
            return
        emptied = []
        for word, posting in self._postings.items():
            for key in gone & posting.keys():
                del posting[key]
            if not posting:
                emptied.append(word)
        for word in emptied:
            del self._postings[word]
        for key in gone:
            self._total -= self._sizes.pop(key)

    def top(self, query: Iterable[str], k: int, skip: Collection[Key] = ()) -> list[tuple[Key, float]]:
        """The `k` best texts that share a word with the query, best first, ties by key; repeated words count again."""
        if not self._sizes:
            return []
        weighed = []
        for word, times in Counter(query).items():
            if posting := self._postings.get(word):
                idf = log(1 + (len(self._sizes) - len(posting) + 0.5) / (len(posting) + 0.5))
                weighed.append((times * idf * (K1 + 1), word, posting))
        weighed.sort(key=lambda item: (-item[0], item[1]))  # floats are added in one order
        # `left` is what all further words can add to one text. Once that is less than the k-th best text has, no other
        # text becomes one of the best, and common words' long lists are not gone through (Turtle and Flood 1995).
        left = sum(weight for weight, _, _ in weighed) * (1 + 1e-9)  # a bound in spite of rounding
        enough = k + len(skip)
        sizes, short, long = self._sizes, K1 * (1 - B), K1 * B * len(self._sizes) / (self._total or 1)
        scores: dict[Key, float] = {}
        for weight, _, posting in weighed:
            if len(posting) > 2 * len(scores) > 2 * enough and nlargest(enough, scores.values())[-1] > left:
                hits: Iterable[tuple[Key, int]] = [(key, count) for key in scores if (count := posting.get(key))]
            else:
                hits = posting.items()
            for key, count in hits:
                scores[key] = scores.get(key, 0.0) + weight * count / (count + short + long * sizes[key])
            left -= weight
        found = ((key, score) for key, score in scores.items() if key not in skip)
        return nsmallest(k, found, key=lambda item: (-item[1], item[0]))
