"""Neutralised text names no control token, changes nothing else, and is the same whole or in parts between tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.fim.layout import neutralise, write
from iqc.tokens.special import CONTROL

words = st.lists(st.one_of(st.sampled_from([*CONTROL, "<", "|", ">", "<|", "|>", "im_end"]), st.text(max_size=5)))


@given(words.map("".join))
def test_no_control_token_is_left_and_nothing_else_changes(text):
    clean, changed = neutralise(text)
    assert not any(token in clean for token in CONTROL)
    assert clean.replace(" ", "") == text.replace(" ", "")
    assert len(clean) == len(text) + 2 * changed
    assert neutralise(clean) == (clean, 0)


@pytest.mark.parametrize("token", CONTROL)
def test_every_control_token_of_the_vocabulary_is_known(token):
    assert neutralise(f"a{token}b")[1] == 1


@given(words.map("".join), words.map("".join), words.map("".join))
def test_only_the_tokens_of_the_layout_are_in_the_text(prefix, middle, suffix):
    context = [{"path": "<|file_sep|>", "text": middle, "line": 1}]
    text, _ = write("psm", prefix, middle, suffix, context, "r<|repo_name|>", suffix)
    found = sum(text.count(token) for token in CONTROL)
    assert found == 1 + 2 + 4  # repository, two files, the hole


def test_the_layout_of_a_repository():
    context = [{"path": "a.py", "text": "A = 1", "line": 1}, {"path": "b.py", "text": "B = 2\n", "line": 9}]
    assert write("psm", "P", "M", "S", context, "o/r", "c.py") == (
        "<|repo_name|>o/r\n<|file_sep|>a.py\nA = 1\n<|file_sep|>b.py\nB = 2\n\n<|file_sep|>c.py\n"
        "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>M<|im_end|>",
        0,
    )
    assert write("spm", "P", "M", "S") == ("<|fim_suffix|>S<|fim_prefix|>P<|fim_middle|>M<|im_end|>", 0)
