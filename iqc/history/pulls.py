"""Pull requests: the text of an export joined with the change that the repository holds.

A record is a triplet of base..merge with the conversation around it:

    pull        {number, author, title, body, state, merged, labels, base, head}
    issues      [{number, author, title, body, comments: [{author, body, time}]}]   those that it closes
    discussion  [{kind, author, body, path, hunk, verdict, time}]   comment, review, review_comment, by time

Which commits they are: `merge_commit_sha` of one that was merged (a merge, a squash, or the last of `commits` rebased
ones); else the first commit of HEAD's first-parent line whose message names the number, as GitHub writes it; else
`head.sha`, from where it left HEAD. The first that the object store has; `metadata.found` says which.

People are user_0, user_1, ... within a record (names.py); what bots say is left out and counted. A title or body that
the export lacks is taken from the commit's message.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from os import PathLike

from iqc.errors import IqcError
from iqc.history.change import Whole, blobs_of, incomparable, read_change, reject_changes
from iqc.history.commits import is_bot
from iqc.history.git import MissingObject, Repository
from iqc.history.inputs import name_of
from iqc.history.log import Change, Commit
from iqc.history.names import Names
from iqc.history.score import subject_and_body
from iqc.history.texts import Rejected, Texts
from iqc.history.threads import Note, Thread, Threads, linked, read_export, table
from iqc.streams.stage import Dropped, Record

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_MERGE = re.compile(r"Merge pull request #(\d{1,9})\b")
_SQUASH = re.compile(r"\(#(\d{1,9})\)\s*$")
_BATCH = 24  # pull requests whose files and diffs are asked of Git at once
_REBASED = 100  # commits of a rebased pull request, at most


@dataclass(frozen=True, slots=True)
class Options:
    """What is joined.

    name             the repository's name, as the export has it: owner/name; its directory's name when empty
    export           JSONL files with the pull requests and issues (threads.py)
    max_files        files that a pull request may change
    max_file_bytes   size of a changed file, on either side
    max_patch_bytes  size of the patch
    encodings        tried in order, strictly, on a file that declares none
    """

    name: str = ""
    export: tuple[str, ...] = ()
    max_files: int = 30
    max_file_bytes: int = 500_000
    max_patch_bytes: int = 100_000
    encodings: tuple[str, ...] = ("utf-8",)


def pulls(path: str | PathLike[str], options: Options, threads: Threads | None = None) -> Iterator[Record | Dropped]:
    """The pull requests of one repository by number: a record each, or the rule that dropped it.

    `threads` is what `read_export` found of this repository; without it, the export is read here. BadRecord with file
    and line for what is wrong in it; IqcError by name: not a repository, no commits, shallow.
    """
    name = options.name or name_of(path)
    if threads is None:
        threads = read_export(options.export, [name])[name]
    with Repository(path) as repository:
        yield from _Joiner(repository, options, name, threads).join()


@dataclass(frozen=True, slots=True)
class _Span:
    """The commits of a pull request: from the state `old` to `new`; `found` says how they were found."""

    found: str
    old: str
    new: str
    changes: tuple[Change, ...]
    messages: tuple[str, ...]
    time: int


@dataclass(slots=True)
class _Joiner:
    repository: Repository
    options: Options
    name: str
    threads: Threads
    texts: Texts = field(init=False)

    def __post_init__(self) -> None:
        self.texts = Texts(self.repository, self.options.max_file_bytes, self.options.encodings)

    def join(self) -> Iterator[Record | Dropped]:
        """A few at a time, so that Git is asked ahead."""
        pulls = [thread for _, thread in sorted(self.threads.items()) if thread.pull]
        on_line = self._on_line(pulls)
        for start in range(0, len(pulls), _BATCH):
            batch = [(pull, self._judge(pull, on_line.get(pull.number))) for pull in pulls[start : start + _BATCH]]
            spans = [found for _, found in batch if isinstance(found, _Span)]
            large = incomparable(self.repository, [span.changes for span in spans], self.options.max_file_bytes)
            spans = [span for span, one in zip(spans, large) if not one]
            diffs = self.repository.diffs([(span.old, span.new) for span in spans])
            diffs = chain(list(islice(diffs, 1)), diffs)  # asked for: Git compares while the files are read
            self.texts.prefetch(oid for span in spans for oid in blobs_of(span.changes))
            reasons = iter(large)
            for pull, found in batch:
                try:
                    if isinstance(found, Rejected):
                        raise found
                    if (reason := next(reasons)) is not None:
                        raise reason
                    yield self._record(pull, found, next(diffs))
                except Rejected as error:
                    about = {"id": f"{self.name}#{pull.number}", "repo": self.name}
                    yield Dropped(about, f"pulls.{error.rule}", error.value, error.threshold)

    def _on_line(self, pulls: Sequence[Thread]) -> dict[int, tuple[str, Commit]]:
        """How and which commit of the first-parent line ends a pull request; one that it names goes before another."""
        named = {sha: pull.number for pull in pulls if pull.get("merged") and (sha := pull.get("merge_commit"))}
        numbers = {pull.number for pull in pulls}
        found: dict[int, tuple[str, Commit]] = {}
        for commit in self.repository.log(self.repository.head) if pulls else ():
            subject = commit.message.partition("\n")[0]
            match = _MERGE.match(subject) or _SQUASH.search(subject)
            if commit.id in named:
                found[named[commit.id]] = ("merge_commit", commit)
            elif match and int(match[1]) in numbers:
                found.setdefault(int(match[1]), ("message", commit))
        return found

    def _judge(self, pull: Thread, on_line: tuple[str, Commit] | None) -> _Span | Rejected:
        """The commits of a pull request, or what speaks against it before any file is read."""
        if pull.get("bot") or is_bot(pull.get("author", "")):
            return Rejected("bot", pull.get("author"))
        try:
            span = self._span(pull, on_line)
        except Rejected as rejected:
            return rejected
        except IqcError as error:  # of one commit among several
            return Rejected("missing_object", error.what)
        if "title" not in pull.facts:
            title, body = subject_and_body(span.messages[-1])
            pull.learn("", title=_SQUASH.sub("", title).strip(), body=body)
        low, high = table()["limits"]["title_chars"]
        if not low <= len(pull.get("title")) <= high:
            return Rejected("title_chars", len(pull.get("title")), [low, high])
        return reject_changes(span.changes, self.options.max_files) or span

    def _record(self, pull: Thread, span: _Span, diff: bytes | int | MissingObject) -> Record:
        """The record of a pull request; Rejected by what its files, patch and texts are."""
        if isinstance(diff, MissingObject):
            raise Rejected("missing_object", diff.what)
        if isinstance(diff, int):
            raise Rejected("patch_bytes", diff, self.options.max_patch_bytes)
        whole = read_change(self.texts, span.changes, diff, self.options.max_patch_bytes)
        record = self._with_text(pull, span, whole)
        chars, limits = len(whole.patch) + sum(map(len, _texts(record))), table()["limits"]["chars"]
        if not limits[0] <= chars <= limits[1]:
            raise Rejected("chars", chars, limits)
        return record

    def _span(self, pull: Thread, on_line: tuple[str, Commit] | None) -> _Span:
        if on_line is None and (commit := self._commit(pull.get("merge_commit")) if pull.get("merged") else None):
            on_line = "merge_commit", commit  # into another branch
        if on_line is None:
            return self._left_from_base(pull)
        found, commit = on_line
        if commit.damage:
            raise Rejected("damaged", commit.damage)
        if not commit.parents:
            raise Rejected("root")
        count = pull.get("commits", 1)
        subject = commit.message.partition("\n")[0]
        # GitHub writes the number or the title into the message of a squash; rebased commits keep what they had.
        squash = _SQUASH.search(subject) or subject.strip() == pull.get("title", "").strip()
        if len(commit.parents) == 1 and not squash and 1 < count <= _REBASED:
            line = list(self.repository.log(commit.id, count))
            first = line[0].parents[0] if line[0].parents else ""
            if first and len(line) == count:
                changes = self.repository.changes(first, commit.id)
                messages = tuple(one.message for one in line)
                return _Span("rebase", first, commit.id, changes, messages, commit.time)
        return _Span(found, commit.parents[0], commit.id, commit.changes, (commit.message,), commit.time)

    def _commit(self, oid: str | None) -> Commit | None:
        """A commit that an export names, when it is there. What is no id is not shown to Git."""
        if oid is None or not _OID.fullmatch(oid):
            return None
        try:
            return next(self.repository.log(oid, 1), None)
        except IqcError:
            return None

    def _left_from_base(self, pull: Thread) -> _Span:
        """The head of a pull request that is not on the line, against where it left it."""
        head = self._commit(pull.get("head_sha"))
        if head is None:
            raise Rejected("no_commit", pull.get("head_sha"))
        base = self.repository.merge_base(self.repository.head, head.id)
        if base == head.id:
            raise Rejected("no_commit", head.id)
        changes = self.repository.changes(base, head.id)
        return _Span("head", base, head.id, changes, (head.message,), head.time)

    def _with_text(self, pull: Thread, span: _Span, whole: Whole) -> Record:
        said = pull.said()
        notes = [note for note in said if not _by_bot(note)]
        links = pull.links | set(linked(pull.get("title", ""), self.name))
        for message in span.messages:
            links |= set(linked(message, self.name))
        issues = [self.threads[k] for k in sorted(links) if k in self.threads and not self.threads[k].pull]
        people = [pull.get("author", ""), *(note.author for note in notes)]
        for issue in issues:
            people += [issue.get("author", ""), *(note.author for note in issue.said())]
        names = Names({login.lower() for login in people if login})
        bots = len(said) - len(notes)
        shown = {
            "number": pull.number,
            "author": names.of(pull.get("author", "")),
            "title": names.text(pull.get("title", "")),
            "body": names.message(pull.get("body", "")),
            "state": pull.get("state", "closed" if span.found != "head" else "open"),
            "merged": bool(pull.get("merged", span.found != "head")),
            "labels": [names.words(label) for label in pull.get("labels", [])],
            "base": {"ref": pull.get("base_ref"), "sha": span.old},
            "head": {"ref": names.words(pull.get("head_ref", "")) or None, "sha": pull.get("head_sha")},
        }
        closed = []
        for issue in issues:
            comments = [note for note in issue.said() if not _by_bot(note)]
            bots += len(issue.said()) - len(comments)
            closed.append(
                {
                    "number": issue.number,
                    "author": names.of(issue.get("author", "")),
                    "title": names.text(issue.get("title", "")),
                    "body": names.text(issue.get("body", "")),
                    "comments": [
                        {"author": names.of(note.author), "body": names.text(note.body), "time": note.time}
                        for note in comments
                    ],
                }
            )
        return {
            "id": f"{self.name}#{pull.number}",
            "repo": self.name,
            "old": {"commit": span.old, "files": whole.old},
            "patch": whole.patch,
            "new": {"commit": span.new, "files": whole.new},
            "messages": [names.message(message) for message in span.messages],
            "pull": shown,
            "issues": closed,
            "discussion": [_note(note, names) for note in notes],
            "metadata": {
                "found": span.found,
                "time": span.time,
                "patch_encoding": whole.encoding,
                "binaries": whole.binaries,
                "bot_comments": bots,
            },
        }


def _note(note: Note, names: Names) -> Record:
    return {
        "kind": note.kind,
        "author": names.of(note.author),
        "body": names.text(note.body),
        "path": note.path,
        "hunk": names.code(note.hunk) if note.hunk else None,
        "verdict": note.verdict,
        "time": note.time,
    }


def _by_bot(note: Note) -> bool:
    return note.bot or is_bot(note.author)


def _texts(record: Record) -> Iterator[str]:
    """What people wrote in a record."""
    yield from record["messages"]
    yield record["pull"]["title"]
    yield record["pull"]["body"]
    for issue in record["issues"]:
        yield issue["title"]
        yield issue["body"]
        yield from (comment["body"] for comment in issue["comments"])
    for note in record["discussion"]:
        yield note["body"]
        yield note["hunk"] or ""
