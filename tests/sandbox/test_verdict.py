"""Suites are split into calls where that keeps their meaning, and judged on this side."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord
from iqc.sandbox.verdict import calls_of, split

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(LITERALS, LITERALS, st.booleans())
def test_a_comparison_with_a_literal_becomes_a_call(argument, expected, swapped):
    call = f"candidate({argument!r}, key={argument!r})"
    line = f"{expected!r} == {call}" if swapped else f"{call} == {expected!r}"
    [test] = split(f"def check(candidate):\n    assert {line}, 'message'\n    assert True", "f")
    assert (test.function, test.args, test.kwargs, test.expected) == ("f", [argument], {"key": argument}, expected)
    assert test.accepts(expected)


@pytest.mark.parametrize(
    "body",
    [
        "for x in range(3): assert candidate(x) == x",
        "assert candidate(1) == other(2)",
        "assert candidate(open('/etc/passwd')) == 1",
        "assert sorted(candidate([1])) == [1]",
        "assert candidate(1) == 1 or True",
        "assert candidate(1) != 2",
        "x = 1\n    assert candidate(1) == 1",
        "assert candidate(*[1]) == 1",
        "assert candidate(**{'a': 1}) == 1",
        "assert candidate(9**9**9) == 1",
        "assert True",
    ],
)
def test_anything_else_stays_a_suite(body):
    assert split(f"def check(candidate):\n    {body}", "f") is None


def test_forms_of_asserts():
    suite = """
import math
METADATA = {'author': 'x'}
def check(candidate):
    "docstring"
    assert candidate(1)
    assert not candidate(2)
    assert candidate(3) is True
    assert candidate(4) == None
    assert abs(candidate(5) - 1/4) < 1e-6
    assert candidate('a' + 'b') == -(2 ** 3)
check(f)
"""
    truthy, falsy, same, none, near, folded = split(suite, "f")
    assert truthy.accepts([0]) and not truthy.accepts([])
    assert falsy.accepts("") and not falsy.accepts(1)
    assert same.accepts(True) and not same.accepts(1)
    assert none.accepts(None) and not none.accepts(False)
    assert (
        near.accepts(0.2500009) and not near.accepts(0.250002) and not near.accepts("x") and not near.accepts(math.nan)
    )
    assert folded.args == ["ab"] and folded.accepts(-8)


def test_calls_of_a_record(sandbox):
    task = {
        "id": "t",
        "entry_point": "f",
        "tests": [
            {"args": [1], "kwargs": {"y": {"tuple": [2]}}, "expected": {"set": [1, 2]}},
            {"args": [], "function": "g", "expected": 0.3, "tolerance": 1e-9},
            {"args": [0], "expected": 5},
        ],
    }
    code = "def f(x, y=(5,)):\n    return {x, *y}\ndef g():\n    return 0.1 + 0.2"
    verdict = sandbox.run_tests(task, code)
    assert (verdict.passed, verdict.fraction, verdict.kind, verdict.detail) == (
        False,
        2 / 3,
        "calls",
        "test 2: wrong value",
    )


@pytest.mark.parametrize(
    "task",
    [
        {"tests": []},
        {"tests": [{"args": [1]}]},
        {"tests": [{"args": 3, "expected": 1}]},
        {"tests": ["x"]},
        {"tests": 3},
    ],
)
def test_malformed_tests_are_bad_records(task):
    with pytest.raises(BadRecord):
        calls_of({"id": "t", "entry_point": "f", **task})


@pytest.mark.parametrize("as_suite", [False, True])
def test_expected_values_never_enter_the_sandbox(as_suite, sandbox, monkeypatch):
    requests = []
    exchange = sandbox._exchange
    monkeypatch.setattr(
        sandbox, "_exchange", lambda request, limits: requests.append(request) or exchange(request, limits)
    )
    secret = 918273645
    tests = f"def check(candidate):\n    assert candidate(918273644) == {secret}"
    if not as_suite:
        tests = [{"args": [secret - 1], "expected": secret}]
    verdict = sandbox.run_tests({"id": "t", "entry_point": "f", "tests": tests}, "def f(x): return x + 1")
    assert (verdict.passed, verdict.kind) == (True, "calls")
    assert str(secret - 1) in repr(requests) and str(secret) not in repr(requests)
