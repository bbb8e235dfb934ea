"""Snippets of a repository's other files that are like the surroundings of a hole.

A snippet is a window of whole lines; windows overlap by half, so that any stretch of half a window is whole in one. 20
lines are RepoCoder's window (Zhang et al. 2023, arXiv 2303.12570). The query is a window of the same size around the
hole, without its middle: the model will have no more to go by. Files of programming languages give snippets, documents
and data do not. They are indexed once a repository.

Never given: a snippet of the file itself, or of a near duplicate of it (a Jaccard similarity of the shingles of
iqc.dedup of its THRESHOLD or more); where the middle has 20 characters or more, a snippet that contains it or lies in
it, white space collapsed, because a copy may be indented otherwise; two snippets that share a line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from iqc.dedup.documents import THRESHOLD
from iqc.dedup.minhash import U64, jaccard, shingles
from iqc.fim.layout import Snippet
from iqc.fim.ranking import Bm25, Ranking
from iqc.streams.stage import Record
from iqc.syntax.languages import language_of_record, languages

LINES = 20  # of a snippet
BUDGET = 6000  # characters of all snippets of a sample with their paths, about 2,000 tokens
LEAST_MIDDLE = 20  # characters from which on a middle must not be given away
MAX_FILE = 1_000_000  # characters of a file that gives snippets: what is longer was made by a program
_MAX_QUERY = 2000  # characters on each side of the hole: one line may be as long as a file
_LOOKED_AT = 1000  # the most similar snippets, of which some may be shown


@dataclass(frozen=True, slots=True)
class _Window:
    file: int
    line: int  # of its first line, from 0
    text: str


class Snippets:
    """The snippets of one repository.

    `files`: those of a repository record. `rank` indexes their texts, when the first hole asks. `budget`: characters of
    all snippets of a hole, with their paths.
    """

    def __init__(
        self,
        files: Sequence[Record],
        rank: Callable[[Sequence[str]], Ranking] = Bm25,
        budget: int = BUDGET,
        lines: int = LINES,
    ):
        self._files = files
        self._rank = rank
        self._budget = budget
        self._lines = lines
        self._shingles: dict[int, U64] = {}
        self._nearness: dict[tuple[int, int], bool] = {}

    def similar(self, file: int, prefix: str, middle: str, suffix: str) -> list[Snippet] | str:
        """The snippets for a hole in that file, the most similar last, next to the hole; or why there is none."""
        path = self._files[file]["path"]
        if self._paths <= {path}:
            return "no other file of code in the repository"
        query = self._query(prefix, suffix)
        hidden = _collapsed(middle) if len(middle.strip()) >= LEAST_MIDDLE else None
        chosen: list[_Window] = []
        left = self._budget
        for window in self._best(query):
            if left < self._enough:
                break
            if (
                self._size(window) <= left
                and self._files[window.file]["path"] != path
                and not self._near(file, window.file)
                and not (hidden and _shared(hidden, _collapsed(window.text)))
                and not any(self._overlap(window, other) for other in chosen)
            ):
                chosen.append(window)
                left -= self._size(window)
        if not chosen:
            return "no snippet is similar and may be shown"
        return [self._snippet(window) for window in reversed(chosen)]

    def _query(self, prefix: str, suffix: str) -> str:
        half = self._lines // 2
        before, after = prefix[-_MAX_QUERY:].split("\n")[-half:], suffix[:_MAX_QUERY].split("\n")[:half]
        return "\n".join(before) + "\n" + "\n".join(after)

    def _best(self, query: str) -> list[_Window]:
        """The most similar ones, best first; equals in the order of the files."""
        if not query.strip():
            return []
        scores = self._ranking.scores(query)
        least = np.partition(scores, -_LOOKED_AT)[-_LOOKED_AT] if len(scores) > _LOOKED_AT else 0
        found = np.flatnonzero((scores > 0) & (scores >= least))
        best = found[np.argsort(-scores[found], kind="stable")[:_LOOKED_AT]]
        return [self._windows[number] for number in best.tolist()]

    @cached_property
    def _windows(self) -> list[_Window]:
        step = max(1, self._lines // 2)
        found = []
        for number, file in enumerate(self._files):
            text = file.get("text")
            if not isinstance(text, str) or len(text) > MAX_FILE or not _is_code(file):
                continue
            lines = text.removesuffix("\n").split("\n")
            for start in range(0, max(1, len(lines) - self._lines + step), step):
                window = _Window(number, start, "\n".join(lines[start : start + self._lines]))
                if window.text and not window.text.isspace() and self._size(window) <= self._budget:
                    found.append(window)
        return found

    @cached_property
    def _paths(self) -> set[str]:
        return {self._files[window.file]["path"] for window in self._windows}

    @cached_property
    def _enough(self) -> int:
        """Characters of the budget that are not worth a search: a twentieth, or less than any snippet."""
        return max(self._budget // 20, min(map(self._size, self._windows)))

    @cached_property
    def _ranking(self) -> Ranking:
        return self._rank([window.text for window in self._windows])

    def _near(self, one: int, other: int) -> bool:
        """Whether two files are near duplicates; equal texts are, however short."""
        pair = (min(one, other), max(one, other))
        if pair not in self._nearness:
            small, large = sorted((self._shingled(one), self._shingled(other)), key=len)
            likely = len(small) >= THRESHOLD * len(large)  # J <= |smaller| / |larger|
            same = self._files[one]["text"] == self._files[other]["text"]
            self._nearness[pair] = same or (likely and jaccard(small, large) >= THRESHOLD)
        return self._nearness[pair]

    def _shingled(self, number: int) -> U64:
        if number not in self._shingles:
            self._shingles[number] = shingles(self._files[number]["text"])
        return self._shingles[number]

    def _overlap(self, one: _Window, other: _Window) -> bool:
        return one.file == other.file and abs(one.line - other.line) < self._lines

    def _size(self, window: _Window) -> int:
        return len(self._files[window.file]["path"]) + len(window.text) + 2  # two line ends

    def _snippet(self, window: _Window) -> Snippet:
        return {"path": self._files[window.file]["path"], "text": window.text, "line": window.line + 1}


def _is_code(file: Record) -> bool:
    lang = language_of_record({"text": file["text"], "metadata": {"lang": file.get("lang"), "path": file["path"]}})
    return lang in languages() and languages()[lang].code


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _shared(hidden: str, shown: str) -> bool:
    return hidden in shown or (len(shown) >= LEAST_MIDDLE and shown in hidden)
