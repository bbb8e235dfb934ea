"""Fill in the middle: the written middle against the true one, by exact match and edit similarity; nothing is run.

Records have `prefix`, `suffix`, `middle`, as the FIM stage writes them. Exact match is CrossCodeEval's (Ding et al.
2023): equal lists of lines, stripped, the empty ones left out. Edit similarity is RepoEval's (Zhang et al. 2023): 1
minus Levenshtein over the longer length, in percent; CrossCodeEval's own is fuzzywuzzy's ratio, another number.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from iqc.errors import BadRecord
from iqc.evals.extract import cut_at
from iqc.evals.metrics import levenshtein
from iqc.streams.stage import Record

RUNS_CODE = False
STOPS = (
    "<|endoftext|>", "<|im_end|>", "<|file_sep|>", "<|repo_name|>",
    "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>",
)  # fmt: skip


def load(rows: Iterable[Record]) -> Iterator[Record]:
    """FIM records as they are, checked for their three parts."""
    for row in rows:
        for part in ("prefix", "suffix", "middle"):
            if not isinstance(row.get(part), str):
                raise BadRecord(f"record {row.get('id')}: no {part}", remedy="give records made by the FIM stage")
        yield row


def prompt(task: Record) -> Record:
    """The pieces: a prompt with `prefix` and `suffix`, so that control tokens stay apart from what the source says."""
    return {"prefix": task["prefix"], "suffix": task["suffix"]}


def extract(task: Record, text: str) -> str:
    """The text up to the first special token."""
    return cut_at(text, STOPS)


def score(task: Record, answer: str, sandbox: None = None) -> dict[str, Any]:
    """`exact_match` (bool) and `edit_similarity` (0 to 100)."""
    return {
        "exact_match": exact_match(answer, task["middle"]),
        "edit_similarity": edit_similarity(answer, task["middle"]),
    }


def exact_match(written: str, true: str) -> bool:
    """Whether the stripped, non-empty lines are the same."""
    return _lines(written) == _lines(true)


def edit_similarity(written: str, true: str) -> float:
    """100 (1 - Levenshtein / longer length) of the stripped strings; two empty ones are alike."""
    written, true = written.strip(), true.strip()
    longer = max(len(written), len(true))
    return 100.0 * (1 - levenshtein(written, true) / longer) if longer else 100.0


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
