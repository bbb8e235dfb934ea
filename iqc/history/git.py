"""Reading a Git repository that nobody vouches for: one `git log`, one `git cat-file`, and no setting of its own.

A repository's configuration can make Git run programs (signature checkers, file-system monitors, external diffs,
fetches of absent objects), so it is not read: Git works in an empty repository made for the occasion, with the object
store of the real one. What is asked of the real one, by `git rev-parse`, is only where it is and what its HEAD names.
For the same reason attributes, replaced objects and grafts have no say.

Nothing here grows with the length of a history; what Git itself holds of one while it lists it is a few hundred bytes
a commit. An object that is absent or damaged costs what needs it: a commit has `damage`, a blob or diff an error.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from iqc.errors import IqcError
from iqc.history.log import LOG, Change, Commit, TreeEntry, changes, commits, tree_entries

_ID = re.compile("[0-9a-f]{40,64}")
_ABSENT = re.compile(
    r"unable to (?:read|find|parse|stream|get)|could not (?:parse|get|read)|cannot (?:read|be read)|bad (?:object|tree)"
    r"|missing|corrupt|inflate|too-short tree|malformed|empty filename in tree",
    re.IGNORECASE,
)
_LOOK_SECONDS = 30
_END = b"\nend\n"  # behind a diff; in one, a line starts with a sign or a word of Git's
_BLOBS_AHEAD = 256  # what is asked of `cat-file` at once: it reads all requests before it answers
_DIFFS_AHEAD = 24  # `diff-tree` answers while it reads: its requests must fit into a pipe, 4096 bytes at the least
_DIFF_BYTES = 1 << 26  # of a diff that is held in memory; no change of so much is one that somebody wrote
_DAMAGED_IN_A_ROW = 16  # commits; each costs a process, and a repository without trees would cost one a commit


class MissingObject(IqcError):
    """A commit, tree or blob that the repository names and does not hold (a partial clone, or damage)."""


def environment(home: Path) -> dict[str, str]:
    """The environment of every Git process: no settings of the user or the system, no network, no prompts."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",  # older versions know no GIT_NO_LAZY_FETCH: then no transport is allowed
    }


_DIFF = ["--stdin", "--no-commit-id", "-r", "-p", "--full-index", "-M", "--no-color", "--no-ext-diff", "--no-textconv"]
_DIFF += ["--src-prefix=a/", "--dst-prefix=b/"]


