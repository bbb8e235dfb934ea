"""Reading a Git repository that nobody vouches for: one `git log`, one `git cat-file`, and no setting of its own.

A repository's configuration can make Git run programs (signature checkers, file-system monitors, external diffs,
fetches of absent objects), so it is not read: Git works in an empty repository made for the occasion, with the object
store of the real one. What is asked of the real one, by `git rev-parse`, is only where it is and what its HEAD names.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from iqc.errors import IqcError

SUBMODULE = "160000"  # the mode of a tree entry that is a commit of another repository


_ABSENT = re.compile(r"unable to read|bad object|missing|could not (?:parse|get|read)|Could not read|unable to find")


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


@dataclass(frozen=True, slots=True)
class Change:
    """One path that a commit changed against its first parent. A side that does not exist has mode 000000."""

    path: bytes
    old_mode: str
    new_mode: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Commit:
    """`time` is the committer's, in seconds since 1970; `changes` are against the first parent, without renames."""

    id: str
    parents: tuple[str, ...]
    time: int
    message: str
    changes: tuple[Change, ...]


class Repository:
    """A repository opened for reading; a context manager, because it owns processes and a scratch directory.

    Errors by name: not a repository, no commits, shallow (its life has no beginning), Git not installed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with contextlib.ExitStack() as opening:
            scratch = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="iqc-git-")))
            self._env = environment(scratch)
            self._errors = opening.enter_context(tempfile.TemporaryFile())
            self.head, self.hash, objects = self._look()
            self._isolate(scratch, objects)
            self._stack = opening.pop_all()
        self._blobs: subprocess.Popen[bytes] | None = None  # started when first asked
        self._diffs: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Repository":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _look(self) -> tuple[str, str, Path]:
        """HEAD's commit, the hash function and the object store of the real repository."""
        bare = self.path / "objects"
        place = self.path if bare.is_dir() else self.path / ".git"
        command = ["git", f"--git-dir={place}", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
        ask = ["rev-parse", "--is-shallow-repository", "--show-object-format", "--git-path", "objects"]
        try:
            answer = subprocess.run([*command, *ask], env=self._env, capture_output=True, stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            raise IqcError("git is not installed", remedy="install git 2.36 or later") from None
        if answer.returncode or not place.exists():
            said = answer.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
            raise IqcError(f"{self.path} is not a Git repository: {said}", remedy="give the directory of a clone")
        shallow, kind, objects = os.fsdecode(answer.stdout).rstrip("\n").split("\n", 2)
        if shallow == "true":
            raise IqcError(
                f"{self.path} is a shallow clone: its history is cut", remedy="complete it with git fetch --unshallow"
            )
        ask = ["rev-parse", "--verify", "--quiet", "--end-of-options", "HEAD^0"]
        answer = subprocess.run([*command, *ask], env=self._env, capture_output=True, stdin=subprocess.DEVNULL)
        if answer.returncode:
            raise IqcError(
                f"{self.path} has no commit at HEAD: {answer.stderr.decode(errors='replace').strip() or 'it is empty'}",
                remedy="give a repository whose HEAD is a branch with commits",
            )
        return answer.stdout.decode().strip(), kind, Path(objects).absolute()

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
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = lines[-1].removeprefix("fatal: ") if lines else ""
        kind = MissingObject if _ABSENT.search(said) else IqcError
        return kind(
            f"git cannot {doing} in {self.path}: {said or 'it ended early'}",
            remedy="clone it again without --filter, or check it with git fsck",
        )

    def first_parents(self) -> list[str]:
        """The ids of HEAD and its first parents, oldest first."""
        process = self._start("rev-list", "--first-parent", "--reverse", self.head)
        ids = _pipe(process.stdout).read().decode().split()
        if process.wait():
            raise self._failed(process, "list the commits")
        return ids

    def log(self, after: str | None, last: str) -> Iterator[Commit]:
        """Commits of the first-parent line, oldest first, from the one behind `after` (None: the first) to `last`."""
        fields = "--format=%x01%H%x00%P%x00%ct%x00%B"
        arguments = ["log", "-z", "--first-parent", "--reverse", "--raw", "--no-abbrev", "--no-renames"]
        arguments += ["--diff-merges=first-parent", "--encoding=UTF-8", "--no-show-signature", fields, last]
        process = self._start(*arguments, *([f"^{after}"] if after else []), "--")
        yield from _commits(_pipe(process.stdout))
        if process.wait():
            raise self._failed(process, "read the history")

    def blob(self, oid: str, limit: int) -> bytes | int:
        """The bytes of a blob, or its size when that is above `limit` bytes; MissingObject when it is not there."""
        if self._blobs is None:
            self._blobs = self._start("cat-file", "--batch")
        into, out = _pipe(self._blobs.stdin), _pipe(self._blobs.stdout)
        try:
            into.write(f"{oid}\n".encode())
            into.flush()
        except BrokenPipeError:
            raise self._failed(self._blobs, f"read {oid}") from None
        header = out.readline().split()
        if len(header) != 3:
            if header[1:] == [b"missing"]:
                raise MissingObject(f"{oid} is missing in {self.path}", remedy="clone it again without --filter")
            failed, self._blobs = self._blobs, None
            raise self._failed(failed, f"read {oid}")
        size = int(header[2])
        if size <= limit:
            return out.read(size + 1)[:-1]
        for start in range(0, size + 1, 1 << 20):
            out.read(min(1 << 20, size + 1 - start))
        return size

    def diff(self, old: str, new: str) -> bytes:
        """The unified diff of two commits: three lines of context, renames found, full blob ids, paths unquoted.

        Git answers a line that names no object by repeating it, at once: that is how the end of a diff is known.
        """
        if self._diffs is None:
            flags = ["--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/", "-M"]
            self._diffs = self._start(
                *("-c", "core.quotePath=false", "diff-tree", "--stdin", "--no-commit-id", "-r", "-p", "--full-index"),
                *flags,
            )
        into, out = _pipe(self._diffs.stdin), _pipe(self._diffs.stdout)
        lines = []
        with contextlib.suppress(BrokenPipeError):
            into.write(f"{new} {old}\nend\n".encode())
            into.flush()
        while (line := out.readline()) != b"end\n":
            if not line:
                failed, self._diffs = self._diffs, None
                raise self._failed(failed, f"compare {old} and {new}")
            lines.append(line)
        return b"".join(lines)


def _commits(stream: IO[bytes]) -> Iterator[Commit]:
    """Fields end with NUL: id, parents, time, message, then for each change its description and its path."""
    fields = _fields(stream)
    head: list[bytes] | None = None
    changes: list[Change] = []
    for token in fields:
        if token.startswith(b"\x01"):
            if head:
                yield _commit(head, changes)
            head, changes = [token[1:], next(fields), next(fields), next(fields)], []
        else:
            old_mode, new_mode, old, new, _ = token.lstrip(b"\n:").decode().split(" ")
            changes.append(Change(next(fields), old_mode, new_mode, old, new))
    if head:
        yield _commit(head, changes)


def _commit(head: list[bytes], changes: list[Change]) -> Commit:
    name, parents, time, message = (part.decode(errors="replace") for part in head)
    return Commit(name, tuple(parents.split()), int(time), message.strip(), tuple(changes))


def _fields(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while chunk := stream.read(1 << 16):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    _pipe(process.stdin).close()
    _pipe(process.stdout).close()
