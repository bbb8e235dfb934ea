"""HumanEval (Chen et al. 2021) in its own format: task_id, prompt, canonical_solution, test, entry_point.

A raw completion is cut at the paper's stop sequences and appended to the prompt. An answer that writes the whole
function (a chat model, in a fence or not) follows what precedes the function in the prompt: imports and helpers.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from iqc.errors import BadRecord
from iqc.evals.extract import cut_at, fenced, without_thinking
from iqc.sandbox import Sandbox
from iqc.streams.stage import Record

RUNS_CODE = True
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```", "<|endoftext|>")  # Chen et al. 2021, section 2.1


def load(rows: Iterable[Record]) -> Iterator[Record]:
    """Rows of HumanEval.jsonl as task records; the reference is the whole program."""
    for row in rows:
        try:
            yield {
                "id": row["task_id"],
                "prompt": row["prompt"],
                "tests": row["test"],
                "entry_point": row["entry_point"],
                "language": "python",
                "references": [row["prompt"] + row["canonical_solution"]],
            }
        except KeyError as error:
            raise BadRecord(
                f"not a HumanEval row: no {error}", remedy="give HumanEval.jsonl in its own format"
            ) from None


def prompt(task: Record) -> Record:
    """The function's signature and docstring, to be continued."""
    return {"prompt": task["prompt"]}


def extract(task: Record, text: str) -> str:
    """The program that the model's text makes with the prompt."""
    answer = without_thinking(text)
    block = fenced(answer)
    whole = block if block is not None else answer
    definition = re.compile(rf"^(async\s+)?def\s+{re.escape(task['entry_point'])}\s*\(", re.MULTILINE)
    if definition.search(whole) and (block is not None or not _continues(answer)):
        start = definition.search(task["prompt"])
        return task["prompt"][: start.start() if start else 0] + whole
    return task["prompt"] + cut_at(whole, STOPS)


def _continues(text: str) -> bool:
    """Whether the text goes on inside the function: its first line that is not blank is indented."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return first[:1] in (" ", "\t")


def score(task: Record, answer: str, sandbox: Sandbox) -> dict[str, Any]:
    """`passed`, and how it was found out (`kind`, `detail`)."""
    verdict = sandbox.run_tests(task, answer)
    return {"passed": verdict.passed, "kind": verdict.kind, "detail": verdict.detail}
