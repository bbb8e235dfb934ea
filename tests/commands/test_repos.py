"""iqc repos as a command: the same bytes whatever runs it, resumed shards, ranks, cuts, damaged repositories."""

import json
import os
import shutil
import subprocess
import sys

import pytest

FILES = {
    "README.md": "# A project\n",
    "conf.yaml": "a: 1\n",
    "data.json": '{"a": [1, 2]}\n',
    "pack/__init__.py": "from .core import run\n",
    "pack/core.py": "from . import util\n\n\ndef run():\n    return util.help()\n",
    "pack/util.py": "def help():\n    return 1\n",
    "main.py": "import pack\n\npack.run()\n",
    "web/a.ts": 'import { b } from "./b";\n',
    "web/b.ts": "export const b = 1;\n",
    "picture.png": "\0PNG",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three repositories: two trees and a Git repository of two commits."""
    place = tmp_path_factory.mktemp("repos")
    for name in ("one", "two", "three"):
        for path, text in FILES.items():
            file = place / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text if path != "main.py" else text + f"# {name}\n")
    person = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {"PATH": os.environ["PATH"], "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"} | person

    def git(*args):
        return subprocess.run(["git", *args], cwd=place / "three", env=env, check=True, capture_output=True).stdout

    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    (place / "three/new.py").write_text("import main\n")
    git("add", "-A")
    git("commit", "-q", "-m", "second")
    return place


def all_of(place):
    return [place / name for name in ("one", "two", "three")]


@pytest.mark.parametrize("options", [(), ("--as", "files"), ("--max-bytes", "700", "--long", "split")], ids=str)
def test_jobs_shards_pipes_and_hash_seeds_do_not_change_a_record(server, place, tmp_path, read, environment, options):
    command = ["repos", *all_of(place), *options]
    made = {}
    for jobs in (1, 2):
        out = [tmp_path / f"{jobs}.zst", tmp_path / f"{jobs}.explained"]
        server.make(*command, "-j", jobs, "-o", out[0], "--explain", out[1])
        made[jobs] = [path.read_bytes() for path in out]
    assert made[1] == made[2]
    for seed in ("1", "2"):
        env = environment | {"PYTHONHASHSEED": seed}
        run = [sys.executable, "-m", "iqc", *map(str, command), "-q"]
        assert subprocess.run(run, env=env, capture_output=True, check=True).stdout == made[1][0]
    server.make(*command, "-o", f"{tmp_path}/shards/", "--shard-mib", 1)
    assert read(tmp_path / "shards") == read(tmp_path / "1.zst") != []


def test_finished_shards_are_kept_until_a_repository_changes(server, place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    command = ["repos", *all_of(tmp_path / "copy"), "-o", f"{tmp_path}/out/"]
    server.make(*command)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    server.make(*command)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")} != {}
    (tmp_path / "copy/one/main.py").write_text("import os\n")
    done = server.run(*command)
    assert done.returncode == 1 and "a shard of another run" in done.stderr


def test_a_change_in_a_large_file_is_noticed(server, tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big/a.txt").write_text("x=1\n" * 800_000)
    command = ["repos", tmp_path / "big", "--max-file-bytes", 10_000_000, "-o", f"{tmp_path}/out/"]
    server.make(*command)
    (tmp_path / "big/a.txt").write_text("y=2\n" * 800_000)
    assert server.run(*command).returncode == 1


def test_names_that_no_record_can_carry(server, tmp_path):
    for name in (b"not utf \xff", b"a\nb"):
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
        with open(os.path.join(os.fsencode(tmp_path), name, b"a.py"), "w") as file:
            file.write("x")
        place = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
        done = server.run("repos", place)
        assert done.returncode == 2 and "give one as NAME=DIR" in done.stderr
        assert b'"repo":"good"' in server.make("repos", f"good={place}", "--plain").stdout
    assert server.run("repos", f"a\nb={tmp_path}").returncode == 2


def test_records(server, place, tmp_path, read):
    out = [tmp_path / name for name in ("out", "explained", "summary")]
    server.make("repos", *all_of(place), "-o", out[0], "--explain", out[1], "--summary", out[2])
    records = read(out[0])
    assert [record["repo"] for record in records] == ["one", "two", "three"]
    for record in records:
        paths = [file["path"] for file in record["files"]]
        code = ["pack/util.py", "pack/core.py", "pack/__init__.py", "main.py"]
        assert [path for path in paths if path in code] == code
        assert paths.index("web/b.ts") < paths.index("web/a.ts") and "picture.png" not in paths
    assert "new.py" in [file["path"] for file in records[2]["files"]]
    assert records[0]["commit"] is None and len(records[2]["commit"]) == 40
    assert {entry["dropped"]["rule"] for entry in read(out[1])} == {"binary"}
    summary = json.loads(out[2].read_text())
    assert summary["read"] == summary["kept"] == 3 and summary["dropped"] == {"binary": 3}


def test_names_and_commits(server, place, read, tmp_path):
    server.make("repos", f"a/b={place / 'three'}", "--commit", "HEAD~1", "-o", tmp_path / "out")
    (record,) = read(tmp_path / "out")
    assert record["repo"] == "a/b" and record["id"] == f"a/b@{record['commit'][:12]}"
    assert "new.py" not in [file["path"] for file in record["files"]]
    done = server.run("repos", place / "one", place / "two" / ".." / "one")
    assert done.returncode == 2 and "both one" in done.stderr


def test_the_best_come_first_and_the_worst_are_dropped(server, place, read, tmp_path):
    rows = [{"repo": "two", "path": "main.py", "metadata": {"depth": 3}}, {"repo": "one", "path": "x", "depth": 2}]
    (tmp_path / "scores").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["repos", *all_of(place), "--quality", tmp_path / "scores", "--quality-field", "depth"]
    server.make(*command, "-o", tmp_path / "out")
    records = read(tmp_path / "out")
    assert [(record["repo"], record["metadata"].get("quality")) for record in records] == [
        ("two", 3.0),
        ("one", 2.0),
        ("three", None),
    ]
    server.make(*command, "--min-quality", 2.5, "-o", tmp_path / "best", "--explain", tmp_path / "explained")
    assert [record["repo"] for record in read(tmp_path / "best")] == ["two"]
    dropped = {
        entry["repo"]: (entry["dropped"]["rule"], entry["dropped"]["value"]) for entry in read(tmp_path / "explained")
    }
    assert dropped.pop("one") == ("quality", 2.0) and dropped.pop("three") == ("quality", None)


def test_a_damaged_repository_does_not_end_the_run(server, place, read, tmp_path):
    shutil.copytree(place / "three", tmp_path / "damaged")
    for file in (tmp_path / "damaged/.git/objects").rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            file.write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    inputs = [place / "one", tmp_path / "damaged", tmp_path / "empty", place / "two"]
    done = server.run("repos", *inputs, "-o", tmp_path / "out")
    assert done.returncode == 1 and "damaged" in done.stderr and not (tmp_path / "out").exists()
    server.make("repos", *inputs, "--on-error", "skip", "-o", tmp_path / "out", "--summary", tmp_path / "summary")
    assert [record["repo"] for record in read(tmp_path / "out")] == ["one", "two"]
    summary = json.loads((tmp_path / "summary").read_text())
    assert summary["skipped"] == 1 and summary["dropped"]["no_files"] == 1


@pytest.mark.parametrize(
    "options, said",
    [
        ((), "no repository"),
        (("/no/such/place",), "no directory"),
        (("{one}", "--max-tokens", "9"), "go together"),
        (("{one}", "--min-quality", "1"), "without scores"),
        (("{one}", "--as", "files", "--long", "split"), "--as files"),
        (("{one}", "--max-bytes", "99999999"), "max-bytes"),
        (("{three}", "--commit", "nothing"), "no commit at nothing"),
        (("{one}", "--quality", "/no/such/file"), "no such file"),
    ],
)
def test_wrong_use_is_told(server, place, options, said):
    done = server.run("repos", *(option.format(one=place / "one", three=place / "three") for option in options))
    assert done.returncode in (1, 2) and said in done.stderr
