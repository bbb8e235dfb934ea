"""Triplets (R_old, P, R_new): a mature state of a repository, a representative change, and the state after it.

R_old is drawn from the commits between the 40th and the 80th percentile of the project's life, by rank on the
first-parent line: the project has its shape and is still being built (IQuest-Coder-V1 report, section 3.1). R_new is
the best of the next commits by the score of `score.py`, so P may span several commits. Both states hold the touched
files; a binary file among them has `text: null` and no part in the patch.

Every patch is applied to R_old before a triplet leaves, and must give R_new to the byte.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, floor
from os import PathLike
from pathlib import Path

from iqc.errors import IqcError, UsageError
from iqc.history.git import SUBMODULE, Change, Commit, MissingObject, Repository
from iqc.history.score import FileChange, reject_message, reject_paths, reject_texts, score
from iqc.history.texts import Rejected, Texts, verified_patch
from iqc.streams.stage import Dropped, Record, rng

_ABSENT = "000000"


@dataclass(frozen=True, slots=True)
class Options:
    """What is mined.

    name            the repository's name in records; its directory's name when empty
    window          percentiles, as shares, between which R_old lies
    density         triplets wanted for 100 commits of the first-parent line; at least one is looked for
    horizon         commits after R_old among which R_new is searched
    min_score       a best end below this is not taken
    max_files       files that a change may touch
    max_file_bytes  size of a touched file, on either side
    encodings       tried in order, strictly, on a file that declares none
    """

    name: str = ""
    window: tuple[float, float] = (0.4, 0.8)
    density: float = 2.0
    horizon: int = 8
    min_score: float = 0.5
    max_files: int = 30
    max_file_bytes: int = 500_000
    encodings: tuple[str, ...] = ("utf-8",)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise UsageError(f"the window of percentiles is {self.window}", remedy="give two rising shares from 0 to 1")
        if self.horizon < 1 or self.density <= 0:
            raise UsageError(
                f"horizon {self.horizon}, density {self.density}",
                remedy="give a horizon of 1 or more, a density above 0",
            )


@dataclass(slots=True)
class _Candidate:
    end: Commit
    score: float
    parts: dict[str, float]
    old: list[Record]
    new: list[Record]
    messages: list[str]


def triplets(path: str | PathLike[str], options: Options = Options()) -> Iterator[Record | Dropped]:
    """The triplets of one repository, oldest first, without overlap, with the rejected candidates between them.

    IqcError by name: not a repository, no commits, shallow, fewer than three commits on the first-parent line.
    """
    with Repository(path) as repository:
        line = repository.first_parents()
        if len(line) < 3:
            count = "one commit" if len(line) == 1 else f"{len(line)} commits"
            raise IqcError(f"{path} has {count}: no evolution to learn from", remedy="give a repository with 3 or more")
        yield from _Miner(repository, line, options).mine()


@dataclass(slots=True)
class _Miner:
    repository: Repository
    line: list[str]
    options: Options
    name: str = ""
    texts: Texts = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.options.name or Path(self.repository.path).resolve().name.removesuffix(".git")
        self.texts = Texts(self.repository, self.options.max_file_bytes, self.options.encodings)

    def mine(self) -> Iterator[Record | Dropped]:
        """The window is cut into as many stretches as triplets are wanted; a start is drawn in each, uniformly."""
        life = len(self.line) - 1
        first, last = ceil(self.options.window[0] * life), min(floor(self.options.window[1] * life), life - 1)
        if first > last:
            return
        wanted = max(1, min(round(self.options.density * len(self.line) / 100), last - first + 1))
        draw = rng(self.options.seed, "triplets", self.name)
        commits = list(self.repository.log(self.line[first], self.line[min(last + self.options.horizon, life)]))
        free = first  # a triplet may start where the one before it ended
        for k in range(wanted):
            low = first + (last - first + 1) * k // wanted
            high = first + (last - first + 1) * (k + 1) // wanted - 1
            start = draw.randint(low, high)  # drawn in any case, so that a stretch does not depend on the others
            start = max(start, free)
            if start > high:
                continue
            best = None
            for item in self._ends(start, commits[start - first : start - first + self.options.horizon]):
                if isinstance(item, Dropped):
                    yield item
                elif best is None or item.score > best.score:
                    best = item
            if best is None:
                continue
            try:
                yield self._triplet(start, best)
                free = self.line.index(best.end.id, start)
            except Rejected as rejected:
                yield self._dropped(start, best.end, rejected)

    def _ends(self, start: int, following: list[Commit]) -> Iterator[_Candidate | Dropped]:
        """The next commits as ends: the change from `start` to each is the sum of the commits' changes up to it."""
        total: dict[bytes, Change] = {}
        for k, commit in enumerate(following):
            for change in commit.changes:
                before = total.pop(change.path, change)
                if (before.old_mode, before.old) != (change.new_mode, change.new):
                    total[change.path] = Change(change.path, before.old_mode, change.new_mode, before.old, change.new)
            try:
                changes = [total[path] for path in sorted(total)]
                yield self._candidate(commit, changes, [item.message for item in following[: k + 1]])
            except Rejected as rejected:
                yield self._dropped(start, commit, rejected)

    def _candidate(self, end: Commit, changes: list[Change], messages: list[str]) -> _Candidate:
        if rule := reject_message(end.message, merge=len(end.parents) > 1):
            raise Rejected(rule, end.message.partition("\n")[0])
        if len(changes) > self.options.max_files:
            raise Rejected("files", len(changes), self.options.max_files)
        if any(SUBMODULE in (change.old_mode, change.new_mode) for change in changes):
            raise Rejected("submodule")
        try:
            paths = [change.path.decode() for change in changes]
        except UnicodeDecodeError as error:
            raise Rejected("path_encoding", repr(error.object)) from None
        if rule := reject_paths(paths):
            raise Rejected(rule, len(paths))
        old = [self.texts.entry(p, c.old_mode, c.old) for p, c in zip(paths, changes) if c.old_mode != _ABSENT]
        new = [self.texts.entry(p, c.new_mode, c.new) for p, c in zip(paths, changes) if c.new_mode != _ABSENT]
        before, after = {file["path"]: file for file in old}, {file["path"]: file for file in new}
        judged = []
        for path in paths:
            was, now = before.get(path), after.get(path)
            lang = (now or was or {})["lang"]
            judged.append(FileChange(path, was["text"] if was else None, now["text"] if now else None, lang))
        if rule := reject_texts(judged):
            raise Rejected(rule, len(paths))
        value, parts = score(judged, messages)
        if value < self.options.min_score:
            raise Rejected("score", value, self.options.min_score)
        return _Candidate(end, value, parts, old, new, messages)

    def _triplet(self, start: int, best: _Candidate) -> Record:
        old, new = self.line[start], best.end.id
        try:
            raw = self.repository.diff(old, new)
        except MissingObject as error:
            raise Rejected("missing_object", error.what) from None
        patch, encoding = verified_patch(raw, best.old, best.new)
        binary = {file["path"] for file in best.old + best.new if file["text"] is None}
        return {
            "id": f"{self.name}@{old[:12]}..{new[:12]}",
            "repo": self.name,
            "old": {"commit": old, "files": best.old},
            "patch": patch,
            "new": {"commit": new, "files": best.new},
            "messages": best.messages,
            "metadata": {
                "percentile": round(start / (len(self.line) - 1), 4),
                "commits": len(self.line),
                "time": best.end.time,
                "patch_encoding": encoding,
                "binaries": len(binary),
                "score": best.score,
                "score_parts": best.parts,
            },
        }

    def _dropped(self, start: int, end: Commit, rejected: Rejected) -> Dropped:
        old = self.line[start]
        record = {
            "id": f"{self.name}@{old[:12]}..{end.id[:12]}",
            "repo": self.name,
            "old": {"commit": old},
            "new": {"commit": end.id},
        }
        return Dropped(record, f"triplets.{rejected.rule}", rejected.value, rejected.threshold)
