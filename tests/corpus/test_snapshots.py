"""States of repositories: a commit and a tree give the same files, and what is left out has its reason."""

import os
import shutil
import stat

import pytest

from iqc.corpus.snapshots import MAX_PATH, is_git, read_commit, read_tree
from iqc.errors import BadRecord, IqcError

FILES = {
    "a.py": b"import b\n",
    "b.py": b"\xef\xbb\xbfx = 1\r\n",
    "run.sh": b"#!/bin/sh\n",
    "data.bin": b"\0\1",
    "latin.txt": b"caf\xe9",
    "large.txt": b"x" * 200,
    "d/e/f.unknown": "täxt\n".encode(),
    "node_modules/m/index.js": b"x",
}
LEFT_OUT = {"data.bin": "binary", "latin.txt": "encoding", "large.txt": "file_bytes"}


def reasons(snapshot):
    return {dropped.record["path"]: dropped.rule for dropped in snapshot.dropped}


def fill(git):
    os.symlink("/etc/passwd", git.place / "link.py")
    os.symlink("d", git.place / "folder")
    git.write("run.sh", FILES["run.sh"])
    os.chmod(git.place / "run.sh", 0o755)
    return git.commit(FILES)


def test_a_commit(git):
    commit = fill(git)
    found = read_commit(str(git.place), "me/demo", max_bytes=100)
    assert found.commit == commit and found.id == f"me/demo@{commit[:12]}"
    assert found.files == [
        {"path": "a.py", "text": "import b\n", "lang": "python", "mode": "100644", "encoding": "utf-8"},
        {"path": "b.py", "text": "x = 1\r\n", "lang": "python", "mode": "100644", "encoding": "utf-8-sig"},
        {"path": "d/e/f.unknown", "text": "täxt\n", "lang": None, "mode": "100644", "encoding": "utf-8"},
        {"path": "run.sh", "text": "#!/bin/sh\n", "lang": "bash", "mode": "100755", "encoding": "utf-8"},
    ]
    assert all(file["text"].encode(file["encoding"]) == FILES[file["path"]] for file in found.files)
    links = {"link.py": "symlink", "folder": "symlink", "node_modules/m/index.js": "folder"}
    assert reasons(found) == LEFT_OUT | links
    assert found.dropped[0].record.keys() == {"id", "repo", "commit", "path"}


def test_a_tree_has_the_files_of_the_commit(git, tmp_path):
    fill(git)
    tree = tmp_path / "elsewhere"
    shutil.copytree(git.place, tree, symlinks=True)
    shutil.rmtree(tree / ".git")
    found, committed = read_tree(str(tree), "demo", 100), read_commit(str(git.place), "demo", max_bytes=100)
    assert found.files == committed.files and found.commit is None
    assert reasons(found) == LEFT_OUT | {"link.py": "symlink", "folder": "symlink"}
    assert {dropped.record["id"] for dropped in found.dropped} == {f"{found.id}:{path}" for path in reasons(found)}


def test_the_digest_of_a_tree_is_that_of_its_files(tmp_path):
    def digest(name, **files):
        place = tmp_path / name
        place.mkdir()
        for path, data in files.items():
            (place / path).write_bytes(data)
        return read_tree(str(place), "same").digest

    first = digest("one", a=b"1", b=b"2")
    (tmp_path / "one/a").chmod(0o755)
    assert read_tree(str(tmp_path / "one"), "same").digest != first
    assert digest("two", b=b"2", a=b"1") == first
    assert len({first, digest("three", a=b"2", b=b"1"), digest("four", a=b"12"), digest("five", a=b"1", c=b"2")}) == 4


def test_an_unreadable_file_costs_itself_and_a_vanished_one_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("here")
    (tmp_path / "b.py").write_text("secret")
    (tmp_path / "c.py").write_text("gone")
    real_open, real_lstat = open, os.lstat

    def refuse(path, *arguments, **options):
        if str(path).endswith("b.py"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *arguments, **options)

    def vanish(path):
        if str(path).endswith("c.py"):
            raise FileNotFoundError(2, "gone")
        return real_lstat(path)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("os.lstat", vanish)
    found = read_tree(str(tmp_path), "demo")
    assert [file["path"] for file in found.files] == ["a.py"] and reasons(found) == {"b.py": "unreadable"}


