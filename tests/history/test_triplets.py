"""Triplets of repositories with everything in them: each applied by real Git, each refusal by its name."""

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from iqc.errors import IqcError
from iqc.history.build import build_history, life
from iqc.history.triplets import Options, triplets
from iqc.streams.stage import Dropped

STDLIB = Path(sysconfig.get_path("stdlib"))
MANY = {"window": (0.0, 1.0), "density": 100.0, "horizon": 1, "min_score": 0.0}


def split(items):
    items = list(items)
    return [i for i in items if not isinstance(i, Dropped)], [i for i in items if isinstance(i, Dropped)]


def body(k, n=30):
    return "".join(f"def f{k}_{i}(x):\n    return x + {i}\n\n\n" for i in range(n))


def test_a_made_life(tmp_path, git_apply, state):
    files = [(f"json/{path.name}", path.read_text(encoding="utf-8")) for path in sorted((STDLIB / "json").glob("*.py"))]
    build_history(tmp_path / "json.git", life(files, 80))
    kept, _ = split(triplets(tmp_path / "json.git", Options(density=8)))
    assert len(kept) >= 3
    end = 0.0
    for record in kept:
        assert git_apply(record) == state(record["new"]) != state(record["old"])
        assert record["repo"] == "json" and record["id"].startswith("json@")
        metadata = record["metadata"]
        assert max(0.4, end) <= metadata["percentile"] <= 0.8
        assert set(metadata["score_parts"]) == {"size", "code", "tests", "message"} and metadata["score"] >= 0.5
        end = metadata["percentile"] + (len(record["messages"]) - 0.01) / (metadata["commits"] - 1)
    assert kept == split(triplets(tmp_path / "json.git", Options(density=8)))[0]
    assert kept != split(triplets(tmp_path / "json.git", Options(density=8, seed=1)))[0]


def test_everything_that_can_be_applied(work, git_apply, state):
    work.write("a.py", body(0))
    work.commit("Add the first module of all")
    (work.place / "a.py").rename(work.place / "b c.py")
    work.commit("Move the module to another name")
    work.write("b c.py", body(0) + body(1).rstrip("\n"))
    work.write("crlf.py", body(2).replace("\n", "\r\n"))
    work.commit("Add a file with carriage returns")
    work.write("crlf.py", body(2).replace("\n", "\r\n") + "y = 1\r\nlast")
    work.write("bom.py", "\ufeffx = 1\n" + body(3))
    (work.place / "link").symlink_to("crlf.py")
    work.commit("Add a symbolic link and no final newline")
    work.write("pic.png", b"\x89PNG\0\0" + bytes(range(256)))
    work.write("crlf.py", body(2))
    (work.place / "link").unlink()
    work.write("link", "now a file\n")
    (work.place / "b c.py").chmod(0o755)
    work.commit("Add a picture beside the code")
    (work.place / "pic.png").rename(work.place / "picture.png")
    work.write("new/ü.py", body(4))
    (work.place / "bom.py").unlink()
    work.write("empty.py", "")
    work.commit("Move the picture and add a module")
    work.write("latin.py", "# -*- coding: latin-1 -*-\nname = '\xe9'\n".encode("latin-1") + body(5).encode())
    work.commit("Add a module in another encoding")
    work.write("latin.py", "# -*- coding: latin-1 -*-\nname = '\xe9\xe8'\n".encode("latin-1") + body(5).encode())
    work.commit("Change the module in another encoding")
    kept, dropped = split(triplets(work.place, Options(**MANY)))
    assert [item.rule for item in dropped] == []
    assert len(kept) == 7
    for record in kept:
        assert git_apply(record) == state(record["new"])
    assert "rename to b c.py" in kept[0]["patch"]
    assert any(file["mode"] == "120000" for file in kept[2]["new"]["files"])
    picture = next(file for file in kept[3]["new"]["files"] if file["path"] == "pic.png")
    assert (picture["text"], picture["encoding"]) == (None, None) and kept[3]["metadata"]["binaries"] == 1
    assert kept[4]["metadata"]["binaries"] == 2 and "pic" not in kept[4]["patch"]
    assert kept[6]["metadata"]["patch_encoding"] == "iso8859-1"
    whole = split(triplets(work.place, Options(**(MANY | {"horizon": 7, "density": 1}))))[0]
    for record in whole:
        assert git_apply(record) == state(record["new"])


