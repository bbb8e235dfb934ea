"""One file a benchmark, each with the same four functions; metrics; the report.

A benchmark module has `load(rows)` (its rows as task records), `prompt(task)` (the fields of its prompt record),
`extract(task, text)` (the answer in what the model wrote) and `score(task, answer, sandbox)` (named numbers for it);
`RUNS_CODE` says whether scoring needs the sandbox.
"""

BENCHMARKS: dict[str, tuple[str, str]] = {
    "humaneval": ("iqc.evals.humaneval", "HumanEval: function bodies from docstrings, judged by tests"),
    "fim": ("iqc.evals.fim", "fill in the middle: exact match and edit similarity"),
    "tasks": ("iqc.evals.tasks", "task records: programs from instructions, judged by their tests"),
}
"""Name -> (module, what it measures). Modules are imported by who uses them."""
