"""Applying a unified diff in process, exactly: every line where the hunk says, no fuzz, no offset.

It reads what `git diff` writes for text: additions, deletions, changes of mode, renames, and files without a final
newline. Lines end with a line feed only, so that a carriage return stays part of its line. Binary patches are not read.
"""

import re
from collections.abc import Mapping
from io import StringIO
from itertools import accumulate, pairwise

from iqc.errors import IqcError

State = dict[str, tuple[str, str]]  # path -> (mode, text)

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_ESCAPE = re.compile(r'\\([abfnrtv"\\]|[0-7]{3})')
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", '"': '"', "\\": "\\"}


class PatchError(IqcError):
    """A patch that does not apply."""


def apply_patch(files: Mapping[str, tuple[str, str]], patch: str) -> State:
    """The files after the patch; `files` must hold every file that it touches. PatchError when it does not apply."""
    out: State = dict(files)
    removed, added = [], {}
    for section in _sections(patch):
        old, new, mode, hunks = headers(section)
        if old is not None and old not in files:
            raise PatchError(f"the patch changes {old}, which is not there")
        before_mode, before = files[old] if old is not None else ("", "")
        if old is not None:
            removed.append(old)
        after = _change(before, hunks, new or old or "")
        if new is not None:
            added[new] = (mode or before_mode, after)
        elif after:
            raise PatchError(f"the patch deletes {old} and leaves text of it")
    for path in removed:
        del out[path]
    for path, entry in added.items():
        if path in out:
            raise PatchError(f"the patch adds {path}, which is there")
        out[path] = entry
    return out


def _sections(patch: str) -> list[list[str]]:
    """The lines of each file's part, with their line feeds. No line of a hunk starts with `d`."""
    if not patch:
        return []
    if not patch.endswith("\n") or not patch.startswith("diff --git "):
        raise PatchError("the patch does not start with `diff --git` or does not end with a line feed")
    lines = _lines(patch)
    starts = [k for k, line in enumerate(lines) if line.startswith("diff --git ")]
    return [lines[start:stop] for start, stop in pairwise([*starts, len(lines)])]


def headers(section: list[str]) -> tuple[str | None, str | None, str | None, list[str]]:
    """Old path, new path (None: no such side), new mode if it is said, and the lines from the first hunk on."""
    old: str | None
    new: str | None
    old, new = _both_paths(section[0].removesuffix("\n"))
    mode = None
    for k, line in enumerate(section):
        if line.startswith("@@ "):
            return old, new, mode, section[k:]
        name, _, value = line.removesuffix("\n").rpartition(" mode ")
        if name == "new":
            mode = value
        elif name == "new file":
            old, mode = None, value
        elif name == "deleted file":
            new = None
        elif line.startswith("rename from "):
            old = unquote(line.removeprefix("rename from ").removesuffix("\n"))
        elif line.startswith("rename to "):
            new = unquote(line.removeprefix("rename to ").removesuffix("\n"))
    return old, new, mode, []


def without(patch: str, paths: set[str]) -> str:
    """The patch less the parts that touch one of the paths."""
    kept = (section for section in _sections(patch) if paths.isdisjoint(headers(section)[:2]))
    return "".join(line for section in kept for line in section)


def _both_paths(line: str) -> tuple[str, str]:
    """The paths of `diff --git a/X b/X`; where they differ, `rename from` and `rename to` say so again."""
    rest = line.removeprefix("diff --git ")
    if rest.startswith('"'):
        first = re.match(r'"(?:[^"\\]|\\.)*"', rest)
        cut = first.end() if first else len(rest)
    elif rest.endswith('"'):
        cut = rest.index(' "')
    else:
        cut = len(rest) // 2  # equal names: the blank is in the middle
    return unquote(rest[:cut])[2:], unquote(rest[cut + 1 :])[2:]


def unquote(name: str) -> str:
    """A path as Git writes it: in double quotes, with C's escapes, when it holds a quote or a control character."""
    if not name.startswith('"'):
        return name
    return _ESCAPE.sub(lambda m: _ESCAPED.get(m[1]) or chr(int(m[1], 8)), name[1:-1])


def _change(before: str, hunks: list[str], path: str) -> str:
    """The text after the hunks of one file. It is split into lines only where a hunk's lines come twice."""
    done: list[str] = []
    at, line = 0, 0  # how much of `before` is dealt with: characters, and lines
    starts: list[int] = []  # of the lines of `before`, once they are needed
    heads = [k for k, text in enumerate(hunks) if text[0] == "@"]
    for head, stop in pairwise([*heads, len(hunks)]):
        match = _HUNK.match(hunks[head])
        if not match:
            raise PatchError(f"{path}: not a hunk: {hunks[head][:60]!r}")
        old, new = _sides(hunks[head + 1 : stop], path)
        if (len(old), len(new)) != (int(match[2] or 1), int(match[4] or 1)):
            raise PatchError(f"{path}: the hunk at line {match[1]} does not have the lines that it says")
        first = int(match[1]) - bool(old)  # lines before it; an empty range is named by the line before it
        block = "".join(old)
        begin = before.find(block, at)
        if before.count("\n", at, max(at, begin)) != first - line or before[begin - 1 : begin] not in ("", "\n"):
            starts = starts or [0, *accumulate(len(text) + 1 for text in before.split("\n"))]
            begin = starts[first] if line <= first < len(starts) else -1
        end = begin + len(block)
        open_end = old and not old[-1].endswith("\n")
        if not at <= begin <= len(before) or not before.startswith(block, begin) or (open_end and end != len(before)):
            raise PatchError(f"{path}: the lines of the hunk at line {match[1]} are not there")
        done += (before[at:begin], *new)
        at, line = end, first + len(old)
    return "".join([*done, before[at:]])


def _sides(lines: list[str], path: str) -> tuple[list[str], list[str]]:
    """The lines of a hunk before and after."""
    signs = {line[0] for line in lines}
    if "\\" in signs:  # the line above it has no line feed, being the last of its file
        ended = [line[:-1] if after[0] == "\\" else line for line, after in pairwise([*lines, " "])]
        lines = [line for line in ended if line[0] != "\\"]
    if not signs <= {" ", "-", "+", "\\"}:
        raise PatchError(f"{path}: a line is neither context, deletion nor addition")
    return [line[1:] for line in lines if line[0] != "+"], [line[1:] for line in lines if line[0] != "-"]


def _lines(text: str) -> list[str]:
    """Lines with their line feeds, which the last may lack."""
    return StringIO(text, newline="\n").readlines()
