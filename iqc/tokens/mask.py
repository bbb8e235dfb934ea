"""Error masking (KAT-Coder, 2.1, EM-SFT): a call of a tool that failed is read and not learnt.

Of a call whose result says that it failed, the tokens from `<tool_call>` to `</tool_call>` get no loss. The words
before it, the stop token and all that follows, the repair above all, are learnt as before; no token changes. What
counts as a failure is the table mask.toml: fields of the result, then a line of status, then the head of its text.
A message or a call that carries a `loss` of its own is left as it is.

A call and its result meet by `tool_call_id`, or where there is none, in their order. A call without a result has not
failed. A call that is written into the content, as some agents do, is not seen.
"""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from iqc.streams.stage import Record


def mask_errors(messages: list[Record]) -> tuple[list[Record], dict[tuple[int, int], str]]:
    """The messages with `loss: false` on the calls that failed; and those as (message, call) -> the rule that said so.
    What is not in OpenAI form is passed over."""
    failed: dict[tuple[int, int], str] = {}
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages, failed
    for at, message, results in _answered(messages):
        calls = message["tool_calls"]
        for number, result in _matched(calls, results):
            rule = failure(result)
            if rule and "loss" not in calls[number]:
                failed[at, number] = rule
    masked = list(messages)
    for at in {at: None for at, _ in failed}:
        calls = enumerate(messages[at]["tool_calls"])
        masked[at] = messages[at] | {
            "tool_calls": [call | {"loss": False} if (at, number) in failed else call for number, call in calls]
        }
    return masked, failed


def failure(result: Record) -> str | None:
    """The rule by which the result of a tool says that the call failed, None where it does not."""
    rules = _rules()
    content = result.get("content")
    content = content if isinstance(content, str) else ""
    for place in (result, _json(content)):
        for name, is_error in rules["fields"]:
            value = _field(place, name)
            if value is not None:
                if is_error(value):
                    return name
                if name in rules["decides"]:
                    return None
    for name, pattern in rules["status"]:
        if found := pattern.search(content):
            return name if found[1].lstrip("-") != "0" else None
    return next((name for name, pattern in rules["text"] if pattern.search(content)), None)


def _answered(messages: list[Record]) -> Iterator[tuple[int, Record, list[Record]]]:
    """Each message with calls that asks for no loss itself, its place, and the results that follow it."""
    for at, message in enumerate(messages):
        calls = message.get("tool_calls")
        if message.get("role") != "assistant" or "loss" in message or not isinstance(calls, list):
            continue
        if all(isinstance(call, dict) for call in calls):
            end = at + 1
            while end < len(messages) and messages[end].get("role") == "tool":
                end += 1
            yield at, message, messages[at + 1 : end]


def _matched(calls: list[Record], results: list[Record]) -> Iterator[tuple[int, Record]]:
    """The number of each call that has a result, and the result."""
    open_calls = {number: call.get("id") for number, call in enumerate(calls)}
    for result in results:
        wanted = result.get("tool_call_id")
        found = [number for number, name in open_calls.items() if wanted is None or name is None or name == wanted]
        if found:
            del open_calls[found[0]]
            yield found[0], result


def _field(place: Any, name: str) -> Any:
    for part in name.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return place


def _json(content: str) -> Any:
    if content.lstrip().startswith("{"):
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            pass
    return None


@cache
def _rules() -> dict[str, Any]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    words = frozenset(table["fields"]["status_words"])
    kinds = {
        "nonzero": lambda value: isinstance(value, int | float) and value != 0,
        "false": lambda value: value is False,
        "present": bool,
        "status": lambda value: isinstance(value, str) and value.lower() in words,
    }
    return {
        "fields": [(name, kinds[kind]) for kind in kinds for name in table["fields"][kind]],
        "decides": frozenset(table["fields"]["nonzero"]),
        "status": [(name, re.compile(pattern)) for name, pattern in table["status"].items()],
        "text": [(name, re.compile(pattern)) for name, pattern in table["text"].items()],
    }
