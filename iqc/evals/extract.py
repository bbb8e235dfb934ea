"""The answer in what a model wrote: without reasoning, out of the code fence, up to where it should have stopped."""

import re
from collections.abc import Iterable

_FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)


def without_thinking(text: str) -> str:
    """What follows the last `</think>`; an unclosed `<think>` never came to an answer."""
    answer = text.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer


def fenced(text: str) -> str | None:
    """The body of the first Markdown fence (closed or cut off), or None."""
    found = _FENCE.search(text)
    return found.group(1) if found else None


def cut_at(text: str, stops: Iterable[str]) -> str:
    """`text` up to the earliest of `stops`."""
    ends = [end for end in (text.find(stop) for stop in stops) if end >= 0]
    return text[: min(ends)] if ends else text
