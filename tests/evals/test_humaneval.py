"""HumanEval: what is extracted, and verdicts against the canonical solutions and recorded ones."""

import gzip
import json

import pytest

from iqc.errors import BadRecord
from iqc.evals import humaneval

ROW = {
    "task_id": "HumanEval/x",
    "prompt": 'import math\n\n\ndef f(x: int) -> int:\n    """Add one."""\n',
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(3) == 4\n",
    "entry_point": "f",
}


@pytest.fixture(scope="module")
def tasks(shared):
    with gzip.open(shared("data/humaneval/HumanEval.jsonl.gz"), "rt") as file:
        return list(humaneval.load(map(json.loads, file)))


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("    return x + 1\n", True),
        ("    return x + 1\n\nprint(f(1))\nassert False", True),
        ("    y = 1\n    return x + y\ndef f(x):\n    return 0", True),
        ("```python\ndef f(x):\n    return x + 1\n```\nDone.", True),
        ("<think>\ndef f(x): return 0\n</think>\n```python\ndef f(x):\n    return math.floor(x) + 1\n```", True),
        ("def f(x):\n    return x + 1", True),
        ("```\n    return x + 1\n```", True),
        ("<think>    return x + 1", False),
        ("    return x + 2\n", False),
        ("return x + 1\n", False),
        ("", False),
    ],
)
def test_extract_and_score(text, passed, sandbox):
    [task] = humaneval.load([ROW])
    assert humaneval.score(task, humaneval.extract(task, text), sandbox)["passed"] is passed


def test_a_row_of_another_format_is_refused():
    with pytest.raises(BadRecord, match="entry_point"):
        list(humaneval.load([{k: v for k, v in ROW.items() if k != "entry_point"}]))


def test_canonical_solutions_pass_and_empty_ones_fail(tasks, sandbox):
    sample = tasks[::4]
    assert len(sample) >= 30
    canonical = list(sandbox.map(lambda t: sandbox.run_tests(t, t["references"][0]), sample))
    assert [t["id"] for t, v in zip(sample, canonical) if not v.passed] == []
    assert sum(v.kind == "calls" for v in canonical) >= 25
    empty = sandbox.map(lambda t: sandbox.run_tests(t, t["prompt"] + "    return None\n"), sample)
    assert [t["id"] for t, v in zip(sample, empty) if v.passed] == []


def test_recorded_verdicts_of_a_7b_model_are_met(tasks, sandbox, shared):
    folder = shared("data/golden/qwen2.5-coder-7b-base")
    with gzip.open(folder / "evalplus_humaneval_generated.jsonl.gz", "rt") as file:
        written = {row["task_id"]: row["completion"] for row in map(json.loads, file)}
    with gzip.open(folder / "evalplus_humaneval_eval_results.json.gz", "rt") as file:
        recorded = {name: runs[0]["base_status"] == "pass" for name, runs in json.load(file)["eval"].items()}
    judged = [task for task in tasks if task["id"] in written]
    scores = sandbox.map(
        lambda t: humaneval.score(t, humaneval.extract(t, written[t["id"]]), sandbox)["passed"], judged
    )
    ours = dict(zip((task["id"] for task in judged), scores))
    assert len(ours) > 100 and 0 < sum(ours.values()) < len(ours)
    assert ours == {name: recorded[name] for name in ours}
