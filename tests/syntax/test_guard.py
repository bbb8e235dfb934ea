"""Ordinary source is parsed at once; what may hold or crash a parser is tried out in another process."""

import os
import sysconfig
from pathlib import Path

import pytest

from iqc.errors import IqcError
from iqc.syntax.guard import survives, suspicious
from iqc.syntax.parse import parse


def test_ordinary_source_is_not_suspicious_and_starts_no_process(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process for ordinary source"))
    files = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))]
    ordinary = [data for data in files if not suspicious(data)]
    assert len(files) > 30 and len(ordinary) >= 0.95 * len(files)
    for data in ordinary[:10]:
        parse(data, "python", 1)


NAMES = [b"n%d" % (k * 7919 % 100_003) for k in range(1000)]  # packed, they keep half their size


@pytest.mark.parametrize(
    "text", [b"x" * 401, *(b"".join(n + o for n in NAMES[:301]) for o in (b"{\n", b"/*\n", b" <\n"))]
)
def test_what_no_hand_writes_is_suspicious(text):
    assert suspicious(text) and not suspicious(text[: len(text) // 2])


def test_much_of_the_same_is_suspicious():
    assert suspicious(b"a=>\n" * 200)
    assert not suspicious(b"".join(name + b"=>\n" for name in NAMES))


def test_what_is_closed_again_is_not_suspicious():
    assert not suspicious(b"".join(b"f(\n{[<" + name + b"\n/* */>]})\n" for name in NAMES))


@pytest.mark.parametrize("text", [b"x = " + b"1 + " * 500 + b"1\n", b"(\n" * 400, b""])
def test_long_lines_and_open_brackets_are_parsed_if_they_can_be(text):
    assert str(parse(text, "python", 5).root_node) == str(parse(text, "python").root_node)


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("swift", b"/*" * 1000),
        ("scala", b"a b " * 20_000),
        ("csharp", b"a<" * 20_000),
        ("perl", b"`${" * 400),
        ("c", b"a=>\n" * 3000),
    ],
)
def test_a_parse_without_end_or_with_a_crash_is_an_error(lang, text):
    with pytest.raises(TimeoutError, match=lang):
        parse(text, lang, 1)
    assert parse(b"", lang).root_node.child_count == 0  # the parser goes on


def test_a_grammar_that_cannot_be_loaded_is_said_before_any_process(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process without a grammar"))
    with pytest.raises(IqcError):
        parse(b"x" * 1000, "klingon", 1)


def test_work_that_raises_does_not_survive(capfd):
    assert survives(lambda: None, 1) and not survives(lambda: 1 / 0, 1)
