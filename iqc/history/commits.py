"""Code-change prediction: a commit's message and what the repository was before it -> the files changed and the change.

This is the commit data of Seed-Coder (arXiv 2506.03524, section 2.2.2): the context is the README, the directory tree
and the five files that BM25 finds for the message, all at the parent commit. A record is a triplet of one commit of the
first-parent line, where the merge of a pull request is one change, with a `context`:

    {"readme": {"path", "text"} or null, "tree": [paths], "files": [{"path", "text", "lang"}]}

The search sees the message and never the change. The files that the commit changes may be among those found, which is
the default: they are as they were before it, and whoever searches the repository for the message meets them too. To
leave them out (`changed="drop"`) would teach a model that what it is shown is never what changes. The record says which
it was, and how many of the changed files were found.

Commits are dropped by rule: those of `score.py` and the message rules of `triplets.toml`, the bots of `commits.toml`,
and the limits of `Options`. Every patch is applied to the old files before a record leaves.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import chain, islice
from math import ceil, floor
from os import PathLike
from pathlib import Path

from iqc.errors import IqcError, UsageError
from iqc.history.change import blobs_of, incomparable, read_change, reject_changes
from iqc.history.context import State
from iqc.history.git import Repository
from iqc.history.inputs import name_of
from iqc.history.life import Line, Section, check_window, cut
from iqc.history.listing import Listing
from iqc.history.log import Commit
from iqc.history.names import impersonal
from iqc.history.score import reject_message, subject_and_body, table
from iqc.history.texts import Rejected, Texts
from iqc.streams.stage import Dropped, Record

_BATCH = 24  # commits whose files and diffs are asked of Git at once
_TRAILER = re.compile(
    r"^[\w-]+-by: .*$|^merge pull request .*$|^change-id: .*$|https?://\S+", re.IGNORECASE | re.MULTILINE
)
_README = re.compile(r"readme(?:\.\w+)?", re.IGNORECASE)
_QUERY_CHARS = 4_000  # of a message: some are logs of whole releases
_INDEXED_BYTES = 200_000  # a larger file is hardly written by hand, and no search for a change needs it


@dataclass(frozen=True, slots=True)
class Options:
    """What is mined.

    name             the repository's name in records; its directory's name when empty
    window           the commits that are taken, as shares of the line by rank
    context          whether records have one
    context_files    files that BM25 finds
    changed          keep or drop: files that the commit changes, among those found
    readme_chars     of the README, cut at a line's end; 0 leaves it out
    file_chars       of each file found, cut at a line's end
    tree_entries     of the directory tree; a larger one is cut by depth (listing.py)
    max_files        files that a commit may change
    max_file_bytes   size of a changed file, on either side
    max_patch_bytes  size of the patch
    encodings        tried in order, strictly, on a file that declares none
    """

    name: str = ""
    window: tuple[float, float] = (0.0, 1.0)
    context: bool = True
    context_files: int = 5
    changed: str = "keep"
    readme_chars: int = 4_000
    file_chars: int = 20_000
    tree_entries: int = 500
    max_files: int = 30
    max_file_bytes: int = 500_000
    max_patch_bytes: int = 100_000
    encodings: tuple[str, ...] = ("utf-8",)

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.changed not in ("keep", "drop"):
            raise UsageError(f"changed files: {self.changed}", remedy="keep or drop")


def commits(
    path: str | PathLike[str],
    options: Options = Options(),
    section: Section | None = None,
    states: dict[Path, State] | None = None,
) -> Iterator[Record | Dropped]:
    """The commits of one repository, or of a section of its line, oldest first: a record, or the rule that dropped it.

    `states` carries the index from one section to the next when a process mines several: it holds the last state.
    IqcError by name: not a repository, no commits, shallow.
    """
    with Repository(path) as repository:
        if section is None:
            section = window(repository, options.window)
        yield from _Miner(repository, options, section, {} if states is None else states).mine()


def window(repository: Repository, shares: tuple[float, float]) -> Section:
    """The commits of the first-parent line between two shares of it, by rank; both ends are included."""
    count = repository.count()
    line = Line(count, ceil(shares[0] * (count - 1)), floor(shares[1] * (count - 1)))
    return next(cut(repository, line, [(line.first, max(line.first, line.last))]))


@dataclass(slots=True)
class _Found:
    """The context of a commit before it is read: path, mode and blob of its files, the README first if there is one."""

    readme: bool
    files: list[tuple[str, str, str]]
    tree: list[str]


@dataclass(slots=True)
class _Miner:
    repository: Repository
    options: Options
    section: Section
    states: dict[Path, State]
    name: str = ""
    texts: Texts = field(init=False)
    state: State | None = None  # without context there is none

    def __post_init__(self) -> None:
        self.name = self.options.name or name_of(self.repository.path)
        self.texts = Texts(self.repository, self.options.max_file_bytes, self.options.encodings)
        if self.options.context:
            self.state = self.states.get(self.repository.path) or State(
                self.repository, _INDEXED_BYTES, Listing(self.options.tree_entries)
            )
            self.state.repository = self.repository
            self.states.clear()
            self.states[self.repository.path] = self.state

    def mine(self) -> Iterator[Record | Dropped]:
        """In two passes over a few commits at a time: what each needs of Git is known before the first is made."""
        line = self.repository.log(self.section.last, self.section.count)
        rank = self.section.start
        while batch := list(islice(line, _BATCH)):
            rejected = [self._judge(commit) for commit in batch]
            # The index follows every commit; a record is made of those that are not rejected yet.
            asked = [bool(c.parents and not c.damage and (self.state or not rule)) for c, rule in zip(batch, rejected)]
            changes = [commit.changes if ask else () for commit, ask in zip(batch, asked)]
            large = incomparable(self.repository, changes, self.options.max_file_bytes)
            asked = [ask and not one for ask, one in zip(asked, large)]
            rejected = [rule or one for rule, one in zip(rejected, large)]
            diffs = self.repository.diffs([(c.parents[0], c.id) for c, ask in zip(batch, asked) if ask])
            diffs = chain(list(islice(diffs, 1)), diffs)  # asked for: Git compares while the files are read
            self.texts.prefetch(
                oid for commit, rule in zip(batch, rejected) if rule is None for oid in blobs_of(commit.changes)
            )
            made = []
            for number, (commit, rule, ask) in enumerate(zip(batch, rejected, asked), rank):
                diff = next(diffs) if ask else None
                cut = Rejected("patch_bytes", diff, self.options.max_patch_bytes) if isinstance(diff, int) else None
                made.append(self._one(number, commit, rule or cut, diff if isinstance(diff, bytes) else None))
            rank += len(batch)
            self.texts.prefetch(oid for _, found in made if found for _, _, oid in found.files)
            for record, found in made:
                if found is not None and not isinstance(record, Dropped):
                    self._show(record, found)
                yield record

    def _one(
        self, rank: int, commit: Commit, rejected: Rejected | None, diff: bytes | None
    ) -> tuple[Record | Dropped, "_Found | None"]:
        """What becomes of a commit, and what was found for it; then the state is that after the commit."""
        state = self._state(commit.parents[0] if commit.parents else "")
        made: Record | Dropped
        found = None
        try:
            if rejected:
                raise rejected
            made = record = self._change(rank, commit, diff)
            if self.options.context:
                if state is None:
                    raise Rejected("missing_object", f"the tree of {commit.parents[0]}")
                found = self._find(state, record)
        except Rejected as error:
            about = {"id": self._id(commit), "repo": self.name, "new": {"commit": commit.id}}
            made = Dropped(about, f"commits.{error.rule}", error.value, error.threshold)
        if state is not None and not commit.damage:
            state.advance(commit, diff)
        return made, found

    def _state(self, parent: str) -> State | None:
        """The state of a parent, read from its tree when that of another commit was the last; None if it cannot be."""
        if self.state is not None and self.state.commit != parent:
            try:
                self.state.synchronise(parent)
            except IqcError:  # Git has many words for a tree that cannot be read
                return None
        return self.state

    def _judge(self, commit: Commit) -> Rejected | None:
        """What speaks against a commit before any of its files is read."""
        if commit.damage:
            return Rejected("damaged", commit.damage)
        if not commit.parents:
            return Rejected("root")
        if is_bot(commit.author):
            return Rejected("bot", commit.author)
        if rule := reject_message(commit.message, merge=len(commit.parents) > 1):
            return Rejected(rule, commit.message[:200].partition("\n")[0])
        if rejected := _judge_subject(subject_and_body(commit.message)[0]):
            return rejected
        return reject_changes(commit.changes, self.options.max_files)

    def _change(self, rank: int, commit: Commit, diff: bytes | None) -> Record:
        """The triplet of a commit; Rejected by what its files and its patch are."""
        if diff is None:
            raise Rejected("missing_object", f"the change of {commit.id}")
        whole = read_change(self.texts, commit.changes, diff, self.options.max_patch_bytes)
        return {
            "id": self._id(commit),
            "repo": self.name,
            "old": {"commit": commit.parents[0], "files": whole.old},
            "patch": whole.patch,
            "new": {"commit": commit.id, "files": whole.new},
            "messages": [impersonal(commit.message)],
            "metadata": {
                "percentile": round(self.section.line.percentile(rank, commit.time), 4),
                "commits": self.section.line.commits,
                "time": commit.time,
                "merge": len(commit.parents) > 1,
                "patch_encoding": whole.encoding,
                "binaries": whole.binaries,
            },
        }

    def _id(self, commit: Commit) -> str:
        return f"{self.name}@{commit.id[:12]}"

    def _find(self, state: State, record: Record) -> "_Found":
        """What there is before the change, and how much of the change the search can find."""
        options = self.options
        changed = [state.files[file["path"]] for file in record["old"]["files"] if file["path"] in state.files]
        at_top = [path for path, inner in state.listing.root.items() if inner is None and _README.fullmatch(path)]
        readme = min(at_top, key=lambda path: (not path.lower().endswith(".md"), path), default=None)
        skip = [*([readme] if readme else []), *(file.path for file in changed if options.changed == "drop")]
        best = state.top(_query(record["messages"][0]), options.context_files, skip)
        shown = [state.files[readme]] if readme and options.readme_chars else []
        record["metadata"] |= {
            "context_changed": options.changed,
            "changed_findable": sum(file.size is not None for file in changed),
            "changed_found": sum(file in changed for file in best),
        }
        files = [(file.path, file.mode, file.oid) for file in (*shown, *best)]
        return _Found(bool(shown), files, list(state.listing.entries()))

    def _show(self, record: Record, found: "_Found") -> None:
        """The context, read."""
        readme = self._text(found.files[0], self.options.readme_chars) if found.readme else None
        files = [self._text(file, self.options.file_chars) for file in found.files[found.readme :]]
        record["context"] = {
            "readme": {"path": readme["path"], "text": readme["text"]} if readme else None,
            "tree": found.tree,
            "files": [file for file in files if file is not None],
        }

    def _text(self, file: tuple[str, str, str], chars: int) -> Record | None:
        """A file, cut behind the last whole line; None when it cannot be read as text."""
        try:
            entry = self.texts.entry(*file)
        except Rejected:
            return None
        text = entry["text"]
        if text is None:
            return None
        if len(text) > chars:
            text = text[: text.rfind("\n", 0, chars) + 1] or text[:chars]
        return {"path": entry["path"], "text": text, "lang": entry["lang"]}


def _judge_subject(subject: str) -> Rejected | None:
    """The message rules of the table, which a score of triplets only weighs."""
    rules = table()["message"]
    for rule, value in (("subject_chars", len(subject)), ("subject_words", len(subject.split()))):
        if not rules[rule][0] < value < rules[rule][1]:
            return Rejected(rule, value, rules[rule])
    if broken := [rule for rule in rules["bad"] if re.search(rule, subject, re.IGNORECASE)]:
        return Rejected("subject", subject[:200], broken[0])
    return None


def _query(message: str) -> str:
    """What a message says of the change: without the lines that name people and other systems."""
    return _TRAILER.sub("", message[:_QUERY_CHARS])


def is_bot(author: str) -> bool:
    """Whether a login, or `name <address>`, is of a program."""
    return _bot().search(author) is not None


@cache
def _bot() -> re.Pattern[str]:
    rules = tomllib.loads((files("iqc.history") / "commits.toml").read_text(encoding="utf-8"))
    return re.compile(rules["reject"]["bot"], re.IGNORECASE)
