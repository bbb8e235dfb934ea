"""Keep-first deduplication against brute force over all pairs."""

import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.dedup.documents import LSH, Deduplicator, Duplicate, dropped, signature
from iqc.dedup.minhash import Lsh, jaccard, shingles

words = st.sampled_from(["alpha", "beta", "gamma", "delta", "x", "y"])
documents = st.lists(
    st.lists(words, max_size=12).map(" ".join) | st.sampled_from(["", "a b c", "one two three four five six"]),
    max_size=25,
)


def run(texts: list[str], threshold: float = 0.7, lsh: Lsh | None = LSH) -> list[Duplicate | None]:
    with Deduplicator(threshold) as deduplicator:
        return [deduplicator.add(str(i), signature(text, lsh)) for i, text in enumerate(texts)]


def brute_force(texts: list[str], threshold: float) -> list[int | None]:
    """The earliest kept partner of every removed text, exact ones first."""
    kept, out = [], []
    sets = [shingles(text) for text in texts]
    for i, text in enumerate(texts):
        exact = next((j for j in kept if texts[j] == text), None)
        near = next((j for j in kept if jaccard(sets[i], sets[j]) >= threshold), None)
        out.append(exact if exact is not None else near)
        if out[-1] is None:
            kept.append(i)
    return out


@given(documents, st.sampled_from([0.3, 0.7, 1.0]))
@settings(deadline=None, max_examples=60)
def test_with_one_row_bands_it_is_brute_force(texts, threshold):
    """64 bands of one row propose every pair of J >= 0.3 but one in 10^10, so nothing may be missed."""
    found = run(texts, threshold, Lsh(64, 1))
    assert [None if d is None else int(d.of) for d in found] == brute_force(texts, threshold)


@given(documents)
@settings(deadline=None)
def test_nothing_is_removed_without_a_kept_partner(texts):
    found = run(texts)
    for i, duplicate in enumerate(found):
        if duplicate is None:
            continue
        partner = int(duplicate.of)
        assert partner < i and found[partner] is None
        if duplicate.kind == "exact":
            assert texts[partner] == texts[i]
        else:
            assert jaccard(shingles(texts[partner]), shingles(texts[i])) == duplicate.jaccard >= 0.7


@given(documents)
@settings(deadline=None)
def test_a_second_pass_over_everything_removes_everything(texts):
    assert all(run(texts + texts)[len(texts) :])


@pytest.fixture(scope="module")
def code() -> list[str]:
    """Functions of the standard library each once more with up to 2 % of its words edited."""
    import argparse
    import ast
    import inspect
    import tarfile

    choice = random.Random(7)
    texts = []
    for module in (argparse, tarfile, inspect):
        lines = inspect.getsource(module).splitlines(keepends=True)
        texts += [
            part
            for node in ast.walk(ast.parse("".join(lines)))
            if isinstance(node, ast.FunctionDef)
            and len(part := "".join(lines[node.lineno - 1 : node.end_lineno])) > 400
        ]
    for text in texts[:150]:
        share = choice.choice([0.0, 0.005, 0.01, 0.02])
        texts.append(" ".join("edited" if choice.random() < share else word for word in text.split(" ")))
    return texts


@pytest.mark.parametrize(("lsh", "floor"), [(Lsh(14, 8), 0.9), (Lsh(22, 5), 0.98)])
def test_recall_on_code(code, lsh, floor):
    """The share of removable texts that are removed. The expected share of pairs alone is lower: see the module."""
    expected = [partner is not None for partner in brute_force(code, 0.7)]
    found = [duplicate is not None for duplicate in run(code, lsh=lsh)]
    assert sum(expected) > 80
    assert sum(e and f for e, f in zip(expected, found)) / sum(expected) >= floor


def test_short_texts_are_matched_exactly_only():
    assert run(["a b c d", "a b c  d", "a b c d", "", ""]) == [
        None,
        None,
        Duplicate("0", "exact", 1.0),
        None,
        Duplicate("3", "exact", 1.0),
    ]


def test_exact_only_without_lsh():
    assert run(["a b c d e f", "a b c d e  f", "a b c d e f"], lsh=None)[1:] == [None, Duplicate("0", "exact", 1.0)]


def test_the_table_grows():
    texts = [f"token{i} and{i} some{i} other{i} words{i} here{i}" for i in range(1000)]
    assert not any(run(texts))
    assert [d.of for d in run(texts + texts)[1000:]] == [str(i) for i in range(1000)]


def test_memory_is_a_few_hundred_bytes_a_document():
    signatures = [signature(f"token{i} and{i} some{i} other{i} words{i} here{i}" * 20) for i in range(2000)]
    tracemalloc.start()
    with Deduplicator() as deduplicator:
        before = tracemalloc.get_traced_memory()[0]
        assert not any(deduplicator.add(str(i), s) for i, s in enumerate(signatures))
        grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown / len(signatures) < 600


def test_dropped_names_the_partner():
    record = {"id": "b", "text": "t", "metadata": {"path": "p"}}
    near = dropped(record, Duplicate("a", "near", 0.75))
    assert (near.rule, near.value, near.threshold) == ("near", 0.75, 0.7)
    assert near.record["metadata"] == {"path": "p", "duplicate_of": "a"} and "duplicate_of" not in record["metadata"]


def test_dropped_without_metadata():
    for record in ({"id": "b"}, {"id": "b", "metadata": None}):
        assert dropped(record, Duplicate("a", "exact", 1.0)).record["metadata"] == {"duplicate_of": "a"}


def test_threshold_must_be_a_similarity():
    with pytest.raises(ValueError, match="threshold"):
        Deduplicator(0)


def test_the_hash_seed_changes_nothing():
    program = (
        "from iqc.dedup.documents import *\n"
        "t = ['x%d y z w v u t s r q p o' % (i % 7) + ' n' * (i % 5) for i in range(60)]\n"
        "d = Deduplicator(0.5)\nprint([d.add(str(i), signature(x)) for i, x in enumerate(t)])"
    )
    root = Path(__file__).resolve().parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and b"near" in outputs.pop()
