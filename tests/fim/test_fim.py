"""Relations that every fill-in-the-middle sample keeps, on generated text and on the standard library's own files."""

import re
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.fim import LAYOUTS, LEVELS, FillInTheMiddle, _Cutter, neutralise
from iqc.streams.stage import Dropped, rng
from iqc.syntax.languages import languages
from iqc.syntax.parse import nodes, parse

STDLIB = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:20]
TOKEN = re.compile(r"<\|[a-z_]+\|>")


def walk(node):
    yield node
    for child in node.children:
        yield from walk(child)


def of_level(node, level, types):
    """In this grammar `expression_statement` is a class of nodes, not a node: a statement is what a block holds."""
    return node.parent and node.parent.type in ("module", "block") if level == "statement" else node.type in types


def document(text, name="d", **metadata):
    return {"id": name, "text": text, "source": "test", "metadata": metadata}


def made(text, name="d", lang="python", **options):
    return list(FillInTheMiddle(rate=1, **options).transform(document(text, name, lang=lang)))


def check(sample, text):
    assert sample["prefix"] + sample["middle"] + sample["suffix"] == text
    assert sample["middle"].strip()
    layout = LAYOUTS[sample["layout"]]
    order = re.findall(r"\{(\w+)\}", layout)
    assert sample["text"] == layout.format(**{part: neutralise(sample[part])[0] for part in order})
    assert len(re.findall(r"<\|(?:fim_prefix|fim_suffix|fim_middle|im_end)\|>", sample["text"])) == 4
    assert sample["context"] == []


text_with_tokens = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            ["<|im_end|>", "<|fim_middle|>", "<|", "|>", "\r\n", "\n", "\f", "\u2028", "é", "def f():\n  x"]
        ),
    ),
    max_size=12,
).map("".join)


