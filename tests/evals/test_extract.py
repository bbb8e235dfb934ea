"""The answer in a model's text."""

import pytest

from iqc.evals.extract import cut_at, fenced, without_thinking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x", "x"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>never ends", ""),
        ("a</think>b<think>c", ""),
    ],
)
def test_without_thinking(text, answer):
    assert without_thinking(text) == answer


def test_fenced():
    assert fenced("Here:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1\n"
    assert fenced("```\ncut off") == "cut off"
    assert fenced("no `fence` here") is None


def test_cut_at_takes_the_earliest():
    assert cut_at("a\nb\nc", ["\nc", "\nb"]) == "a"
    assert cut_at("abc", ["x"]) == "abc"
