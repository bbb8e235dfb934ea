"""Task records: a program from an instruction, judged by the record's tests: all (`passed`), in part (`fraction`)."""

from collections.abc import Iterable, Iterator
from typing import Any

from iqc.errors import BadRecord
from iqc.evals.extract import fenced, without_thinking
from iqc.sandbox import Sandbox
from iqc.sandbox.verdict import calls_of
from iqc.streams.stage import Record

RUNS_CODE = True


def load(rows: Iterable[Record]) -> Iterator[Record]:
    """Task records as they are, checked: an instruction, and tests that can be run."""
    for row in rows:
        if not ("messages" in row or "prompt" in row):
            raise BadRecord(f"task {row.get('id')}: neither messages nor prompt", remedy="give one in the task record")
        calls_of(row)
        yield row


def prompt(task: Record) -> Record:
    """The messages of a chat, or a text to be continued."""
    return {"messages": task["messages"]} if "messages" in task else {"prompt": task["prompt"]}


def extract(task: Record, text: str) -> str:
    """The program: the first fence, or all of the answer. After a text prompt, the prompt and its continuation."""
    answer = without_thinking(text)
    block = fenced(answer)
    if block is not None:
        return block
    return answer if "messages" in task else task["prompt"] + answer


def score(task: Record, answer: str, sandbox: Sandbox) -> dict[str, Any]:
    """`passed`, `fraction` of the tests, and how it was found out (`kind`, `detail`)."""
    verdict = sandbox.run_tests(task, answer)
    return {
        "passed": verdict.passed,
        "fraction": verdict.fraction,
        "kind": verdict.kind,
        "detail": verdict.detail,
    }