class Repository:
    """A repository opened for reading; a context manager, because it owns processes and a scratch directory.

    `head` is the commit that `revision` names. Errors by name: not a repository, no such commit, shallow (its life has
    no beginning) unless `shallow` is allowed, Git not installed.
    """

    def __init__(self, path: str | os.PathLike[str], revision: str = "HEAD", *, shallow: bool = False):
        self.path = Path(path)
        with contextlib.ExitStack() as opening:
            scratch = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="iqc-git-")))
            self._env = environment(scratch)
            self._errors = opening.enter_context(tempfile.TemporaryFile())
            self.head, self.hash, objects = self._look(revision, shallow)
            self._isolate(scratch, objects)
            self._stack = opening.pop_all()
        self._blobs: subprocess.Popen[bytes] | None = None  # started when first asked
        self._diffs: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Repository":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _look(self, revision: str, may_be_shallow: bool) -> tuple[str, str, Path]:
        """The commit, the hash function and the object store of the real repository."""
        inside = self.path / ".git"
        place = inside if inside.exists() or not (self.path / "objects").is_dir() else self.path
        answer = self._rev_parse(place, "--is-shallow-repository", "--show-object-format", "--git-path", "objects")
        if answer.returncode or not place.exists():
            said = answer.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
            raise IqcError(f"{self.path} is not a Git repository: {said}", remedy="give the directory of a clone")
        shallow, kind, objects = os.fsdecode(answer.stdout).rstrip("\n").split("\n", 2)
        if shallow == "true" and not may_be_shallow:
            raise IqcError(
                f"{self.path} is a shallow clone: its history is cut", remedy="complete it with git fetch --unshallow"
            )
        return self._commit(place, revision), kind, Path(objects).absolute()

    def _commit(self, place: Path, revision: str) -> str:
        """The id of the commit that a revision names: first what it names, then the commit of that (of a tag)."""
        found, said = revision, ""
        for suffix in ("", "^0"):
            if revision.isprintable():
                answer = self._rev_parse(place, "--verify", "--quiet", "--end-of-options", f"{found}{suffix}")
                found, said = answer.stdout.decode().strip(), answer.stderr.decode(errors="replace").strip()
            if not _ID.fullmatch(found):  # `^HEAD` is answered with `^` and an id
                raise IqcError(
                    f"{self.path} has no commit at {revision if revision.isprintable() else ascii(revision)}: "
                    f"{said or 'no such name, or no commit yet'}",
                    remedy="give a repository whose HEAD is a branch with commits, or the name of a commit that it has",
                )
        return found

    def _rev_parse(self, place: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """The one command that reads the repository's configuration, which may name a file that never ends."""
        command = ["git", f"--git-dir={place}", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
        command += ["rev-parse", *arguments]
        try:
            return subprocess.run(
                command, env=self._env, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LOOK_SECONDS
            )
        except FileNotFoundError:
            raise IqcError("git is not installed", remedy="install git 2.36 or later") from None
        except subprocess.TimeoutExpired:
            raise IqcError(
                f"{self.path}: git does not answer within {_LOOK_SECONDS} s", remedy="does its config include a pipe?"
            ) from None

    def _isolate(self, scratch: Path, objects: Path) -> None:
        """The smallest directory that Git takes for a bare repository, reading the real object store."""
        extension = f"[extensions]\n\tobjectFormat = {self.hash}\n" if self.hash != "sha1" else ""
        version = 1 if extension else 0
        (scratch / "config").write_text(f"[core]\n\trepositoryFormatVersion = {version}\n\tbare = true\n{extension}")
        (scratch / "HEAD").write_text("ref: refs/heads/none\n")
        (scratch / "refs").mkdir()
        self._env |= {"GIT_DIR": str(scratch), "GIT_OBJECT_DIRECTORY": str(objects)}

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["git", *arguments],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=1 << 16,
        )
        self._stack.callback(_stop, process)
        return process

    def _failed(self, process: subprocess.Popen[bytes], doing: str) -> IqcError:
        process.kill()
        process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = lines[-1].removeprefix("fatal: ") if lines else ""
        kind = MissingObject if _ABSENT.search(said) else IqcError
        return kind(
            f"git cannot {doing} in {self.path}: {said or 'it ended early'}",
            remedy="clone it again without --filter, or check it with git fsck",
        )

    def count(self) -> int:
        """How many commits the first-parent line of HEAD has."""
        (number,) = self._lines("rev-list", "--count", "--first-parent", self.head)
        return int(number)

    def line(self, newest_first: bool = False) -> Iterator[tuple[str, int]]:
        """Id and time of HEAD and its first parents, oldest first."""
        order = [] if newest_first else ["--reverse"]
        for row in self._lines("rev-list", "--first-parent", "--timestamp", *order, self.head):
            time, oid = row.split()
            yield oid, int(time)

    def _lines(self, *arguments: str) -> Iterator[str]:
        process = self._start(*arguments, "--")
        for row in _pipe(process.stdout):
            yield row.decode().rstrip("\n")
        if process.wait():
            raise self._failed(process, "list the commits")

    def log(self, last: str, count: int | None = None) -> Iterator[Commit]:
        """The `count` commits of a first-parent line that end with `last`, oldest first; None: from the root on.

        A commit whose trees cannot be read comes with its damage. MissingObject when too many in a row are like that.
        """
        left = self.count() if count is None else count
        in_a_row = 0
        while left:
            limits = ["--first-parent", "--reverse", f"--max-count={left}", last, "--"]
            process = self._start("log", *LOG, *limits)
            for commit in commits(_pipe(process.stdout)):
                left, in_a_row = left - 1, 0
                yield commit
            if not process.wait():
                return
            error = self._failed(process, "read the history")
            in_a_row += 1
            if not isinstance(error, MissingObject) or not left or in_a_row > _DAMAGED_IN_A_ROW:
                raise error
            # Git went as far as it could: the next commit is the one that it could not compare.
            flags = [flag for flag in LOG if flag != "--raw"]  # with it, even --no-patch reads trees
            process = self._start(
                "log", *flags, "--no-patch", "--first-parent", "--max-count=1", f"--skip={left - 1}", last, "--"
            )
            for commit in commits(_pipe(process.stdout)):
                left -= 1
                yield replace(commit, damage=error.what)
            if process.wait():
                raise self._failed(process, "read the history")

    def blob(self, oid: str, limit: int) -> bytes | int:
        """The bytes of a blob, or its size when that is above `limit` bytes; MissingObject when it is not there."""
        (found,) = self.blobs([oid], limit)
        if isinstance(found, MissingObject):
            raise found
        return found

    def blobs(self, oids: Sequence[str], limit: int) -> Iterator[bytes | int | MissingObject]:
        """For each id, in order, what `blob` gives, or its error. A blob above the limit is not read at all."""
        for start in range(0, len(oids), _BLOBS_AHEAD):
            some = oids[start : start + _BLOBS_AHEAD]
            sizes = list(self.sizes(some))
            wanted = self._ask("contents", [oid for oid, size in zip(some, sizes) if _readable(size, limit)])
            for size in sizes:
                yield next(wanted) if _readable(size, limit) else size

    def sizes(self, oids: Sequence[str]) -> Iterator[int | MissingObject]:
        """For each id, in order, the bytes that the object has, or its error; nothing of it is read."""
        for found in self._ask("info", oids):
            assert not isinstance(found, bytes)
            yield found

    def _ask(self, what: str, oids: Sequence[str]) -> Iterator[bytes | int | MissingObject]:
        """The answers to one command of `cat-file --batch-command` about each object."""
        while oids:
            if self._blobs is None:
                self._blobs = self._start("cat-file", "--batch-command", "--buffer")
            into, out = _pipe(self._blobs.stdin), _pipe(self._blobs.stdout)
            with contextlib.suppress(BrokenPipeError):
                into.write("".join(f"{what} {oid}\n" for oid in oids).encode() + b"flush\n")
                into.flush()
            done = 0
            try:
                for oid in oids:
                    answer = self._answer(oid, out, what)
                    if answer is None:
                        break
                    done += 1
                    yield answer
            finally:
                if done < len(oids):  # it died, or nobody listens any more: what it still says is for nobody
                    failed, self._blobs = self._blobs, None
                    error = self._failed(failed, f"read {oids[done]}")
            if done < len(oids):
                yield MissingObject(error.what, remedy=error.remedy)
                done += 1
            oids = oids[done:]

    def _answer(self, oid: str, out: IO[bytes], what: str) -> bytes | int | MissingObject | None:
        """One answer of `cat-file`: a size, the bytes, or that it is not there; None when it gives none."""
        header = out.readline().split()
        if header[1:] == [b"missing"]:
            return MissingObject(f"{oid} is missing in {self.path}", remedy="clone it again without --filter")
        if len(header) != 3:
            return None
        size = int(header[2])
        if what == "info":
            return size
        data = out.read(size + 1)
        return data[:-1] if len(data) == size + 1 else None

    def diff(self, old: str, new: str) -> bytes:
        """The unified diff of two commits: three lines of context, renames found, full blob ids, paths unquoted."""
        (found,) = self.diffs([(old, new)])
        if isinstance(found, int):
            raise MissingObject(f"the diff of {old} and {new} has more than {found} bytes", remedy="leave it out")
        if isinstance(found, MissingObject):
            raise found
        return found

    def diffs(self, pairs: Sequence[tuple[str, str]]) -> Iterator[bytes | int | MissingObject]:
        """For each (old, new), in order, what `diff` gives, or its error; a few are asked for ahead.

        Of a diff of more than _DIFF_BYTES, which is not read to its end, a number of bytes that it has.
        """
        pairs = list(pairs)
        while pairs:
            done = 0
            try:
                for found in self._compare(pairs[:_DIFFS_AHEAD]):
                    done += 1
                    yield found
                    if not isinstance(found, bytes):
                        break
            finally:
                if done < min(len(pairs), _DIFFS_AHEAD) and self._diffs is not None:
                    ended, self._diffs = self._diffs, None
                    _stop(ended)
            pairs = pairs[done:]

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> Iterator[bytes | int | MissingObject]:
        """Git answers a line that names no object by repeating it, at once: that is how the end of a diff is known."""
        if self._diffs is None:
            self._diffs = self._start("-c", "core.quotePath=false", "diff-tree", *_DIFF)
        into, out = _pipe(self._diffs.stdin), _pipe(self._diffs.stdout)
        with contextlib.suppress(BrokenPipeError):
            into.write("".join(f"{new} {old}\nend\n" for old, new in pairs).encode())
            into.flush()
        data = bytearray(b"\n")
        for old, new in pairs:
            searched = 0
            while (end := data.find(_END, searched)) < 0:
                searched = max(0, len(data) - len(_END))
                if not (chunk := os.read(out.fileno(), 1 << 16)):
                    failed, self._diffs = self._diffs, None
                    error = self._failed(failed, f"compare {old} and {new}")
                    yield MissingObject(error.what, remedy=error.remedy)
                    return
                data += chunk
                if len(data) > _DIFF_BYTES:
                    ended, self._diffs = self._diffs, None
                    _stop(ended)
                    yield len(data)
                    return
            yield bytes(data[1 : end + 1])
            del data[: end + len(_END) - 1]

    def changes(self, old: str, new: str) -> tuple[Change, ...]:
        """What differs between two commits, without renames; MissingObject when one is not there."""
        process = self._start("diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", old, new, "--")
        found = tuple(changes(_pipe(process.stdout)))
        if process.wait():
            raise self._failed(process, f"compare {old} and {new}")
        return found

    def merge_base(self, one: str, other: str) -> str:
        """The commit from which two commits come; IqcError when there is none, or they are no commits."""
        process = self._start("merge-base", one, other)
        found = _pipe(process.stdout).read().decode().strip()
        if process.wait():
            raise self._failed(process, f"find where {one} and {other} part")
        return found

    def tree(self, commit: str) -> Iterator[TreeEntry]:
        """Every file, link and submodule of a commit, by path; MissingObject when a tree is not there."""
        process = self._start("ls-tree", "-r", "-l", "-z", "--full-tree", commit)
        yield from tree_entries(_pipe(process.stdout))
        if process.wait():
            raise self._failed(process, f"list {commit}")


def _readable(size: bytes | int | MissingObject, limit: int) -> bool:
    return isinstance(size, int) and size <= limit


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    _pipe(process.stdin).close()
    _pipe(process.stdout).close()
