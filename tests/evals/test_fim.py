"""Exact match, edit similarity, and the prompt of a fill-in-the-middle record."""

import pytest

from iqc.errors import BadRecord
from iqc.evals import fim


def test_exact_match_ignores_blank_lines_and_indentation():
    assert fim.exact_match("  a = 1\n\n  b\n", "a = 1\n    b")
    assert not fim.exact_match("a = 1\nb", "a = 1 b")


def test_edit_similarity():
    assert fim.edit_similarity("kitten", " sitting\n") == pytest.approx(100 * (1 - 3 / 7))
    assert fim.edit_similarity("", "\n") == 100
    assert fim.edit_similarity("abc", "") == 0


def test_the_prompt_is_the_two_sides():
    assert fim.prompt({"id": "x", "prefix": "a(", "suffix": ")", "middle": "b, c"}) == {"prefix": "a(", "suffix": ")"}


def test_extract_and_score():
    task = {"prefix": "a(", "suffix": ")", "middle": "b, c"}
    assert fim.score(task, fim.extract(task, "b, c<|endoftext|>junk")) == {
        "exact_match": True,
        "edit_similarity": 100.0,
    }
    assert fim.score(task, fim.extract(task, "b, d"))["edit_similarity"] == 75.0


def test_load_refuses_a_record_without_its_parts():
    with pytest.raises(BadRecord, match="no suffix"):
        list(fim.load([{"id": "x", "prefix": "", "middle": ""}]))
