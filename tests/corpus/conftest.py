"""Repositories made by real Git, with no setting from the outside."""

import os
import subprocess
from pathlib import Path

import pytest


class Git:
    """A Git repository under a directory; calling it runs a command of Git in it."""

    def __init__(self, place: Path, home: Path):
        self.place = place
        person = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        dates = {f"GIT_{who}_DATE": "1700000000 +0000" for who in ("AUTHOR", "COMMITTER")}
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"} | person | dates
        place.mkdir(parents=True)
        self("init", "-q", "-b", "main")

    def __call__(self, *arguments, stdin: bytes = b"") -> bytes:
        done = subprocess.run(["git", *arguments], cwd=self.place, env=self.env, input=stdin, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def write(self, path: str, data: bytes) -> None:
        file = self.place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def commit(self, files: dict[str, bytes]) -> str:
        for path, data in files.items():
            self.write(path, data)
        self("add", "-A", "-f")
        self("commit", "-q", "--allow-empty", "-m", "a change")
        return self("rev-parse", "HEAD").decode().strip()

    def tree(self, entries: list[tuple[str, bytes, bytes]]) -> str:
        """A commit of a tree object with exactly these (mode, name, blob), which no index would take."""
        raw = b""
        for mode, name, data in entries:
            blob = self("hash-object", "-w", "--stdin", stdin=data).decode().strip()
            raw += mode.encode() + b" " + name + b"\0" + bytes.fromhex(blob)
        tree = self("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=raw).decode().strip()
        return self("commit-tree", tree, "-m", "made by hand").decode().strip()


@pytest.fixture
def git(tmp_path) -> Git:
    (tmp_path / "home").mkdir()
    return Git(tmp_path / "git" / "demo", tmp_path / "home")
