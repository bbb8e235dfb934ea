"""How representative a change of a repository is: rules that reject it by name, and a score of those that remain.

A rule measures; the numbers and patterns that it is held against are in `triplets.toml`.
"""

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from itertools import chain
from math import log
from typing import Any

from iqc.syntax.languages import languages


@dataclass(frozen=True)
class FileChange:
    """One path of a change: its texts (None: no such side, or binary) and the new side's language.

    What is measured of it is kept, because a change is judged again as a part of every larger one.
    """

    path: str
    old: str | None
    new: str | None
    lang: str | None

    @cached_property
    def differing(self) -> tuple[str, str]:
        """Both texts less the whole lines that both begin with, and then those that both end with."""
        old, new = self.old or "", self.new or ""
        head = old.rfind("\n", 0, _alike(old, new)) + 1
        old, new = old[head:], new[head:]
        tail = old[len(old) - _alike(old, new, from_end=True) :]
        whole = len(tail) - (tail.find("\n") + 1) if "\n" in tail else 0
        return old[: len(old) - whole], new[: len(new) - whole]

    @cached_property
    def lines(self) -> tuple[list[str], list[str]]:
        """The lines of the two differing texts."""
        old, new = self.differing
        return old.splitlines(), new.splitlines()

    @cached_property
    def reformatted(self) -> bool:
        """Both sides exist and are the same but for white space."""
        old, new = self.differing
        if self.old is None or self.new is None or old.split(maxsplit=9)[:9] != new.split(maxsplit=9)[:9]:
            return False
        return old.split() == new.split()

    @cached_property
    def generated(self) -> bool:
        """By its name, by what it says of itself, or a binary file: nobody typed it."""
        text = self.new if self.new is not None else self.old
        if text is None or path_is("generated_path", self.path):
            return True
        head = text[:1000].lower()
        return any(words in head for words in table()["reject"]["generated_text"])


def _alike(one: str, other: str, from_end: bool = False) -> int:
    """How many characters two texts begin, or end, with alike; halves are compared, which is a matter of memory."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if from_end:
            same = one.endswith(other[len(other) - middle : len(other) - low], 0, len(one) - low)
        else:
            same = one.startswith(other[low:middle], low)
        low, high = (middle, high) if same else (low, middle - 1)
    return low


@cache
def table() -> dict[str, Any]:
    return tomllib.loads((files("iqc.history") / "triplets.toml").read_text(encoding="utf-8"))


@cache
def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(table()["reject"][rule], re.IGNORECASE if rule not in ("lock", "test") else 0)


@lru_cache(maxsize=1 << 14)
def path_is(rule: str, path: str) -> bool:
    """Whether a path is vendored, a lock, a test or a generated_path."""
    return bool(_pattern(rule).search(path))


def subject_and_body(message: str) -> tuple[str, str]:
    """The subject is the first line; of a merged pull request, it is the title, the first line of the body."""
    subject, _, body = message.strip().partition("\n")
    if _pattern("pull_request").search(subject) and body.strip():
        subject, _, body = body.strip().partition("\n")
    return subject.strip(), body.strip()


def too_long(message: str) -> bool:
    return len(message) > table()["message"]["max_chars"]


def reject_message(message: str, merge: bool) -> str | None:
    """The rule that a commit's message breaks."""
    if too_long(message):
        return "message_chars"
    if _pattern("revert").search(message.strip()) or _pattern("revert").search(subject_and_body(message)[0]):
        return "revert"
    if merge and _pattern("sync_merge").search(message.strip()):
        return "sync_merge"
    return None


def reject_paths(paths: list[str]) -> str | None:
    """The rule that a change breaks by where all of it lies."""
    if not paths:
        return "empty"
    for rule in ("vendored", "lock"):
        if all(path_is(rule, path) for path in paths):
            return rule
    return None


def reject_texts(changes: list[FileChange]) -> str | None:
    """The rule that a change breaks by what its texts are: generated, or the same but for white space."""
    ours = [change for change in changes if not path_is("lock", change.path)]
    if all(change.generated for change in ours):
        return "generated"
    if all(change.reformatted for change in ours):
        return "formatting"
    return None


def changed_lines(changes: list[FileChange]) -> int:
    """Lines added and lines deleted, as bags over the whole change: a line or a file that moves is neither."""
    deleted = Counter(chain.from_iterable(change.lines[0] for change in changes))
    added = Counter(chain.from_iterable(change.lines[1] for change in changes))
    both = deleted.keys() & added.keys()
    moved = sum(map(min, map(deleted.__getitem__, both), map(added.__getitem__, both)))
    return deleted.total() + added.total() - 2 * moved


def score(changes: list[FileChange], messages: list[str]) -> tuple[float, dict[str, float]]:
    """The weighted mean of the parts, and the parts, all in [0, 1].

    size      changed lines, see [size]
    code      share of the changed files that are written in a programming language
    tests     1 when code and tests change together, 0.5 for code alone, 0 without code
    message   mean over the commits of the share of message rules that are kept
    """
    is_code = [change.lang is not None and languages()[change.lang].code for change in changes]
    is_test = [path_is("test", change.path) for change in changes]
    code = any(c and not t for c, t in zip(is_code, is_test))
    parts = {
        "size": _size(changed_lines(changes)),
        "code": sum(is_code) / len(changes),
        "tests": (0.5 + 0.5 * any(is_test)) if code else 0.0,
        "message": sum(_subject(subject_and_body(message)[0]) for message in messages) / len(messages),
    }
    weights = table()["weights"]
    total = sum(weights[part] * value for part, value in parts.items()) / sum(weights.values())
    return round(total, 4), {part: round(value, 4) for part, value in parts.items()}


def _size(lines: int) -> float:
    (low_full, high_full), (low_zero, high_zero) = table()["size"]["full"], table()["size"]["zero"]
    if not low_zero < lines < high_zero:
        return 0.0
    if lines < low_full:
        return log(lines / low_zero) / log(low_full / low_zero)
    if lines > high_full:
        return log(high_zero / lines) / log(high_zero / high_full)
    return 1.0


@lru_cache(maxsize=1024)
def _subject(subject: str) -> float:
    """Share of kept rules: length, words, a capital first letter, and nothing that says the commit is not a whole."""
    rules = table()["message"]
    kept = [
        rules["subject_chars"][0] < len(subject) < rules["subject_chars"][1],
        rules["subject_words"][0] < len(subject.split()) < rules["subject_words"][1],
        subject[:1].isupper(),
        not any(re.search(bad, subject, re.IGNORECASE) for bad in rules["bad"]),
    ]
    return sum(kept) / len(kept)