def test_any_commit_of_bare_shallow_and_odd_repositories(git, tmp_path):
    first = git.commit({"objects/a.py": b"1", "HEAD": b"2"})  # a work tree that looks bare
    git.commit({"objects/a.py": b"new"})
    git("tag", "v1", first)
    git("clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    git("clone", "-q", "--depth=1", f"file://{git.place}", str(tmp_path / "shallow"))
    for revision in (first, first[:10], "v1", "HEAD~1", "main^"):
        for place in (git.place, tmp_path / "bare"):
            assert is_git(place)
            found = read_commit(str(place), "demo", revision)
            assert found.commit == first and [file["text"] for file in found.files] == ["2", "1"]
    assert read_commit(str(tmp_path / "shallow"), "demo").files[1]["text"] == "new"
    assert read_commit(str(git.place), "demo", ":/a change").commit != first
    for revision in ("nothing", "--all", "HEAD..v1", "HEAD:HEAD", "", "^HEAD", "HEAD\n", "a\0b", ":/nowhere"):
        with pytest.raises(IqcError, match="no commit at"):
            read_commit(str(git.place), "demo", revision)


def test_what_lies_in_the_work_tree_is_not_read(git):
    git.commit({"a.py": b"committed"})
    git.write("a.py", b"changed")
    git.write("b.py", b"new")
    assert [file["text"] for file in read_commit(str(git.place), "demo").files] == ["committed"]


def test_hostile_paths_are_left_out_by_name(git):
    long = b"x" * (MAX_PATH + 1)
    names = [b"..", b".git", b".GIT", b"a\nb", b"bad\xff", b"line\xe2\x80\xa8", long, b"ok.py", b"ok.py", b"."]
    commit = git.tree([("100644", name, b"text") for name in names])
    found = read_commit(str(git.place), "demo", commit)
    assert [file["path"] for file in found.files] == ["ok.py"]
    rules = [dropped.rule for dropped in found.dropped]
    assert sorted(rules) == ["duplicate"] + ["path"] * 8
    assert all(dropped.record["path"].encode() for dropped in found.dropped)  # can be written as JSON


def test_a_missing_blob_costs_its_file(git):
    git.commit({"a.py": b"here", "b.py": b"gone"})
    blob = git("rev-parse", "HEAD:b.py").decode().strip()
    path = git.place / ".git" / "objects" / blob[:2] / blob[2:]
    path.chmod(path.stat().st_mode | stat.S_IWUSR)
    path.unlink()
    found = read_commit(str(git.place), "demo")
    assert [file["path"] for file in found.files] == ["a.py"]
    assert reasons(found) == {"b.py": "missing_object"}


def test_submodules_are_left_out(git):
    git.commit({"a.py": b"x"})
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub")
    git("commit", "-q", "-m", "a submodule")
    assert reasons(read_commit(str(git.place), "demo")) == {"sub": "submodule"}


def test_a_listing_without_end_is_refused(git, monkeypatch):
    git.commit({f"{number}.py": b"x" for number in range(6)})
    monkeypatch.setattr("iqc.corpus.snapshots.MAX_FILES", 5)
    with pytest.raises(BadRecord, match="more than 5 files"):
        read_commit(str(git.place), "demo")
    monkeypatch.setattr("iqc.corpus.snapshots.MAX_FILES", 10)
    monkeypatch.setattr("iqc.corpus.snapshots.MAX_REPOSITORY", 5)
    with pytest.raises(BadRecord, match="more than 5 bytes of files"):
        read_commit(str(git.place), "demo")
    monkeypatch.setattr("iqc.corpus.snapshots.MAX_REPOSITORY", 1000)
    monkeypatch.setattr("iqc.corpus.snapshots.MAX_LISTING", 20)
    with pytest.raises(BadRecord, match="more than 20 bytes of paths"):
        read_commit(str(git.place), "demo")


def test_settings_of_a_repository_are_not_obeyed(git, tmp_path):
    git.commit({"a.py": b"x", ".gitattributes": b"* filter=evil diff=evil\n"})
    mark = tmp_path / "ran"
    for key in (
        "core.fsmonitor",
        "filter.evil.smudge",
        "diff.evil.textconv",
        "core.sshCommand",
        "uploadpack.packObjectsHook",
    ):
        git("config", key, f"touch {mark}; true")
    read_commit(str(git.place), "demo")
    assert not mark.exists()
