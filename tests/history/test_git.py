"""What the wrapper reads, and that a hostile repository's settings are never in force."""

import os
import stat

import pytest

from iqc.errors import IqcError
from iqc.history.git import MissingObject, Repository


def test_the_first_parent_line_with_merges(work):
    work.write("a", "1")
    first = work.commit("first\n\nbody of it")
    work.git("checkout", "-q", "-b", "side")
    work.write("side", "s")
    side = work.commit("on the side")
    work.git("checkout", "-q", "main")
    work.write("a", "2")
    second = work.commit("second")
    work.git("merge", "-q", "--no-ff", "-m", "Merge pull request #1", "side")
    merge = work.git("rev-parse", "HEAD").decode().strip()
    with Repository(work.place) as repository:
        assert [oid for oid, _ in repository.line()] == [first, second, merge]
        commits = list(repository.log(merge))
        assert [commit.id for commit in commits] == [first, second, merge]
        assert [commit.message for commit in commits] == ["first\n\nbody of it", "second", "Merge pull request #1"]
        assert commits[2].parents == (second, side)
        assert [change.path for change in commits[2].changes] == [b"side"]
        assert commits[0].time == 1_700_000_060
        assert [commit.id for commit in repository.log(second, 1)] == [second]
        assert repository.blob(commits[1].changes[0].new, 10) == b"2"


def test_odd_paths_messages_and_empty_commits(work):
    work.write("sp ace/\ttab\n", "x")
    work.write(os.fsdecode(b"latin\xe9"), "y")
    work.commit("\x01 starts oddly\n\n:100644 looks like a change")
    work.commit("nothing changes")
    with Repository(work.place) as repository:
        one, two = repository.log(repository.head)
    assert {change.path for change in one.changes} == {b"sp ace/\ttab\n", b"latin\xe9"}
    assert one.message == "\x01 starts oddly\n\n:100644 looks like a change"
    assert (two.message, two.changes) == ("nothing changes", ())


def test_a_blob_above_the_limit_gives_its_size_and_the_next_is_read(work):
    work.write("big", b"x" * 3_000_000)
    work.write("small", b"\0\n\xff")
    work.commit("c")
    with Repository(work.place) as repository:
        (commit,) = repository.log(repository.head)
        oid = {change.path: change.new for change in commit.changes}
        assert repository.blob(oid[b"big"], 1000) == 3_000_000
        assert repository.blob(oid[b"small"], 1000) == b"\0\n\xff"
        assert len(repository.blob(oid[b"big"], 3_000_000)) == 3_000_000
        with pytest.raises(MissingObject):
            repository.blob("0123456789" * 4, 1000)
        assert repository.blob(oid[b"small"], 1000) == b"\0\n\xff"


def test_bare_worktree_and_sha256(work, new_work, tmp_path):
    work.write("a", "1")
    head = work.commit("c")
    work.git("clone", "-q", "--bare", str(work.place), str(tmp_path / "bare.git"))
    work.git("worktree", "add", "-q", str(tmp_path / "tree"), "-b", "other")
    for place in (tmp_path / "bare.git", tmp_path / "tree", str(work.place)):
        with Repository(place) as repository:
            assert [oid for oid, _ in repository.line()] == [head]
    other = new_work("other", object_format="sha256")
    other.write("a", "1")
    head = other.commit("c")
    with Repository(other.place) as repository:
        assert len(head) == 64 and [oid for oid, _ in repository.line()] == [head]
        (commit,) = repository.log(head)
        assert repository.blob(commit.changes[0].new, 9) == b"1"


def test_what_is_no_usable_repository_is_an_error_by_name(work, tmp_path):
    (tmp_path / "plain").mkdir()
    for place in (tmp_path / "plain", tmp_path / "absent", work.place / "sub"):
        with pytest.raises(IqcError, match="is not a Git repository"):
            Repository(place)
    with pytest.raises(IqcError, match="no commit at HEAD"):
        Repository(work.place)
    for k in range(3):
        work.write("a", str(k))
        work.commit("c")
    work.git("clone", "-q", "--depth", "2", f"file://{work.place}", str(tmp_path / "shallow"))
    with pytest.raises(IqcError, match="shallow"):
        Repository(tmp_path / "shallow")


def test_a_directory_inside_a_repository_is_not_taken_for_it(work):
    work.write("sub/a", "1")
    work.commit("c")
    with pytest.raises(IqcError, match="is not a Git repository"):
        Repository(work.place / "sub")


