"""Any record -> the sample that a model is trained on: what is text, what is a control token, what is learnt.

Layouts, control tokens in angle brackets:

    document    {text}<|endoftext|>
    fim         PSM  <|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|im_end|>
                SPM  <|fim_suffix|>{suffix}<|fim_prefix|>{prefix}<|fim_middle|>{middle}<|im_end|>
                with `context` (repository level), in front of it:
                <|repo_name|>{repo}\\n, then for each file <|file_sep|>{path}\\n{text}\\n, then <|file_sep|>{path}\\n
    chat        ChatML: see iqc.tokens.chat
    repository  <|repo_name|>{repo}\\n, then for each file <|file_sep|>{path}\\n{text}, then <|endoftext|>
    triplet     <|repo_name|>{repo}\\n, then for each old file <|file_sep|>{path}\\n{text}, then
                <|file_sep|>{messages, a blank line between them}\\n\\n{patch}<|endoftext|>
    commit      a triplet with `context`, which is shown in place of the old files, in the order of Seed-Coder's text:
                <|repo_name|>{repo}\\n, if there is a README <|file_sep|>{path}\\n{text}, then the tree as
                <|file_sep|>.\\n{an entry a line}\\n, for each file found <|file_sep|>{path}\\n{text}, then
                <|file_sep|>{messages}\\n\\n{paths that change, one a line}\\n\\n{patch}<|endoftext|>
    pull        <|repo_name|>{repo}\\n, for each issue <|file_sep|>Issue #{number}: {title}\\n{author}: {body}\\n
                and its comments as {author}: {body}\\n, for each old file <|file_sep|>{path}\\n{text}, then
                <|file_sep|>Pull request #{number}: {title}\\n{author}: {body}\\n\\n{paths}\\n\\n{patch}, for each
                contribution <|file_sep|>{author} {verdict, or "on" and the path}: {hunk and body}\\n, and at last
                <|file_sep|>{merged, closed or open}<|endoftext|>

A file without text (a binary) is left out, and its change is not in the patch. A patch is shown without its `index`
lines: nobody can learn the ids of blobs, and `git apply` does without them. The stop token is learnt wherever the
text before it is. A preference record is two chats, a trajectory tree (`nodes`) one for each leaf: see
iqc.tokens.tokenise. Records of other kinds are refused by name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iqc.errors import BadRecord
from iqc.streams.stage import Record
from iqc.tokens.chat import chat_segments
from iqc.tokens.segments import Segment, control, text

_INDEX = re.compile(r"^index [0-9a-f]+\.\.[0-9a-f]+(?: \d+)?\n", re.MULTILINE)

# The first kind all of whose fields a record has is its kind: what distinguishes comes before what is common.
KINDS = {
    "preference": ("prompt", "chosen", "rejected"),
    "tree": ("nodes",),
    "pull": ("repo", "old", "patch", "pull"),
    "commit": ("repo", "old", "patch", "context"),
    "triplet": ("repo", "old", "patch"),
    "fim": ("prefix", "suffix", "middle"),
    "chat": ("messages",),
    "repository": ("repo", "files"),
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
        if fields[-1] in record and all(field in record for field in fields):  # the last is the rarest
            return kind
    raise BadRecord(
        f"a record of unknown kind, with the fields {', '.join(sorted(record)) or '(none)'}",
        remedy="; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in KINDS.items()),
    )


def render(record: Record, *, fim_middle_only: bool = False, change_only: bool = False) -> Sample:
    """Lays the record out as documented above. The loss is on all of it, as in pre-training, if no option says less.

    With `fim_middle_only` the loss of a fim sample is on its middle and its stop token alone. With `change_only` that
    of a triplet, commit or pull is on what follows its messages: paths, patch, and the token that ends them. The tokens
    stay the same.
    Raises BadRecord for an unknown kind or a field of a wrong type."""
    kind = kind_of(record)
    if kind in ("preference", "tree"):
        raise BadRecord(f"a {kind} record is several texts", remedy="take its chats one by one")
    if not isinstance(record.get("id"), str):
        raise BadRecord(f"a {kind} record without id", remedy="give every record an id that is a string")
    if kind == "document":
        segments = [text(_string(record, "text")), control("<|endoftext|>")]
    elif kind == "fim":
        segments = _fim(record, 0.0 if fim_middle_only else 1.0)
    elif kind == "repository":
        segments = [*_repository(record, 1.0), *_shown(_files(record, "files"), 1.0), control("<|endoftext|>")]
    elif kind in _CHANGES:
        segments = _CHANGES[kind](record, 0.0 if change_only else 1.0)
    else:
        segments = chat_segments(record)
    return Sample(record["id"], kind, [s for s in segments if s.value])


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


def _triplet(record: Record, outer: float) -> list[Segment]:
    head = [*_repository(record, outer), *_shown(_files(record["old"], "files"), outer), control("<|file_sep|>", outer)]
    return [*head, text(_messages(record), outer), text(_patch(record)), control("<|endoftext|>")]


def _commit(record: Record, outer: float) -> list[Segment]:
    context = record["context"]
    found = _files(context, "files")
    readme = context.get("readme")
    tree = {"path": ".", "text": "".join(f"{entry}\n" for entry in _strings(context, "tree"))}
    files = [*_files({"readme": [readme] if readme else []}, "readme"), tree, *found]
    head = [*_repository(record, outer), *_shown(files, outer), control("<|file_sep|>", outer)]
    return [*head, text(_messages(record), outer), text(_change(record)), control("<|endoftext|>")]


def _pull(record: Record, outer: float) -> list[Segment]:
    pull = record["pull"]
    if not isinstance(pull, dict):
        raise BadRecord("pull is not an object", remedy="give it as {number, author, title, body, state, merged}")
    out = _repository(record, outer)
    for issue in _files(record, "issues"):
        said = "".join(_said(note, "") for note in [issue, *_files(issue, "comments")])
        out += [
            control("<|file_sep|>", outer),
            text(f"Issue #{issue.get('number')}: {_string(issue, 'title')}\n{said}", outer),
        ]
    title = f"Pull request #{pull.get('number')}: {_string(pull, 'title')}\n{_said(pull, '')}\n"
    out += [*_shown(_files(record["old"], "files"), outer), control("<|file_sep|>", outer), text(title, outer)]
    out.append(text(_change(record)))
    behind = 1.0  # the first token behind the change is what ends it
    for note in _files(record, "discussion"):
        about = note.get("verdict") or (f"on {note['path']}" if note.get("path") else "")
        out += [control("<|file_sep|>", behind), text(_said(note, f" {about}" if about else ""), outer)]
        behind = outer
    outcome = "merged" if pull.get("merged") else _string(pull, "state")
    return [*out, control("<|file_sep|>", behind), text(outcome, outer), control("<|endoftext|>", outer)]


_CHANGES: dict[str, Callable[[Record, float], list[Segment]]] = {"triplet": _triplet, "commit": _commit, "pull": _pull}


def _said(note: Record, about: str) -> str:
    """What somebody said, with the hunk that it is about."""
    hunk = f"{_string(note, 'hunk')}\n" if note.get("hunk") else ""
    return f"{_string(note, 'author')}{about}: {hunk}{_string(note, 'body')}\n"


def _repository(record: Record, weight: float) -> list[Segment]:
    return [control("<|repo_name|>", weight), text(_string(record, "repo") + "\n", weight)]


def _shown(files: list[Record], weight: float) -> list[Segment]:
    """Files as they are, less those without text."""
    out = []
    for file in files:
        if file.get("text") is not None:
            body = f"{_string(file, 'path')}\n{_string(file, 'text')}"
            out += [control("<|file_sep|>", weight), text(body, weight)]
    return out


def _messages(record: Record) -> str:
    """The commits' messages, each with a blank line behind it."""
    return "".join(message.strip("\n") + "\n\n" for message in _strings(record, "messages"))


def _change(record: Record) -> str:
    """The paths of a change, which are predicted first, and its patch."""
    files = [*_files(record["old"], "files"), *_files(record.get("new"), "files")]
    paths = sorted({_string(file, "path") for file in files})
    return "".join(f"{path}\n" for path in paths) + "\n" + _patch(record)


def _patch(record: Record) -> str:
    """No line of a hunk begins with a letter."""
    return _INDEX.sub("", _string(record, "patch"))


def _strings(record: Record, field: str) -> list[str]:
    values = record.get(field) if isinstance(record, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadRecord(f"{field} are not all text", remedy="give them as a list of strings")
    return values


def _files(record: Any, field: str) -> list[Record]:
    files = record.get(field) if isinstance(record, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise BadRecord(f"{field} is not a list of files", remedy="give it as [{path, text}, ...]")
    return files


def _string(record: Record, field: str) -> str:
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise BadRecord(f"{field} is not a string", remedy="give it as a string")
    return value
