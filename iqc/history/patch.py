"""Applying a unified diff in process, exactly: every line where the hunk says, no fuzz, no offset.

It reads what `git diff` writes for text: additions, deletions, changes of mode, renames, and files without a final
newline. Lines end with a line feed only, so that a carriage return stays part of its line. Binary patches are not read.
"""

import re
from collections.abc import Mapping

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
    """The lines of each file's part, without their line feeds. No line of a hunk starts with `d`."""
    if not patch:
        return []
    if not patch.endswith("\n") or not patch.startswith("diff --git "):
        raise PatchError("the patch does not start with `diff --git` or does not end with a line feed")
    sections: list[list[str]] = []
    for line in patch[:-1].split("\n"):
        if line.startswith("diff --git "):
            sections.append([])
        sections[-1].append(line)
    return sections


def headers(section: list[str]) -> tuple[str | None, str | None, str | None, list[str]]:
    """Old path, new path (None: no such side), new mode if it is said, and the lines from the first hunk on."""
    old: str | None
    new: str | None
    old, new = _both_paths(section[0])
    mode = None
    for k, line in enumerate(section):
        if line.startswith("@@ "):
            return old, new, mode, section[k:]
        if line.startswith("new mode "):
            mode = line.removeprefix("new mode ")
        elif line.startswith("new file mode "):
            old, mode = None, line.removeprefix("new file mode ")
        elif line.startswith("deleted file mode "):
            new = None
        elif line.startswith("rename from "):
            old = unquote(line.removeprefix("rename from "))
        elif line.startswith("rename to "):
            new = unquote(line.removeprefix("rename to "))
    return old, new, mode, []


def without(patch: str, paths: set[str]) -> str:
    """The patch less the parts that touch one of the paths."""
    kept = (section for section in _sections(patch) if paths.isdisjoint(headers(section)[:2]))
    return "".join(line + "\n" for section in kept for line in section)


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
    """The text after the hunks of one file."""
    source = _lines(before)
    done: list[str] = []
    at = 0  # lines of `source` already dealt with
    k = 0
    while k < len(hunks):
        match = _HUNK.match(hunks[k])
        if not match:
            raise PatchError(f"{path}: not a hunk: {hunks[k][:60]!r}")
        start, old_left, new_left = int(match[1]), int(match[2] or 1), int(match[4] or 1)
        begin = start - 1 if old_left else start  # an empty range is named by the line before it
        if not at <= begin <= len(source):
            raise PatchError(f"{path}: a hunk at line {start} is out of order")
        done += source[at:begin]
        at = begin
        k += 1
        while old_left or new_left:
            if k == len(hunks):
                raise PatchError(f"{path}: the last hunk is cut")
            sign, line = hunks[k][:1], hunks[k][1:] + "\n"
            k += 1
            if k < len(hunks) and hunks[k].startswith("\\"):  # no line feed at the end of the file
                line = line[:-1]
                k += 1
            if sign not in (" ", "-", "+"):
                raise PatchError(f"{path}: neither context, deletion nor addition: {line[:60]!r}")
            if sign != "+":
                if source[at : at + 1] != [line]:
                    raise PatchError(f"{path}: line {at + 1} is not what the patch says")
                at += 1
                old_left -= 1
            if sign != "-":
                done.append(line)
                new_left -= 1
    return "".join(done + source[at:])


def _lines(text: str) -> list[str]:
    """Lines with their line feeds, which the last may lack."""
    *ended, last = text.split("\n")
    return [line + "\n" for line in ended] + ([last] if last else [])