def test_a_damaged_tree_costs_the_commits_that_need_it(work):
    ids = []
    for k in range(5):
        work.write("d/a", str(k))
        ids.append(work.commit(f"number {k}"))
    tree = work.git("rev-parse", "HEAD~2:d").decode().strip()
    path = work.place / ".git/objects" / tree[:2] / tree[2:]
    whole = path.read_bytes()
    path.chmod(0o644)
    for spoil in (path.unlink, lambda: path.write_bytes(b"garbage"), lambda: path.write_bytes(whole[:9])):
        spoil()
        with Repository(work.place) as repository:
            commits = list(repository.log(repository.head))
            assert [commit.id for commit in commits] == ids
            assert [bool(commit.damage) for commit in commits] == [False, False, True, True, False]
            assert [commit.message for commit in commits] == [f"number {k}" for k in range(5)]
            found = list(repository.diffs([(ids[0], ids[1]), (ids[1], ids[2]), (ids[3], ids[4]), (ids[2], ids[4])]))
            assert [type(item) for item in found] == [bytes, MissingObject, bytes, MissingObject]
            with pytest.raises(MissingObject):
                list(repository.tree(ids[2]))
            assert [entry.path for entry in repository.tree(ids[3])] == [b"d/a"]


def test_a_damaged_blob_costs_itself(work):
    for k in range(4):
        work.write(f"f{k}", f"text of the file {k}\n" * 99)
    work.commit("all")
    oids = [work.git("rev-parse", f"HEAD:f{k}").decode().strip() for k in range(4)]
    for k, data in ((1, b"garbage"), (2, None)):
        path = work.place / ".git/objects" / oids[k][:2] / oids[k][2:]
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[: len(whole) // 2] if data is None else data)
    with Repository(work.place) as repository:
        found = list(repository.blobs([*oids, "12" * 20, oids[0]], 10_000))
        kinds = [bytes, MissingObject, MissingObject, bytes, MissingObject, bytes]
        assert [type(item) for item in found] == kinds
        some = repository.blobs(oids, 10_000)  # left unread
        next(some)
        some.close()
        assert repository.blob(oids[3], 10_000) == b"text of the file 3\n" * 99


def test_no_setting_of_the_repository_runs_a_program(work, tmp_path):
    """Each setting names a program that leaves a mark; a partial clone would also fetch what is missing."""
    mark, program = tmp_path / "mark", tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho \"$0 $*\" >> '{mark}'\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    work.write("a.py", "x = 1\n")
    work.write(".gitattributes", "* diff=evil filter=evil\n")
    old = work.commit("one")
    work.write("a.py", "x = 2\n")
    new = work.commit("two")
    blob = work.git("rev-parse", "HEAD:a.py").decode().strip()
    settings = {
        "core.fsmonitor": program,
        "core.pager": program,
        "core.sshCommand": program,
        "core.gitProxy": program,
        "core.hooksPath": tmp_path,
        "core.alternateRefsCommand": program,
        "diff.external": program,
        "diff.evil.command": program,
        "diff.evil.textconv": program,
        "filter.evil.smudge": program,
        "log.showSignature": "true",
        "gpg.program": program,
        "alias.log": f"!{program}",
        "alias.rev-parse": f"!{program}",
        "credential.helper": program,
        "protocol.allow": "always",
        "protocol.ext.allow": "always",
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.partialCloneFilter": "blob:none",
        "remote.origin.url": f"ext::{program}",
        "remote.origin.uploadpack": program,
    }
    config = ""
    for key, value in settings.items():
        section, name = key.rsplit(".", 1)
        head, _, sub = section.partition(".")
        config += f"[{head}]\n" if not sub else f'[{head} "{sub}"]\n'
        config += f"\t{name} = {value}\n"
    (work.place / ".git/config").write_text(config)
    with Repository(work.place) as repository:
        assert [oid for oid, _ in repository.line()] == [old, new]
        assert len(list(repository.log(new))) == 2
        assert b"+x = 2" in repository.diff(old, new)
        assert repository.blob(blob, 100) == b"x = 2\n"
        (work.place / ".git/objects" / blob[:2] / blob[2:]).unlink()
        with pytest.raises(MissingObject):
            repository.blob(blob, 100)
        with pytest.raises(MissingObject):
            repository.diff(old, new)
    with Repository(work.place) as repository, pytest.raises(MissingObject):
        repository.blob(blob, 100)
    assert not mark.exists()
    # The marks can be left: Git with these settings does run the program.
    work.git("log", "-1", "-p", "--ext-diff", check=False)
    work.git("cat-file", "-p", blob, check=False)
    assert mark.exists()


def test_nothing_is_left_behind(work, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    work.write("a", "1")
    head = work.commit("c")
    with Repository(work.place) as repository:
        next(repository.log(head))  # left unread
        assert list(scratch.iterdir())
    with pytest.raises(IqcError):
        Repository(tmp_path / "absent")
    assert not list(scratch.iterdir())
