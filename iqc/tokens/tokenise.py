"""A record -> the samples that are packed: arrays of tokens and loss weights, or the rule by which there are none.

Every segment of a rendering is encoded on its own, so that no token lies on both sides of a control token or of the
start of an answer. A preference record is two chats in one sample, `ID#chosen` and `ID#rejected`, whose prompt is not
learnt; a trajectory tree is one sample for each of its documents (iqc.tokens.tree).

Rules that drop a record, or a path of a tree, in this order; the value that each measured goes with it:

unknown_role         a message is from nobody whom the chat template knows
empty                no text, no message, no file with text
longer_than_context  more tokens than a row has (`path_...` of a tree's path; text that may be cut is not dropped)
equal_pair           chosen and rejected are the same tokens
nothing_to_learn     the weight of every token that has one before it is 0 (`path_with_nothing_new`: or is learnt
                     on an earlier path)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iqc.errors import BadRecord, UsageError
from iqc.streams.stage import Dropped, Noted, Record
from iqc.tokens.chat import ROLES, chat_segments
from iqc.tokens.mask import mask_errors
from iqc.tokens.pack import CUTTABLE, Encoded
from iqc.tokens.render import kind_of, render
from iqc.tokens.segments import Segment
from iqc.tokens.sequence import Row
from iqc.tokens.special import CONTROL
from iqc.tokens.tokenizer import Tokenizer
from iqc.tokens.tree import LAYOUTS, SHARED, paths_of, tree_documents

# The fields of a kind that hold what it is about: without it the record is empty.
_CONTENT = {
    "document": ("text",),
    "fim": ("prefix", "middle", "suffix"),
    "chat": ("messages",),
    "tree": ("nodes",),
    "preference": ("chosen", "rejected"),
    "repository": ("files",),
    "triplet": ("patch",),
    "commit": ("patch",),
    "pull": ("patch",),
}
_MESSAGES = {"chat": ("messages",), "tree": ("nodes",), "preference": ("prompt", "chosen", "rejected")}
# The losses of a document all of which is learnt, but its first token: they are a view of this one.
LEARNT = np.ones(1 << 20, np.uint8)
LEARNT[0] = 0
LEARNT.flags.writeable = False
CONTROL_IN_TEXT = re.compile("<(?:" + "|".join(re.escape(token.removeprefix("<")) for token in CONTROL) + ")")


@dataclass(slots=True, frozen=True)
class Options:
    """What changes the samples; the words are those of `iqc pack`."""

    context: int = 2**31 - 1
    long: str = "split"
    fim_middle_only: bool = False
    change_only: bool = False
    mask_errors: bool = False
    trees: str = "paths"
    shared: str = "once"

    def __post_init__(self) -> None:
        if self.long not in ("split", "drop") or self.trees not in LAYOUTS or self.shared not in SHARED:
            raise UsageError(
                f"cannot tokenise with long {self.long}, trees {self.trees}, shared {self.shared}",
                remedy=f"long: split, drop; trees: {', '.join(LAYOUTS)}; shared: {', '.join(SHARED)}",
            )


def tokenise(record: Record, tokenizer: Tokenizer, **options: Any) -> Row:
    """The tokens of a record that is one document, for a caller who packs nothing. Raises BadRecord."""
    asked = Options(**options)
    segments = render(record, fim_middle_only=asked.fim_middle_only, change_only=asked.change_only).segments
    return encode_documents([(record["id"], segments)], tokenizer)


def samples(record: Record, tokenizer: Tokenizer, options: Options) -> Iterator[Encoded | Dropped | Noted]:
    """What is packed of a record. Raises BadRecord for what is no record of a known kind."""
    kind = kind_of(record)
    if not isinstance(record.get("id"), str):
        raise BadRecord(f"a {kind} record without id", remedy="give every record an id that is a string")
    if unusable := _unknown_role(record, kind) or _empty(record, kind):
        yield unusable
    elif kind == "tree":
        yield from _tree(record, tokenizer, options)
    else:
        yield from _sample(record, kind, tokenizer, options)


def encode_documents(documents: list[tuple[str, list[Segment]]], tokenizer: Tokenizer) -> Row:
    """Segments of one or two documents, with their ids -> one row."""
    parts, weights, lengths = [], [], []
    for _, segments in documents:
        found = [encode(tokenizer, segment) for segment in segments]
        sizes = [part.size for part in found]
        given = [segment.weight for segment in segments]
        if given.count(1.0) == len(given) and sum(sizes) <= LEARNT.size:
            loss = LEARNT[: sum(sizes)]
        else:
            binary = all(weight in (0.0, 1.0) for weight in given)
            loss = np.repeat(np.array(given, np.uint8 if binary else np.float32), sizes)
            loss[:1] = 0  # nothing comes before it
        parts += found
        weights.append(loss)
        lengths.append(sum(sizes))
    loss = np.concatenate(weights) if len(weights) > 1 else weights[0]
    return Row(np.concatenate(parts), np.array(lengths, np.uint32), loss, [name for name, _ in documents])


def encode(tokenizer: Tokenizer, segment: Segment) -> NDArray[np.uint32]:
    """The tokens of one segment. Raises BadRecord for a lone surrogate."""
    if segment.is_control:
        return _one(tokenizer.control[segment.value])
    return tokenizer.encode_array(segment.value)


@cache
def _one(number: int) -> NDArray[np.uint32]:
    """An array of one token, which is not to be written to: a chat has a dozen of them a turn."""
    found = np.array([number], np.uint32)
    found.flags.writeable = False
    return found


def line_ends(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Whether a token ends a line: [vocabulary]."""
    return np.array([tokenizer.bytes([number]).endswith(b"\n") for number in range(tokenizer.vocab_size)])


