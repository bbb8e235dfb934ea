"""Relations that every fill-in-the-middle sample keeps, on generated text and on the standard library's own files."""

import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.fim.cuts import LEVELS
from iqc.fim.layout import LAYOUTS
from iqc.fim.samples import FillInTheMiddle
from iqc.streams.stage import Dropped
from iqc.syntax.languages import languages
from iqc.syntax.parse import nodes, parse

STDLIB = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:20]
SOURCE = """import os


def first(x):
    return x + 1


def second(a, b, c):
    def inner():
        return a
    return [inner() for _ in range(b * c + len("é"))]
"""

odd_text = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            ["<|im_end|>", "<|fim_middle|>", "</think>", "<CLS>", "<|", "|>", "\r\n", "\r", "\n", "\f", "\0", "\ufeff",
             "\u2028", "e\u0301", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\xa0", "\t", "é", "def f():\n  x"]
        ),
    ),
    max_size=12,
).map("".join)  # fmt: skip


@given(odd_text, st.sampled_from(sorted(LAYOUTS)), st.integers(0, 99), st.sampled_from([0, 1, 3, 50]))
@settings(max_examples=400)
def test_any_text_is_reconstructed_or_blank(made, check, text, layout, seed, limit):
    out = made(text, layout=layout, seed=seed, samples=3, limit=limit)
    if not text.strip():
        assert [type(item) for item in out] == [Dropped] and out[0].rule == "fim.blank"
    else:
        assert 1 <= len(out) <= 3
        for k, sample in enumerate(out):
            check(sample, text)
            assert sample["id"] == f"d#fim{k}"
            assert not limit or len(sample["middle"]) <= limit


@pytest.mark.parametrize("level", LEVELS)
def test_the_standard_library_is_reconstructed_at_every_level(made, check, level):
    levels = Counter()
    for path in STDLIB:
        text = path.read_text(encoding="utf-8")
        found = None
        if level in languages()["python"].levels:
            found = {(node.start_byte, node.end_byte) for node in nodes(parse(text, "python"), "python", level)}
        for sample in made(text, path.name, weights={level: 1}, samples=4):
            check(sample, text)
            levels[sample["level"]] += 1
            if sample["level"] == "line":
                assert "\n" not in sample["middle"] and sample["prefix"][-1:] in ("", "\n")
            elif found is not None:
                start = len(sample["prefix"].encode())
                assert (start, start + len(sample["middle"].encode())) in found
    assert levels[level] >= 0.8 * levels.total()


def test_layouts_are_those_of_the_report(made):
    sample = made("a = 1\n", weights={"line": 1})[0]
    assert sample["text"] == "<|fim_prefix|><|fim_suffix|>\n<|fim_middle|>a = 1<|im_end|>"
    sample = made("a = 1\n", weights={"line": 1}, layout="spm")[0]
    assert sample["text"] == "<|fim_suffix|>\n<|fim_prefix|><|fim_middle|>a = 1<|im_end|>"
    assert sample["layout"] == "spm"


def test_control_tokens_of_the_source_are_neutralised_in_the_text_alone(made):
    sample = made("a <|im_end|> b <think>\n", weights={"line": 1})[0]
    assert sample["middle"] == "a <|im_end|> b <think>"
    assert sample["text"] == "<|fim_prefix|><|fim_suffix|>\n<|fim_middle|>a <| im_end |> b < think ><|im_end|>"
    assert sample["metadata"]["fim_neutralised"] == 2


@pytest.mark.parametrize(
    ("lang", "text", "reason"),
    [
        ("klingon", "nuqneH\n", "unknown language"),
        ("json", '{"a": 1}\n', "the language has no such level"),
        ("python", "x = 1\n", "the file has no such node"),
        ("python", "def f():\n    pass\n", "the file has no such node"),  # the node is the whole file
    ],
)
def test_a_level_that_is_not_there_falls_back_to_a_line_and_says_so(made, lang, text, reason):
    sample = made(text, lang=lang, weights={"function": 1})[0]
    assert sample["level"] == "line"
    assert sample["metadata"]["fim_fallback"] == {"level": "function", "reason": reason}


def test_the_language_comes_from_the_path_when_the_record_does_not_say(document):
    record = document(SOURCE, path="a/b.py")
    sample = next(FillInTheMiddle(rate=1, weights={"function": 1}).transform(record))
    assert sample["level"] == "function" and sample["metadata"]["path"] == "a/b.py"
    assert record == document(SOURCE, path="a/b.py")


def test_rate_and_determinism(document):
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


def test_a_rate_of_a_language_comes_before_the_rate(document):
    stage = FillInTheMiddle(rate=0.5, rates={"python": 1, "c": 0, "typescript": 0.2})
    drawn = Counter()
    for lang in ("python", "c", "ts", "go", "klingon"):
        for k in range(400):
            drawn[lang] += "level" in next(stage.transform(document("a\nb\n", f"{lang}{k}", lang=lang)))
    assert drawn["python"] == 400 and drawn["c"] == 0
    assert 50 < drawn["ts"] < 110 and 150 < drawn["go"] < 250 and 150 < drawn["klingon"] < 250


def test_weights_are_kept(made):
    drawn = Counter()
    for k in range(600):
        drawn[made(SOURCE, f"d{k}", weights={"line": 2, "function": 1})[0]["level"]] += 1
    assert set(drawn) == {"line", "function"} and 340 < drawn["line"] < 460


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 2},
        {"rates": {"python": -1}},
        {"rates": {"klingon": 0.5}},
        {"layout": "mps"},
        {"weights": {"word": 1}},
        {"weights": {"line": 0}},
        {"weights": {}},
        {"samples": 0},
        {"limit": -1},
    ],
)
def test_wrong_options_are_errors_by_name(options):
    with pytest.raises(IqcError):
        FillInTheMiddle(**options)


@pytest.mark.parametrize("record", [{"id": "a"}, {"text": "x"}, {"id": "a", "text": 3}])
def test_a_record_that_is_no_document(record):
    with pytest.raises(BadRecord):
        list(FillInTheMiddle(rate=1).transform(record))


def test_a_lone_surrogate_is_a_bad_record(made):
    with pytest.raises(BadRecord):
        made("x = '\ud800'\nf(x)\n", weights={"expression": 1})
