"""From completions to figures, on real verdicts."""

import pytest

from iqc.errors import BadRecord, UsageError
from iqc.evals import BENCHMARKS
from iqc.evals.report import benchmark, report, score_completions

TASKS = {
    name: {
        "id": name,
        "messages": [{"role": "user", "content": f"Write f(x) that returns x plus {n}."}],
        "tests": [{"args": [0], "expected": n}, {"args": [-n], "expected": 0}],
        "entry_point": "f",
        "language": "python",
    }
    for name, n in (("one", 1), ("two", 2), ("three", 3))
}


def completion(task, sample, body, finish="stop"):
    text = f"```python\ndef f(x):\n    {body}\n```"
    return {"id": f"{task}-{sample}", "task_id": task, "sample": sample, "text": text, "finish_reason": finish}


def test_every_benchmark_has_the_four_functions():
    for name in BENCHMARKS:
        assert all(callable(getattr(benchmark(name), function)) for function in ("load", "prompt", "extract", "score"))
    with pytest.raises(UsageError, match="no benchmark"):
        benchmark("nothing")


def test_missing_samples_are_wrong(sandbox):
    written = [
        completion("one", 0, "return x + 1"),
        completion("one", 1, "return 1", "length"),
        completion("two", 0, "return x + 2"),
    ]
    scored = list(score_completions("tasks", TASKS, written, sandbox))
    assert [record["score"]["passed"] for record in scored] == [True, False, True]
    assert [record["id"] for record in scored] == ["one-0", "one-1", "two-0"]
    figures = report(TASKS, scored, ks=(1, 2, 3))
    assert {k: figures[k] for k in ("tasks", "samples", "missing", "truncated", "same_process")} == {
        "tasks": 3,
        "samples": 2,
        "missing": 3,
        "truncated": 1,
        "same_process": 0,
    }
    assert figures["pass@1"]["mean"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert figures["pass@2"]["mean"] == pytest.approx(2 / 3)
    assert figures["fraction"]["mean"] == pytest.approx((1.5 / 2 + 1 / 2 + 0) / 3)
    assert "pass@3" not in figures
    assert figures == report(TASKS, scored, ks=(1, 2, 3))


def test_a_completion_of_another_benchmark_is_refused():
    with pytest.raises(BadRecord, match="unknown task"):
        list(score_completions("fim", {}, [{"task_id": "x", "text": ""}], None))


def test_fim_needs_no_sandbox():
    tasks = {"a": {"id": "a", "prefix": "", "suffix": "", "middle": "abcd"}}
    scored = list(score_completions("fim", tasks, [{"task_id": "a", "text": "abce"}], None))
    assert report(tasks, scored)["edit_similarity"]["mean"] == 75.0
