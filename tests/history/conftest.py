"""Repositories made by real Git, with no setting from the outside, and records applied by real `git apply`."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from iqc.history.triplets import Options, triplets
from iqc.streams.stage import Dropped

ALL = {"window": (0.0, 1.0), "density": 100.0, "horizon": 1, "min_score": 0.0}  # nothing is left out by choice


class Work:
    """A working tree in which commits are made one after the other, a minute apart."""

    def __init__(self, place: Path, home: Path, object_format: str = "sha1"):
        self.place, self.count = place, 0
        home.mkdir(exist_ok=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org",
        }
        place.mkdir()
        self.git("init", "-q", "-b", "main", f"--object-format={object_format}")

    def git(self, *arguments, check=True, stdin=None):
        when = f"{1_700_000_000 + 60 * self.count} +0000"
        env = self.env | {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        done = subprocess.run(["git", *arguments], cwd=self.place, env=env, input=stdin or b"", capture_output=True)
        if check:
            assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def write(self, path, content):
        file = self.place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    def commit(self, message):
        self.count += 1
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").decode().strip()


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "repo", tmp_path / "home")


@pytest.fixture
def new_work(tmp_path):
    def make(name, **options):
        return Work(tmp_path / name, tmp_path / "home", **options)

    return make


@pytest.fixture(scope="session")
def everything():
    """Options of the miner of triplets that leave nothing out by choice."""
    return ALL


@pytest.fixture(scope="session")
def mine():
    """All triplets of a repository, and how many each rule dropped."""

    def of(place, **options):
        items = list(triplets(place, Options(**(ALL | options))))
        kept = [item for item in items if not isinstance(item, Dropped)]
        return kept, Counter(item.rule.removeprefix("triplets.") for item in items if isinstance(item, Dropped))

    return of


@pytest.fixture(scope="session")
def body():
    """The text of module k, with n functions."""
    return module_text


def module_text(k, n=30):
    return "".join(f"def f{k}_{i}(x):\n    return x + {i}\n\n\n" for i in range(n))


@pytest.fixture
def started(work):
    """A repository with two plain commits, so that every later one can be the end of a triplet."""
    for k in range(2):
        work.write(f"m{k}.py", module_text(k))
        work.commit(f"Add the module number {k}")
    return work


@pytest.fixture
def loose():
    """The file of an object that is in no pack, made writable."""

    def of(work, oid):
        path = work.place / ".git/objects" / oid[:2] / oid[2:]
        path.chmod(0o644)
        return path

    return of


@pytest.fixture
def git_apply(tmp_path):
    """Write R_old, run `git apply` on the patch, and return what then lies there: path -> (mode, bytes)."""
    count = 0

    def apply(record):
        nonlocal count
        count += 1
        place = tmp_path / f"apply{count}"
        place.mkdir()
        for file in record["old"]["files"]:
            if file["text"] is not None:
                path = place / file["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                data = file["text"].encode(file["encoding"])
                if file["mode"] == "120000":
                    path.symlink_to(os.fsdecode(data))
                else:
                    path.write_bytes(data)
                    path.chmod(0o755 if file["mode"] == "100755" else 0o644)
        patch = record["patch"].encode(record["metadata"]["patch_encoding"])
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        env["GIT_CEILING_DIRECTORIES"] = str(tmp_path)
        done = subprocess.run(["git", "apply", "-"], cwd=place, env=env, input=patch, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        found = {}
        for path in sorted(place.rglob("*")):
            name = str(path.relative_to(place))
            if path.is_symlink():
                found[name] = ("120000", os.fsencode(os.readlink(path)))
            elif path.is_file():
                found[name] = ("100755" if path.stat().st_mode & 0o100 else "100644", path.read_bytes())
        return found

    return apply


@pytest.fixture
def state():
    """A side of a record as `git_apply` returns it: text files only."""

    def of(side):
        return {
            file["path"]: (file["mode"], file["text"].encode(file["encoding"]))
            for file in side["files"]
            if file["text"] is not None
        }

    return of