@given(text_with_tokens, st.sampled_from(sorted(LAYOUTS)), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_any_text_is_reconstructed_or_blank(text, layout, seed):
    out = made(text, layout=layout, seed=seed, samples=3)
    if not text.strip():
        assert [type(item) for item in out] == [Dropped] and out[0].rule == "fim.blank"
    else:
        assert 1 <= len(out) <= 3
        for k, sample in enumerate(out):
            check(sample, text)
            assert sample["id"] == f"d#fim{k}"
            found = sum(
                len(re.findall(r"<\|(?:im_end|fim_middle)\|>", sample[part])) for part in ("prefix", "middle", "suffix")
            )
            assert sample["metadata"].get("fim_neutralised", 0) == found


@pytest.mark.parametrize("level", LEVELS)
def test_the_standard_library_is_reconstructed_at_every_level(level):
    types = languages()["python"].levels.get(level)
    levels = Counter()
    for path in STDLIB:
        text = path.read_text(encoding="utf-8")
        for sample in made(text, path.name, weights={level: 1}, samples=4):
            check(sample, text)
            levels[sample["level"]] += 1
            if sample["level"] == "line":
                assert "\n" not in sample["middle"] and sample["prefix"][-1:] in ("", "\n")
            elif types:
                start = len(sample["prefix"].encode())
                end = start + len(sample["middle"].encode())
                root = parse(text, "python").root_node
                found = {(node.start_byte, node.end_byte) for node in walk(root) if of_level(node, level, types)}
                assert (start, end) in found
    assert levels[level] >= 0.8 * levels.total()


def test_layouts_are_those_of_the_report():
    sample = made("a = 1\n", weights={"line": 1})[0]
    assert sample["text"] == "<|fim_prefix|><|fim_suffix|>\n<|fim_middle|>a = 1<|im_end|>"
    sample = made("a = 1\n", weights={"line": 1}, layout="spm")[0]
    assert sample["text"] == "<|fim_suffix|>\n<|fim_prefix|><|fim_middle|>a = 1<|im_end|>"


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


@pytest.mark.parametrize("level", ["line", "expression", "statement", "function"])
def test_every_node_or_line_is_drawn_equally_often(level):
    """Chi-squared against the uniform law; the seed is fixed, so the test cannot fail by chance."""
    if level == "line":
        expected = sum(bool(line.strip()) for line in SOURCE.splitlines())
    else:
        expected = len(nodes(parse(SOURCE, "python"), "python", level))
    cutter, random, per_cell = _Cutter(SOURCE, "python"), rng(1, "test", level), 200
    seen = Counter(cutter.cut(level, random)[1] for _ in range(per_cell * expected))
    assert len(seen) == expected
    chi = sum((count - per_cell) ** 2 / per_cell for count in seen.values())
    freedom = expected - 1
    assert chi < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations of the law


def test_character_cuts_are_uniform_over_pairs():
    cutter, random = _Cutter("abcd", None), rng(2, "test", "character")
    seen = Counter(cutter.cut("character", random)[1] for _ in range(10_000))
    assert len(seen) == 10  # 0 <= start < end <= 4
    assert all(abs(count - 1000) < 4 * 30 for count in seen.values())


def test_a_nearly_blank_file_ends():
    text = " " * 200_000 + "x" + "\n" * 200_000
    for level in LEVELS:
        check(made(text, weights={level: 1})[0], text)


@pytest.mark.parametrize(
    ("lang", "text", "reason"),
    [
        ("klingon", "nuqneH\n", "unknown language"),
        ("json", '{"a": 1}\n', "the language has no such level"),
        ("python", "x = 1\n", "the file has no such node"),
        ("python", "def f():\n    pass\n", "the file has no such node"),  # the node is the whole file
    ],
)
def test_a_level_that_is_not_there_falls_back_to_a_line_and_says_so(lang, text, reason):
    sample = made(text, lang=lang, weights={"function": 1})[0]
    assert sample["level"] == "line"
    assert sample["metadata"]["fim_fallback"] == {"level": "function", "reason": reason}


def test_the_language_comes_from_the_path_when_the_record_does_not_say():
    record = document(SOURCE, path="a/b.py")
    sample = next(FillInTheMiddle(rate=1, weights={"function": 1}).transform(record))
    assert sample["level"] == "function" and sample["metadata"]["path"] == "a/b.py"
    assert record == document(SOURCE, path="a/b.py")


def test_rate_and_determinism():
    stage = FillInTheMiddle(rate=0.3, seed=7)
    records = [document(f"a = {k}\nb = f({k})\n", f"d{k}", lang="python") for k in range(1000)]
    once = [out for record in records for out in stage.transform(record)]
    again = {out["id"]: out for record in reversed(records) for out in stage.transform(record)}
    assert {out["id"]: out for out in once} == again
    passed = [out for out in once if "level" not in out]
    assert all(out is records[int(out["id"][1:])] for out in passed)
    assert 0.25 < 1 - len(passed) / 1000 < 0.35
    other = [out for record in records for out in FillInTheMiddle(rate=0.3, seed=8).transform(record)]
    assert other != once


def test_weights_are_kept():
    drawn = Counter()
    for k in range(600):
        drawn[made(SOURCE, f"d{k}", weights={"line": 2, "function": 1})[0]["level"]] += 1
    assert set(drawn) == {"line", "function"} and 340 < drawn["line"] < 460


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 2},
        {"layout": "mps"},
        {"weights": {"word": 1}},
        {"weights": {"line": 0}},
        {"weights": {}},
        {"samples": 0},
    ],
)
def test_wrong_options_are_errors_by_name(options):
    with pytest.raises(IqcError):
        FillInTheMiddle(**options)


@pytest.mark.parametrize("record", [{"id": "a"}, {"text": "x"}, {"id": "a", "text": 3}])
def test_a_record_that_is_no_document(record):
    with pytest.raises(BadRecord):
        list(FillInTheMiddle(rate=1).transform(record))


def test_a_lone_surrogate_is_a_bad_record():
    with pytest.raises(BadRecord):
        made("x = '\ud800'\nf(x)\n", weights={"expression": 1})
