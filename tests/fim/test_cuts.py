"""Every cut of a level is as likely as any other; files and grammars that give trouble give a line and the reason."""

import time
from collections import Counter

import pytest

from iqc.errors import IqcError
from iqc.fim import cuts
from iqc.fim.cuts import LEVELS, Cutter
from iqc.streams.stage import rng
from iqc.syntax.parse import nodes, parse

SOURCE = """import os


def first(x):
    return x + 1


def second(a, b, c):
    def inner():
        return a
    return [inner() for _ in range(b * c + len("é"))]


class K:
    def m(self):
        if self:
            return os.path.join("a", "b", str(1 + 2 * 3), f"{self!r:>{10}}")
"""


def within_chance(seen: Counter, expected: int, each: int) -> bool:
    """Chi-squared against the uniform law: four standard deviations. Seeds are fixed, so no test fails by chance."""
    freedom = expected - 1
    chi = sum((count - each) ** 2 / each for count in seen.values())
    return len(seen) == expected and chi < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("level", ["line", "expression", "statement", "function"])
@pytest.mark.parametrize("limit", [0, 30])
def test_every_node_or_line_is_drawn_equally_often(level, limit):
    if level == "line":
        whole = [line for line in SOURCE.split("\n") if line.strip()]
    else:
        data = SOURCE.encode()
        whole = [data[n.start_byte : n.end_byte].decode() for n in nodes(parse(data, "python"), "python", level)]
    expected = sum(not limit or len(text) <= limit for text in whole)
    cutter, random, each = Cutter(SOURCE, "python", limit), rng(1, "test", level), 200
    seen = Counter(cutter.cut(level, random)[1] for _ in range(each * expected))
    assert within_chance(seen, expected, each)
    assert all(len(SOURCE[start:end]) <= (limit or len(SOURCE)) for start, end in seen)


@pytest.mark.parametrize(("limit", "pairs"), [(0, 10), (2, 7), (1, 4)])
def test_character_cuts_are_uniform_over_pairs(limit, pairs):
    cutter, random = Cutter("abcd", None, limit), rng(2, "test", "character")
    seen = Counter(cutter.cut("character", random)[1] for _ in range(1000 * pairs))
    assert within_chance(seen, pairs, 1000)  # of 0 <= start < end <= 4


def test_lines_end_at_line_feeds_and_carriage_returns_alone():
    text = "one\r\ntwo\rthree\f x\u2028y\n\n  \nfour"
    cutter, random = Cutter(text, None), rng(0, "test", "ends")
    assert {text[slice(*cutter.cut("line", random)[1])] for _ in range(200)} == {
        "one", "two", "three\f x\u2028y", "four",
    }  # fmt: skip


def test_character_cuts_fall_between_any_two_code_points():
    text = "e\u0301\r\n\U0001f468\u200d\U0001f469"
    cutter, random = Cutter(text, None), rng(0, "test", "points")
    ends = {end for _ in range(500) for end in cutter.cut("character", random)[1]}
    assert ends == set(range(len(text) + 1))


def test_a_nearly_blank_file_ends():
    text = " " * 200_000 + "x" + "\n" * 200_000
    for level in LEVELS:
        for limit in (0, 5):
            start, end = Cutter(text, "python", limit).cut(level, rng(0, "test", level))[1]
            assert "x" in text[start:end]


def test_lines_over_the_limit_become_characters():
    level, (start, end), reason = Cutter("abcdefgh\nijklmnop\n", None, 3).cut("line", rng(0, "test", "long"))
    assert (level, reason) == ("character", "no line is within the limit") and end - start <= 3


def test_nodes_over_the_limit_are_not_drawn():
    level, _, reason = Cutter(SOURCE, "python", 10).cut("function", rng(0, "test", "long"))
    assert (level, reason) == ("line", "the file has no such node")


@pytest.mark.parametrize("level", LEVELS)
def test_a_file_of_200_mb_takes_seconds(level):
    line = "x = call(1, 'é')  # a line of a file that a program wrote\n"
    text = line * (200_000_000 // len(line.encode()))
    started = time.process_time()
    found, (start, end), reason = Cutter(text, "python").cut(level, rng(0, "test", level))
    assert time.process_time() - started < 10
    assert text[start:end].strip()
    assert reason == (None if found == level else "the file is too large to parse")


def test_a_grammar_that_cannot_be_loaded_gives_lines_and_the_reason(monkeypatch):
    def broken(*_: object) -> None:
        raise IqcError("the grammar cannot be loaded: no such file", remedy="install it")

    monkeypatch.setattr(cuts, "parse", broken)
    cutter = Cutter(SOURCE, "python")
    for level in ("function", "statement"):
        found, _, reason = cutter.cut(level, rng(0, "test", level))
        assert (found, reason) == ("line", "not parsed: the grammar cannot be loaded: no such file")


@pytest.mark.parametrize(("lang", "text"), [("swift", "/*" * 1000), ("scala", "a b " * 20_000), ("perl", "`${" * 400)])
def test_text_that_would_hold_or_crash_the_parser_gives_lines(monkeypatch, lang, text):
    monkeypatch.setattr(cuts, "PARSE_SECONDS", 1)
    level, _, reason = Cutter(text, lang).cut("statement", rng(0, "test", lang))
    assert (level, reason) == ("line", "the parse takes too long or crashes")