def _sample(record: Record, kind: str, tokenizer: Tokenizer, options: Options) -> Iterator[Encoded | Dropped | Noted]:
    """A record that is one sample."""
    failed: list[str] = []
    if kind == "preference":
        documents = [(f"{record['id']}#{side}", chat_segments(_side(record, side))) for side in ("chosen", "rejected")]
    else:
        shown = record
        if kind == "chat" and options.mask_errors:
            messages, found = mask_errors(record["messages"])
            shown, failed = record | {"messages": messages}, list(found.values())
        rendering = render(shown, fim_middle_only=options.fim_middle_only, change_only=options.change_only)
        documents = [(record["id"], rendering.segments)]
    documents = [(name, [segment for segment in segments if segment.value]) for name, segments in documents]
    row = encode_documents(documents, tokenizer)
    size = row.tokens.size
    if size > options.context and not (options.long == "split" and kind in CUTTABLE):
        yield Dropped(record, "longer_than_context", size, options.context)
    elif kind == "preference" and np.array_equal(row.tokens[: row.lengths[0]], row.tokens[row.lengths[0] :]):
        yield Dropped(record, "equal_pair", int(row.lengths[0]))
    elif not (row.loss[-1] or row.loss.any()):  # the end is mostly learnt: no need to look at all of a document
        yield Dropped(record, "nothing_to_learn", 0, 1)
    else:
        yield Encoded(kind, row, source(record))
        yield from (Noted(f"failed_call_{rule}") for rule in failed)
        if any(control_in_text(segments) for _, segments in documents):
            yield Noted("control_token_in_text")


def _tree(record: Record, tokenizer: Tokenizer, options: Options) -> Iterator[Encoded | Dropped | Noted]:
    paths = list(paths_of(record))
    failed: dict[tuple[int, int], str] = {}
    if options.mask_errors:
        for at, (path, chat) in enumerate(paths):
            messages, found = mask_errors(chat["messages"])
            paths[at] = path, chat | {"messages": messages}
            failed |= {(path[message], call): rule for (message, call), rule in found.items()}
    texts: list[Segment] = []

    def encoded(segment: Segment) -> NDArray[np.uint32]:
        texts.append(segment)
        return encode(tokenizer, segment)

    layout, shared = options.trees, options.shared
    for document in tree_documents(record, paths, encoded, context=options.context, layout=layout, shared=shared):
        yield document if isinstance(document, Dropped) else Encoded("tree", document, source(record))
    yield from (Noted(f"failed_call_{rule}") for rule in failed.values())
    if control_in_text(texts):
        yield Noted("control_token_in_text")


def _side(record: Record, side: str) -> Record:
    """One conversation of a pair. Its prompt is not learnt where no message of it says otherwise."""
    prompt = [{"loss": False} | message for message in _messages(record, "prompt", "user")]
    chat = {"messages": prompt + _messages(record, side, "assistant")}
    return chat | ({"tools": record["tools"]} if "tools" in record else {})


def _messages(record: Record, name: str, role: str) -> list[Record]:
    """A part of a pair, which may be a list of messages or the text of one."""
    value = record[name]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise BadRecord(f"{name} is neither a text nor a list of messages", remedy="use OpenAI chat form")
    return value


def _unknown_role(record: Record, kind: str) -> Dropped | None:
    for name in _MESSAGES.get(kind, ()):
        for message in record[name] if isinstance(record[name], list) else []:
            if isinstance(message, dict) and isinstance(message.get("role"), str) and message["role"] not in ROLES:
                return Dropped(record, "unknown_role", message["role"], list(ROLES))
    return None


def _empty(record: Record, kind: str) -> Dropped | None:
    """The record dropped where nothing that its kind is about is in it."""
    fields = _CONTENT[kind]
    sizes = [len(record[name]) for name in fields if isinstance(record[name], str | list)]
    if len(sizes) < len(fields):
        return None  # no such record: it is refused with the name of the field
    if kind == "repository":
        sizes = [sum(isinstance(file, dict) and bool(file.get("text")) for file in record["files"])]
    smallest = min(sizes) if kind == "preference" else sum(sizes)
    return None if smallest else Dropped(record, "empty", 0, 1)


def source(record: Record) -> str | None:
    value = record.get("source")
    return value if isinstance(value, str) else None


def control_in_text(segments: list[Segment]) -> bool:
    """Whether a text says a control token, which it does not become."""
    return any(not segment.is_control and CONTROL_IN_TEXT.search(segment.value) for segment in segments)
