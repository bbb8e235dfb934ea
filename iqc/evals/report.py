"""From completions to the figures of a benchmark: scores in the order of the completions, then means over tasks.

A task without a completion, or with fewer than the others, has the missing ones wrong: they never shrink n.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from iqc.errors import BadRecord, UsageError
from iqc.evals import BENCHMARKS
from iqc.evals.metrics import bootstrap_interval, pass_at_k
from iqc.sandbox import Sandbox
from iqc.streams.stage import Record


def benchmark(name: str) -> Any:
    """The module of a benchmark. UsageError for a name that is not in the registry."""
    if name not in BENCHMARKS:
        raise UsageError(f"no benchmark {name!r}", remedy="one of " + ", ".join(BENCHMARKS))
    return import_module(BENCHMARKS[name][0])


def score_completions(
    name: str, tasks: Mapping[str, Record], completions: Iterable[Record], sandbox: Sandbox | None
) -> Iterator[Record]:
    """Each completion record with its `answer` and `score`, in order, on all workers of the sandbox."""
    module = benchmark(name)

    def scored(completion: Record) -> Record:
        task = tasks.get(completion["task_id"])
        if task is None:
            raise BadRecord(f"completion of the unknown task {completion['task_id']}", remedy="give the same tasks")
        answer = module.extract(task, completion["text"])
        return {**completion, "answer": answer, "score": module.score(task, answer, sandbox)}

    yield from sandbox.map(scored, completions) if sandbox else map(scored, completions)


def report(tasks: Iterable[str], scored: Iterable[Record], ks: Sequence[int] = (1,), seed: int = 0) -> dict[str, Any]:
    """Figures over the task ids `tasks` from records of `score_completions`, with 95 % bootstrap intervals over tasks.

    `pass@k` (0 to 1) where answers are run, for every k up to the number of samples; the mean of every other number;
    counts of tasks, samples, missing, truncated (`finish_reason` is `length`), timeouts and same-process verdicts.
    """
    by_task: dict[str, list[Record]] = {task: [] for task in tasks}
    for record in scored:
        by_task[record["task_id"]].append(record)
    samples = max((len(records) for records in by_task.values()), default=0)
    every = [record for records in by_task.values() for record in records]
    figures: dict[str, Any] = {
        "tasks": len(by_task),
        "samples": samples,
        "missing": samples * len(by_task) - len(every),
        "truncated": sum(record.get("finish_reason") == "length" for record in every),
        "timeouts": sum(str(record["score"].get("detail", "")).startswith("timeout") for record in every),
        "same_process": sum(record["score"].get("kind") == "same-process" for record in every),
    }
    if not every:
        return figures
    measures = [key for key, value in every[0]["score"].items() if isinstance(value, (bool, int, float))]
    for measure in measures:
        if measure == "passed":
            for k in [k for k in ks if k <= samples]:
                values = [
                    pass_at_k(samples, sum(bool(r["score"]["passed"]) for r in records), k)
                    for records in by_task.values()
                ]
                figures[f"pass@{k}"] = _figure(values, seed)
        else:
            values = [sum(float(r["score"][measure]) for r in records) / samples for records in by_task.values()]
            figures[measure] = _figure(values, seed)
    return figures


def _figure(values: Sequence[float], seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(values, seed)
    return {"mean": sum(values) / len(values), "low": low, "high": high}
