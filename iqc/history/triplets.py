"""Triplets (R_old, P, R_new): a mature state of a repository, a representative change, and the state after it.

R_old is drawn from the commits between the 40th and the 80th percentile of the project's life, by rank on the
first-parent line: the project has its shape and is still being built (IQuest-Coder-V1 report, section 3.1). R_new is
the best of the next commits by the score of `score.py`, so P may span several commits. Both states hold the touched
files and what `states.py` adds to them; a binary file has `text: null` and no part in the patch.

Every patch is applied to R_old before a triplet leaves, and must give R_new to the byte.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from os import PathLike
from random import Random

from iqc.errors import IqcError, UsageError
from iqc.history.change import blobs_of, entries, file_change, reject_changes
from iqc.history.git import MissingObject, Repository
from iqc.history.inputs import name_of
from iqc.history.life import Line, Section, check_window, cut, line_of
from iqc.history.log import Change, Commit
from iqc.history.names import impersonal
from iqc.history.score import FileChange, reject_message, reject_texts, score, subject_and_body, too_long
from iqc.history.states import Context, ContextOptions
from iqc.history.texts import Rejected, Texts, verified_patch
from iqc.streams.stage import Dropped, Record, rng

_AHEAD = 32  # commits
_STRETCHES = 256  # in a section: what one worker does at a time, and holds the records of


@dataclass(frozen=True, slots=True)
class Options:
    """What is mined.

    name            the repository's name in records; its directory's name when empty
    window          percentiles, as shares, between which R_old lies
    by              what a percentile counts: commits (`rank`) or seconds (`time`)
    density         triplets wanted for 100 commits of the first-parent line; at least one is looked for
    horizon         commits after R_old among which R_new is searched
    min_score       a best end below this is not taken
    max_files       files that a change may touch
    max_file_bytes  size of a touched file, on either side
    encodings       tried in order, strictly, on a file that declares none
    context         the files of the states beside those that are touched
    """

    name: str = ""
    window: tuple[float, float] = (0.4, 0.8)
    by: str = "rank"
    density: float = 2.0
    horizon: int = 8
    min_score: float = 0.5
    max_files: int = 30
    max_file_bytes: int = 500_000
    encodings: tuple[str, ...] = ("utf-8",)
    context: ContextOptions = field(default_factory=ContextOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.horizon < 1 or self.density <= 0:
            raise UsageError(
                f"horizon {self.horizon}, density {self.density}",
                remedy="give a horizon of 1 or more, a density above 0",
            )
        if self.by not in ("rank", "time"):
            raise UsageError(f"percentiles by {self.by}", remedy="take them by rank or by time")


def sections(repository: Repository, options: Options) -> Iterator[Section]:
    """The parts of a repository that are mined alone: no triplet reaches from one into the next.

    IqcError by name: fewer than three commits on the first-parent line.
    """
    if (commits := repository.count()) < 3:
        count = "one commit" if commits == 1 else f"{commits} commits"
        raise IqcError(
            f"{repository.path} has {count}: no evolution to learn from", remedy="give a repository with 3 or more"
        )
    line = line_of(repository, options.window, options.by)
    if line.first > line.last:
        low, high = options.window
        raise IqcError(
            f"{repository.path} has no commit between {low:.0%} and {high:.0%} of its life", remedy="widen --window"
        )
    stretches = _stretches(line, options)
    starts = [_bound(line, stretches, k) for k in range(0, stretches, _STRETCHES)]
    stops = [*starts[1:], min(line.last + options.horizon, line.commits - 1)]
    yield from cut(repository, line, zip(starts, stops))


def _stretches(line: Line, options: Options) -> int:
    """The window is cut into as many stretches as triplets are wanted; a start is drawn in each, uniformly."""
    places = line.last - line.first + 1
    return min(max(1, round(options.density * line.commits / 100)), places) if places > 0 else 0


def _bound(line: Line, stretches: int, k: int) -> int:
    """The rank at which stretch `k` begins."""
    return line.first + (line.last - line.first + 1) * k // stretches


def triplets(
    path: str | PathLike[str], options: Options = Options(), section: Section | None = None
) -> Iterator[Record | Dropped]:
    """The triplets of one repository, or of a section of it: oldest first, without overlap, with every other end.

    IqcError by name: not a repository, no commits, shallow, fewer than three commits on the first-parent line.
    """
    with Repository(path) as repository:
        for part in [section] if section else sections(repository, options):
            yield from _Miner(repository, part, options).mine()


@dataclass(slots=True)
class _End:
    """A commit that may be R_new: `taken` commits after R_old, with the change from there."""

    commit: Commit
    taken: int
    changes: list[Change]
    messages: list[str]
    score: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Miner:
    repository: Repository
    section: Section
    options: Options
    name: str = ""
    texts: Texts = field(init=False)
    context: Context = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.options.name or name_of(self.repository.path)
        self.texts = Texts(self.repository, self.options.max_file_bytes, self.options.encodings)
        self.context = Context(self.repository, self.texts, self.options.context)

    def mine(self) -> Iterator[Record | Dropped]:
        """Of the section's commits, only those from a start on to the horizon are held."""
        commits = self.repository.log(self.section.last, self.section.count)
        held: deque[Commit] = deque()
        rank = free = self.section.start  # rank: of held[0]; free: a triplet may start where the last one ended
        line, now = self.section.line, self.section.now
        for low, high, draw in self._starts():
            start = max(free, draw.randint(low, high))
            if start > high:
                continue
            while rank < start:
                now = line.clock(now, (held.popleft() if held else next(commits)).time)
                rank += 1
            self._fill(held, commits)
            now = line.clock(now, held[0].time)
            ends = []
            for item in self._ends(list(islice(held, self.options.horizon + 1))):
                if isinstance(item, Dropped):
                    yield item
                else:
                    ends.append(item)
            best = None
            for end in sorted(ends, key=lambda end: -end.score):  # of equals the first
                if best is not None:
                    yield self._dropped(held[0], end.commit, Rejected("not_best", end.score, best.score), end.parts)
                    continue
                try:
                    yield self._triplet(held[0], line.percentile(start, now), end)
                    best, free = end, start + end.taken
                except Rejected as rejected:
                    yield self._dropped(held[0], end.commit, rejected, end.parts)

    def _fill(self, held: deque[Commit], commits: Iterator[Commit]) -> None:
        """Hold what the start needs; some more where every commit will be read, whose files are then read in one go."""
        if (missing := self.options.horizon + 1 - len(held)) <= 0:
            return
        line = self.section.line
        every = _stretches(line, self.options) * self.options.horizon > line.last - line.first
        fresh = list(islice(commits, missing + (_AHEAD if every else 0)))
        held.extend(fresh)
        if every:
            small = (commit.changes for commit in fresh if len(commit.changes) <= self.options.max_files)
            self.texts.prefetch(oid for changes in small for oid in blobs_of(changes))

    def _starts(self) -> Iterator[tuple[int, int, Random]]:
        """The stretches of the section, as first and last rank, each with its own generator."""
        line, section = self.section.line, self.section
        stretches = _stretches(line, self.options)
        k = -(-(section.start - line.first) * stretches // (line.last - line.first + 1))
        while k < stretches and (low := _bound(line, stretches, k)) < section.start + section.count - 1:
            k += 1
            yield low, _bound(line, stretches, k) - 1, rng(self.options.seed, "triplets", f"{self.name}#{k}")

    def _ends(self, held: Sequence[Commit]) -> Iterator[_End | Dropped]:
        """The commits behind the first as ends: the change to each is the sum of the changes up to it."""
        start, *following = held
        total: dict[bytes, Change] = {}
        ends = []
        for k, commit in enumerate(following, start=1):
            try:
                if commit.damage:
                    raise Rejected("damaged", commit.damage)
                for change in commit.changes:
                    before = total.pop(change.path, change)
                    if (before.old_mode, before.old) != (change.new_mode, change.new):
                        total[change.path] = replace(change, old_mode=before.old_mode, old=before.old)
                messages = [item.message for item in following[:k]]
                if long := next(filter(too_long, messages), None):
                    raise Rejected("message_chars", len(long))
                end = _End(commit, k, self._changes(commit, total), messages)
                ends.append(end)
            except Rejected as rejected:
                yield self._dropped(start, commit, rejected)
                if commit.damage:
                    break
        self.texts.prefetch(oid for end in ends for oid in blobs_of(end.changes))
        judged: dict[Change, FileChange] = {}
        for end in ends:
            try:
                self._judge(end, judged)
                yield end
            except Rejected as rejected:
                yield self._dropped(start, end.commit, rejected, end.parts)

    def _changes(self, end: Commit, total: dict[bytes, Change]) -> list[Change]:
        """The changes in the order of their paths; what their texts need not be read for is rejected here."""
        if rule := reject_message(end.message, merge=len(end.parents) > 1):
            raise Rejected(rule, end.message.partition("\n")[0][:1000])
        changes = [total[path] for path in sorted(total)]
        if rejected := reject_changes(changes, self.options.max_files):
            raise rejected
        return changes

    def _judge(self, end: _End, judged: dict[Change, FileChange]) -> None:
        for change in end.changes:
            if change not in judged:
                judged[change] = file_change(self.texts, change)
        files = [judged[change] for change in end.changes]
        if rule := reject_texts(files):
            raise Rejected(rule, len(files))
        end.score, end.parts = score(files, end.messages)
        if end.score < self.options.min_score:
            raise Rejected("score", end.score, self.options.min_score)

    def _triplet(self, start: Commit, percentile: float, end: _End) -> Record:
        old, new = entries(self.texts, end.changes)
        context = self.context.of(start.id, end.changes, old, new)
        try:
            raw = self.repository.diff(start.id, end.commit.id)
        except MissingObject as error:
            raise Rejected("missing_object", error.what) from None
        patch, encoding = verified_patch(raw, old, new, context)
        return {
            "id": f"{self.name}@{start.id[:12]}..{end.commit.id[:12]}",
            "repo": self.name,
            "old": {"commit": start.id, "files": old + context},
            "patch": patch,
            "new": {"commit": end.commit.id, "files": new + context},
            "messages": [impersonal(message) for message in end.messages],
            "metadata": {
                "percentile": round(percentile, 4),
                "commits": self.section.line.commits,
                "time": end.commit.time,
                "state": self.options.context.state,
                "context_files": len(context),  # the last of both lists: the patch does not touch them
                "patch_encoding": encoding,
                "binaries": len({file["path"] for file in old + new if file["text"] is None}),
                "score": end.score,
                "score_parts": end.parts,
            },
        }

    def _dropped(
        self, start: Commit, end: Commit, rejected: Rejected, parts: dict[str, float] | None = None
    ) -> Dropped:
        record = {
            "id": f"{self.name}@{start.id[:12]}..{end.id[:12]}",
            "repo": self.name,
            "old": {"commit": start.id},
            "new": {"commit": end.id},
            "subject": subject_and_body(end.message[:10_000])[0][:1000],
        }
        if parts:
            record["score_parts"] = parts
        return Dropped(record, f"triplets.{rejected.rule}", rejected.value, rejected.threshold)
