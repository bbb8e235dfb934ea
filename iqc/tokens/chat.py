"""ChatML, twice: as the Jinja template that a checkpoint carries, and as segments that also say what is trained.

`<|im_start|>{role}\n{content}<|im_end|>\n` for every message; tools are listed in the system turn and called in the
Hermes form, their results go into a user turn. The two forms give the same string; tests compare them. Every turn is
kept as it was written, reasoning included, so that a conversation's rendering is a prefix of its continuation's: what
the model generated is what it reads in the next turn and what it is trained on.
"""

import json
import re

from iqc.errors import BadRecord
from iqc.streams.stage import Record
from iqc.tokens.segments import Segment, control, joined, text
from iqc.tokens.special import CONTROL

DEFAULT_SYSTEM = "You are LoopCoder, a helpful assistant developed by IQuest."  # as in the released template
TOOLS_BEFORE = (
    "# Tools\n\nThese functions can be called; each line within <tools></tools> is the signature of one:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nTo call functions, write for each call one JSON object within <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <name of the function>, "arguments": <object of its arguments>}\n</tool_call>'
)

CHAT_TEMPLATE = (
    """\
{%- set has_system = messages and messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' -}}
{{- (messages[0].content or '') if has_system else """
    + json.dumps(DEFAULT_SYSTEM)
    + """ -}}
{%- if tools -%}
    {{- '\\n\\n' + """
    + json.dumps(TOOLS_BEFORE)
    + """ -}}
    {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
    {{- """
    + json.dumps(TOOLS_AFTER)
    + """ -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
        {{- '\\n<tool_response>\\n' + (message.content or '') + '\\n</tool_response>' -}}
        {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
    {%- elif not (loop.first and has_system) -%}
        {{- '<|im_start|>' + message.role + '\\n' -}}
        {%- if message.role == 'assistant' and message.reasoning_content -%}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
        {%- endif -%}
        {{- message.content or '' -}}
        {%- for call in message.tool_calls or [] -%}
            {{- '\\n' if message.content or not loop.first else '' -}}
            {{- '<tool_call>\\n{"name": ' + (call.function.name | tojson) + ', "arguments": ' -}}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
)

_CONTROL = re.compile("(" + "|".join(re.escape(token) for token in CONTROL) + ")")
_THINK = re.compile(r"(<think>)(.*?)(</think>)(.*)", re.DOTALL)
ROLES = ("system", "user", "assistant", "tool")


def chat_segments(record: Record) -> list[Segment]:
    """The conversation as segments. An assistant's reasoning, words, calls and `<|im_end|>` have the weight of its
    `loss` (default 1), its header never; a `loss` of one of its calls is that of the call, from `<tool_call>` to
    `</tool_call>`. In other turns (default 0) a `loss` counts for the turn from its role to `<|im_end|>`. The text of
    an assistant starts a segment of its own, because at generation it starts after the header's tokens; all other text
    is joined up to the next control token, as Transformers encodes it. Weights move no border between segments.
    Raises BadRecord for a message that is not in OpenAI form."""
    return [segment for turn in chat_turns(record) for segment in turn]


def chat_turns(record: Record) -> list[list[Segment]]:
    """The same, message by message; the default system turn comes with the first. What is drawn around the result of a
    tool depends on whether its neighbours are results, too."""
    messages = record["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadRecord("messages is not a list of at least one message", remedy="use OpenAI chat form")
    for index, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise BadRecord(f"messages[{index}] has role {message.get('role')!r}", remedy=f"use {', '.join(ROLES)}")
    tools = record.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord("tools is not a list of objects", remedy="use OpenAI chat form")
    has_system = messages[0]["role"] == "system"
    turns = []
    for index, message in enumerate(messages):
        role, weight = message["role"], _weight(message, f"messages[{index}]", message["role"] == "assistant")
        out = _system(messages[0] if has_system else None, tools, weight) if index == 0 else []
        if role == "tool":
            first = index == 0 or messages[index - 1]["role"] != "tool"
            last = index == len(messages) - 1 or messages[index + 1]["role"] != "tool"
            out += [control("<|im_start|>", 0.0)] if first else []
            out += [text("user\n" if first else "\n", weight), control("<tool_response>", weight)]
            out += [text(f"\n{_string(message, index)}\n", weight), control("</tool_response>", weight)]
            out += _end(weight) if last else []
        elif role == "assistant":
            out += [control("<|im_start|>", 0.0), text("assistant\n", 0.0), *_assistant(message, index, weight)]
            out += _end(weight)
        elif index > 0 or not has_system:
            out += [control("<|im_start|>", 0.0), text(f"{role}\n{_string(message, index)}", weight), *_end(weight)]
        turns.append(out)
    return turns


def answer_header(record: Record) -> list[Segment]:
    """What stands before an answer that is to be generated. A model that thinks writes `<think>` itself; it is kept
    from that by `{"chat_template_kwargs": {"enable_thinking": false}}` in the record (the name is that of vLLM's
    requests and of Transformers' template): the answer then follows a thought that is empty, as with Qwen3. To train
    a model for both, give answers without a thought the content `<think>\\n\\n</think>\\n\\n...`."""
    asked = record.get("chat_template_kwargs") or {}
    if not isinstance(asked, dict) or not isinstance(asked.get("enable_thinking", True), bool):
        raise BadRecord("enable_thinking is not true or false", remedy="leave it out, or give a bool")
    header = [control("<|im_start|>", 0.0), text("assistant\n", 0.0)]
    if asked.get("enable_thinking", True):
        return header
    return [*header, control("<think>", 0.0), text("\n\n", 0.0), control("</think>", 0.0), text("\n\n", 0.0)]


def _end(weight: float) -> list[Segment]:
    return [control("<|im_end|>", weight), text("\n", 0.0)]


def _system(message: Record | None, tools: list[Record], weight: float) -> list[Segment]:
    words = _string(message, 0) if message else DEFAULT_SYSTEM
    weight = weight if message else 0.0
    out = [control("<|im_start|>", 0.0), text("system\n" + words, weight)]
    if tools:
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        out = [*out, *_markup("\n\n" + TOOLS_BEFORE, weight), text(lines, weight), *_markup(TOOLS_AFTER, weight)]
    return [*joined(out), *_end(weight)]


def _assistant(message: Record, index: int, weight: float) -> list[Segment]:
    """Reasoning, words and calls. Reasoning comes as `reasoning_content`, or as `<think>...</think>` at the head of
    the content, which then are control tokens too; anywhere else they are ordinary text."""
    content, reasoning = _string(message, index), _string(message, index, "reasoning_content")
    out = []
    if reasoning:
        out = [control("<think>", weight), text(f"\n{reasoning}\n", weight), control("</think>", weight)]
        out.append(text(f"\n\n{content}", weight))
    elif thought := _THINK.fullmatch(content):
        opening, inside, closing, rest = thought.groups()
        out = [control(opening, weight), text(inside, weight), control(closing, weight), text(rest, weight)]
    else:
        out = [text(content, weight)]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRecord(f"messages[{index}].tool_calls is not a list", remedy="use OpenAI chat form")
    for number, call in enumerate(calls):
        try:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
        except (KeyError, TypeError):
            raise BadRecord(
                f"messages[{index}].tool_calls[{number}] has no function with name and arguments",
                remedy="use OpenAI chat form",
            ) from None
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        body = f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n'
        own = _weight(call, f"messages[{index}].tool_calls[{number}]", weight)
        out.append(text("\n" if content or number else "", weight))
        out += [control("<tool_call>", own), text(body, own), control("</tool_call>", own)]
    return joined(out)


def _markup(ours: str, weight: float) -> list[Segment]:
    """Segments of text that the template itself writes: the control tokens in it are meant."""
    parts = _CONTROL.split(ours)
    return [control(part, weight) if i % 2 else text(part, weight) for i, part in enumerate(parts)]


def _string(message: Record, index: int, key: str = "content") -> str:
    value = message.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"messages[{index}].{key} is not text", remedy="join the parts of a message into one string")
    return value


def _weight(item: Record, name: str, default: float) -> float:
    """The weight that a message or a call asks for: not above the range of float32, in which weights are kept."""
    loss = item.get("loss", default)
    if not isinstance(loss, bool | int | float) or not 0 <= loss <= 3e38:
        raise BadRecord(f"{name}.loss is {loss!r}", remedy="use true, false or a weight of at least 0")
    return float(loss)
