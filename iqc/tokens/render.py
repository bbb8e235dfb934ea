"""Any record -> the sample that a model is trained on: what is text, what is a control token, what is learnt.

Layouts, control tokens in angle brackets:

    document    {text}<|endoftext|>
    fim         PSM  <|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|im_end|>
                SPM  <|fim_suffix|>{suffix}<|fim_prefix|>{prefix}<|fim_middle|>{middle}<|im_end|>
                with `context` (repository level), in front of it:
                <|repo_name|>{repo}\\n, then for each file <|file_sep|>{path}\\n{text}\\n, then <|file_sep|>{path}\\n
    chat        ChatML: see iqc.tokens.chat
    triplet     <|repo_name|>{repo}\\n, then for each old file <|file_sep|>{path}\\n{text}, then
                <|file_sep|>{messages, a blank line between them}\\n\\n{patch}<|endoftext|>

A file without text (a binary) is left out of a triplet's old files; its change is in the patch. The stop token is
learnt wherever the text before it is. Records of other kinds are refused by name.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from iqc.errors import BadRecord
from iqc.streams.stage import Record
from iqc.tokens.chat import chat_segments
from iqc.tokens.segments import Segment, control, text
from iqc.tokens.sequence import encode_sequence
from iqc.tokens.tokenizer import Tokenizer

# The first kind all of whose fields a record has is its kind: what distinguishes comes before what is common.
KINDS = {
    "preference": ("prompt", "chosen", "rejected"),
    "triplet": ("repo", "old", "patch"),
    "fim": ("prefix", "suffix", "middle"),
    "chat": ("messages",),
    "document": ("text",),
}


@dataclass(slots=True)
class Sample:
    id: str
    kind: str
    segments: list[Segment]

    def string(self) -> str:
        """The rendering as one string, control tokens by name."""
        return "".join(segment.value for segment in self.segments)


def kind_of(record: Record) -> str:
    """The kind of a record by its fields. Raises BadRecord, naming the fields, when no kind has them."""
    for kind, fields in KINDS.items():
        if all(field in record for field in fields):
            return kind
    raise BadRecord(
        f"a record of unknown kind, with the fields {', '.join(sorted(record)) or '(none)'}",
        remedy="; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in KINDS.items()),
    )


def render(record: Record, *, fim_middle_only: bool = False) -> Sample:
    """Lays the record out as documented above. With `fim_middle_only` the loss of a fim sample is on its middle and
    its stop token alone; otherwise on all of it. Raises BadRecord for an unknown kind or a field of a wrong type."""
    kind = kind_of(record)
    if kind == "preference":
        raise BadRecord("a preference record is no training sequence", remedy="train on it with the preference loss")
    if not isinstance(record.get("id"), str):
        raise BadRecord(f"a {kind} record without id", remedy="give every record an id that is a string")
    if kind == "document":
        segments = [text(_string(record, "text")), control("<|endoftext|>")]
    elif kind == "fim":
        segments = _fim(record, 0.0 if fim_middle_only else 1.0)
    elif kind == "triplet":
        segments = _triplet(record)
    else:
        segments = chat_segments(record)
    return Sample(record["id"], kind, [s for s in segments if s.value])


def tokenise(record: Record, tokenizer: Tokenizer, *, fim_middle_only: bool = False) -> Record:
    """A record -> its tokens, as a sequence record of one sample that also carries `kind`. Each segment is encoded
    on its own, so that no token lies on both sides of a control token or of the start of an answer."""
    sample = render(record, fim_middle_only=fim_middle_only)
    ids = [
        [tokenizer.control[s.value]] if s.is_control else tokenizer.encode_ordinary(s.value) for s in sample.segments
    ]
    sizes = [len(part) for part in ids]
    encoded = encode_sequence(
        id=sample.id,
        ids=[sample.id],
        tokens=np.fromiter(chain.from_iterable(ids), np.uint32, sum(sizes)),
        lengths=np.array([sum(sizes)], np.uint32),
        loss=np.repeat(np.array([s.weight for s in sample.segments], np.float32), sizes),
    )
    return encoded | {"kind": sample.kind}


def _fim(record: Record, outer: float) -> list[Segment]:
    layout = str(record.get("layout", "psm")).lower()
    prefix = [control("<|fim_prefix|>", outer), text(_string(record, "prefix"), outer)]
    suffix = [control("<|fim_suffix|>", outer), text(_string(record, "suffix"), outer)]
    if layout not in ("psm", "spm"):
        raise BadRecord(f"a fim record of layout {record['layout']!r}", remedy="use psm or spm")
    hole = [*prefix, *suffix] if layout == "psm" else [*suffix, *prefix]
    middle = [control("<|fim_middle|>", outer), text(_string(record, "middle")), control("<|im_end|>")]
    return [*_context(record, outer), *hole, *middle]


def _context(record: Record, weight: float) -> list[Segment]:
    if not record.get("context"):
        return []
    metadata = record.get("metadata") or {}
    out = [control("<|repo_name|>", weight), text(_string(metadata, "repo") + "\n", weight)]
    for file in _files(record, "context"):
        body = f"{_string(file, 'path')}\n{_string(file, 'text')}\n"
        out += [control("<|file_sep|>", weight), text(body, weight)]
    return [*out, control("<|file_sep|>", weight), text(_string(metadata, "path") + "\n", weight)]


def _triplet(record: Record) -> list[Segment]:
    messages = record.get("messages") or []
    if not isinstance(messages, list) or not all(isinstance(message, str) for message in messages):
        raise BadRecord("a triplet whose messages are not all text", remedy="give commit messages as strings")
    out = [control("<|repo_name|>"), text(_string(record, "repo") + "\n")]
    for file in _files(record["old"], "files"):
        if file.get("text") is not None:
            out += [control("<|file_sep|>"), text(f"{_string(file, 'path')}\n{_string(file, 'text')}")]
    change = "\n\n".join([*(message.strip("\n") for message in messages), _string(record, "patch")])
    return [*out, control("<|file_sep|>"), text(change), control("<|endoftext|>")]


def _files(record: Record, field: str) -> list[Record]:
    files = record.get(field) if isinstance(record, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise BadRecord(f"{field} is not a list of files", remedy="give it as [{path, text}, ...]")
    return files


def _string(record: Record, field: str) -> str:
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise BadRecord(f"{field} is not a string", remedy="give it as a string")
    return value