@pytest.mark.parametrize(
    ("rule", "files", "message", "options"),
    [
        ("revert", {"a.py": body(1)}, 'Revert "Add a module"', {}),
        ("encoding", {"a.py": b"x = '\xe9'\n"}, "Add a Latin file", {}),
        ("encoding", {"a.py": b"# coding: ascii\nx = '\xe9'\n"}, "Add a file that lies", {}),
        ("encoding", {"a.py": b"# coding: utf-7\nx = '\xe9'\n"}, "Add a file that lies", {}),
        ("encodings", {"a.py": "x = 'é'\n", "b.py": b"# coding: latin-1\n'\xe9'\n"}, "Add two files", {}),
        ("file_bytes", {"a.py": "x" * 2000}, "Add a large file", {"max_file_bytes": 1999}),
        ("files", {"a.py": "x\n", "b.py": "y\n"}, "Add two files here", {"max_files": 1}),
        ("vendored", {"vendor/a.py": body(1)}, "Add a library of others", {}),
        ("lock", {"yarn.lock": "x\n"}, "Lock the versions of all", {}),
        ("generated", {"a_pb2.py": body(1)}, "Add what was generated", {}),
        ("formatting", {"first.py": "\n\n" + body(0)}, "Format the first module", {}),
        ("score", {"README": "x\n"}, "x", {"min_score": 0.9}),
        ("empty", {}, "Nothing changes in this commit", {}),
        ("path_encoding", {b"\xe9.py": body(1)}, "Add an odd name", {}),
    ],
)
def test_a_rejected_end_has_its_rule(work, rule, files, message, options):
    work.write("first.py", body(0))
    work.commit("Add the first module of all")
    work.write("second.py", body(2))
    work.commit("Add the second module of all")
    for path, content in files.items():
        work.write(path if isinstance(path, str) else path.decode(errors="surrogateescape"), content)
    last = work.commit(message)
    kept, dropped = split(triplets(work.place, Options(**(MANY | {"window": (0.5, 0.9)} | options))))
    assert kept == [] and [item.rule for item in dropped] == [f"triplets.{rule}"]
    assert dropped[0].record["new"]["commit"] == last
    if rule in ("file_bytes", "files", "score"):
        limit = dropped[0].threshold
        assert dropped[0].value < limit if rule == "score" else dropped[0].value > limit


def test_a_user_may_name_a_fallback_encoding(work, git_apply, state):
    work.write("a.c", b"/* \xe9 */\n" + body(1).encode())
    work.commit("Add the first file of all")
    work.commit("nothing")
    work.write("a.c", b"/* \xe9\xe8 */\n" + body(2).encode())
    work.commit("Change the Latin file")
    options = Options(**(MANY | {"window": (0.5, 0.9), "encodings": ("utf-8", "latin-1")}))
    ((record,), _) = split(triplets(work.place, options))
    assert git_apply(record) == state(record["new"]) and "\xe9\xe8" in record["patch"]


def test_merges_submodules_and_missing_blobs(work, new_work, git_apply, state):
    for k in range(3):
        work.write(f"m{k}.py", body(k))
        work.commit(f"Add the module number {k}")
    work.git("checkout", "-q", "-b", "side")
    work.write("side.py", body(7))
    work.commit("wip")
    work.git("checkout", "-q", "main")
    work.git("merge", "-q", "--no-ff", "-m", "Merge pull request #1 from a/side\n\nAdd the side module", "side")
    work.git("checkout", "-q", "-b", "other")
    work.write("other.py", body(8))
    work.commit("other")
    work.git("checkout", "-q", "main")
    work.git("merge", "-q", "--no-ff", "-m", "Merge branch 'other'", "other")
    head = work.git("rev-parse", "HEAD").decode().strip()
    work.git("update-index", "--add", "--cacheinfo", f"160000,{head},sub")
    work.git("commit", "-q", "-m", "Add a submodule to the tree")
    work.write("gone.py", body(9))
    (work.place / "sub").mkdir()
    work.commit("Add a module that is lost")
    oid = work.git("rev-parse", "HEAD:gone.py").decode().strip()
    (work.place / ".git/objects" / oid[:2] / oid[2:]).unlink()
    kept, dropped = split(triplets(work.place, Options(**(MANY | {"window": (0.1, 1.0)}))))
    rules = Counter(item.rule for item in dropped)
    assert rules == {"triplets.sync_merge": 1, "triplets.submodule": 1, "triplets.missing_object": 1}
    assert [record["messages"][0].split("\n")[-1] for record in kept] == [
        "Add the module number 2",
        "Add the side module",
    ]
    for record in kept:
        assert git_apply(record) == state(record["new"])


def test_no_evolution_is_an_error_by_name(work, tmp_path):
    with pytest.raises(IqcError, match="not a Git repository"):
        list(triplets(tmp_path / "nothing"))
    with pytest.raises(IqcError, match="no commit"):
        list(triplets(work.place))
    work.write("a", "1")
    work.commit("one")
    with pytest.raises(IqcError, match="has one commit"):
        list(triplets(work.place))


@pytest.mark.parametrize("options", [{"window": (0.8, 0.4)}, {"horizon": 0}, {"density": 0}])
def test_wrong_options(options):
    with pytest.raises(IqcError):
        Options(**options)
