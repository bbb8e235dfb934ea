"""Repositories with everything in them that Git allows, and some that are broken: mined, or refused by name."""

import os
import subprocess
import sys
import zlib

import pytest

from iqc.errors import IqcError
from iqc.history.git import Repository
from iqc.history.states import ContextOptions


def raw_commit(work, message, committer=b"a <a@example.org> 1700000000 +0000", headers=b"", parents=("HEAD",)):
    """A commit written byte by byte, as no tool of today would."""
    tree = work.git("write-tree", "--missing-ok").strip()
    ids = [work.git("rev-parse", parent).strip() for parent in parents]
    lines = [b"tree " + tree, *(b"parent " + oid for oid in ids), b"author " + committer, b"committer " + committer]
    data = b"\n".join(lines) + b"\n" + headers + b"\n" + message
    oid = work.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=data).decode().strip()
    work.git("reset", "-q", "--soft", oid)
    return oid


def test_renames_copies_modes_and_empty_files(started, git_apply, state, mine, body):
    work = started
    (work.place / "m0.py").rename(work.place / "moved.py")
    work.write("moved.py", body(0).replace("x + 7", "x + seven"))
    work.write("copy.py", body(1))
    work.commit("Move a module with a change and copy another")
    (work.place / "moved.py").chmod(0o755)
    work.commit("Make the module executable")
    (work.place / "moved.py").chmod(0o644)
    (work.place / "copy.py").chmod(0o755)
    work.write("copy.py", body(2))
    work.commit("Make the other one executable and change it")
    work.write("empty.py", "")
    work.write("open.py", "x = 1")
    work.commit("Add an empty file and one without a line end")
    work.write("empty.py", "y = 2")
    work.write("open.py", "x = 1\n")
    work.commit("Fill the empty file and end the line")
    kept, rules = mine(work.place)
    assert len(kept) == 5 and rules == {"formatting": 1}  # of modes alone
    for record in kept:
        assert git_apply(record) == state(record["new"])
    assert "rename to moved.py" in kept[1]["patch"] and "copy from" not in kept[1]["patch"]
    assert [file["mode"] for file in kept[2]["new"]["files"]] == ["100755", "100644"]


def test_symbolic_links_of_all_kinds(started, git_apply, state, mine, body):
    work = started
    (work.place / "link.py").symlink_to("m0.py")
    (work.place / "dangling").symlink_to("no/such/file")
    (work.place / "outside").symlink_to("/etc/passwd")
    work.commit("Add links to here and there")
    (work.place / "link.py").unlink()
    work.write("link.py", body(3))
    (work.place / "m1.py").unlink()
    (work.place / "m1.py").symlink_to("link.py")
    work.commit("Turn a link to a file and a file to a link")
    kept, rules = mine(work.place)
    assert len(kept) == 3 and not rules
    for record in kept:
        assert git_apply(record) == state(record["new"])
    targets = {file["path"]: file["text"] for file in kept[1]["new"]["files"]}
    assert targets == {"link.py": "m0.py", "dangling": "no/such/file", "outside": "/etc/passwd"}


def test_a_file_that_becomes_binary_has_no_text_on_either_side(started, git_apply, state, mine, body):
    for k, (text, data) in enumerate([(body(3), b"\0\1"), (body(4), body(5).encode())]):
        started.write("turning", data)
        started.write("m0.py", text)
        started.commit(f"Turn a file over, for time {k}")
    started.write("turning", b"\0")
    started.write("m0.py", body(5))
    started.commit("Turn the file back again")
    kept, rules = mine(started.place)
    assert len(kept) == 4 and not rules
    for record in kept:
        assert git_apply(record) == state(record["new"])
        sides = [file for side in ("old", "new") for file in record[side]["files"] if file["path"] == "turning"]
        assert all(file["text"] is None and file["encoding"] is None for file in sides)


def test_submodules_added_changed_and_removed_are_refused(started, mine, body):
    work = started
    head = work.git("rev-parse", "HEAD").decode().strip()
    for oid in (head, "12" * 20):
        work.git("update-index", "--add", "--cacheinfo", f"160000,{oid},sub")
        work.git("commit", "-q", "-m", "Move the submodule along")
    work.write("m9.py", body(9))
    work.git("add", "m9.py")
    work.git("commit", "-q", "-m", "Add a module beside the submodule")
    work.git("rm", "-q", "--cached", "sub")
    work.git("commit", "-q", "-m", "Remove the submodule again")
    kept, rules = mine(work.place)
    assert len(kept) == 2 and rules == {"submodule": 3}
    whole, _ = mine(work.place, context=ContextOptions("snapshot"))
    entry = next(file for file in whole[-1]["old"]["files"] if file["path"] == "sub")
    assert (entry["mode"], entry["text"]) == ("160000", None)


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ("# coding: latin-1\nx = '\xe9'\n".encode("latin-1"), "iso8859-1"),
        ("x = '\xe9'\n".encode("latin-1"), "encoding"),
        ("x = 'é'\n".encode("utf-16"), None),  # has NULs, so it is binary, as for Git
        ("x = 'é'\n".encode("utf-16-le") * 0 + "é".encode() + b"\xe9\n", "encoding"),  # two in one file
        ("\ufeffx = 'é'\n".encode(), "utf-8"),
        (b"# coding: utf-16\nx = 1\n", "utf-8"),  # a lie that costs nothing
        (b"# coding: punycode\n" + b"a-" * 200_000, "utf-8"),
        (b'# coding: raw_unicode_escape\nx = "\\ud800"\n', "utf-8"),
        (b"# coding: unicode_escape\nx = '\\x41'\n", "utf-8"),
    ],
)
def test_encodings(started, git_apply, state, content, outcome, mine, body):
    started.write("odd.py", content)
    started.write("m0.py", body(0) + body(5))
    started.commit("Add a module in some encoding")
    kept, rules = mine(started.place, max_file_bytes=10**6)
    if outcome == "encoding":
        assert rules == {"encoding": 1} and len(kept) == 1
        return
    assert not rules and git_apply(kept[1]) == state(kept[1]["new"])
    (entry,) = [file for file in kept[1]["new"]["files"] if file["path"] == "odd.py"]
    assert entry["encoding"] == outcome


def test_odd_paths(started, git_apply, state, mine, body):
    names = ["new\nline.py", 'quo"te.py', "tab\t.py", "Case.py", "case.py", "-rf.py", "ü b.py", "a b/b a.py", "é\\.py"]
    for name in names:
        started.write(name, body(1) + name)
    started.commit("Add files with odd names")
    for name in names:
        started.write(name, body(2) + name)
    started.commit("Change files with odd names")
    started.write(os.fsdecode(b"\xff.py"), body(3))
    started.commit("Add a file whose name is no text")
    kept, rules = mine(started.place)
    assert len(kept) == 3 and rules == {"path_encoding": 1}
    for record in kept:
        assert git_apply(record) == state(record["new"])
    assert sorted(file["path"] for file in kept[2]["new"]["files"]) == sorted(names)


def tree_of(work, *entries):
    """A tree with entries that Git itself does not write."""
    data = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in entries)
    return work.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=data).decode().strip()


@pytest.mark.parametrize(
    "name",
    ["../e.py", "./e.py", ".git/hooks/pre-commit", "a/./e.py", ".GIT/config", "git~1/x", ".git /x", ".g\u200cit/x"],
)
def test_paths_that_leave_the_directory(started, name, mine, body):
    work = started
    blob = work.git("hash-object", "-w", "--stdin", stdin=body(3).encode()).decode().strip()
    inner = ("100755", name.rpartition("/")[2], blob)
    for part in reversed(name.split("/")[:-1]):
        tree = tree_of(work, inner)
        inner = ("40000", part, tree)
    tree = tree_of(work, inner, ("100644", "m0.py", work.git("rev-parse", "HEAD:m0.py").decode().strip()))
    commit = work.git("commit-tree", tree, "-p", "HEAD", "-m", "Add a file in an odd place").decode().strip()
    work.git("update-ref", "HEAD", commit)
    kept, rules = mine(work.place)
    assert len(kept) == 1 and rules == {"path": 1}
    changed = work.git("hash-object", "-w", "--stdin", stdin=body(4).encode()).decode().strip()
    tree = tree_of(work, inner, ("100644", "m0.py", changed))
    work.git("update-ref", "HEAD", work.git("commit-tree", tree, "-p", "HEAD", "-m", "Change a file").decode().strip())
    for state, expected in (("touched", {}), ("dependencies", {}), ("snapshot", {"path": 1})):
        kept, rules = mine(work.place, window=(0.6, 1.0), context=ContextOptions(state))
        assert rules == expected and len(kept) == 1 - len(expected)


def test_a_tree_with_one_name_twice(started, mine, body):
    work = started
    blobs = [work.git("hash-object", "-w", "--stdin", stdin=body(k).encode()).decode().strip() for k in range(3)]
    tree = tree_of(work, ("100644", "m0.py", blobs[0]), *(("100644", "twice.py", blob) for blob in blobs[1:]))
    commit = work.git("commit-tree", tree, "-p", "HEAD", "-m", "Add a file two times").decode().strip()
    work.git("update-ref", "HEAD", commit)
    kept, rules = mine(work.place)
    assert len(kept) == 1 and rules == {"damaged": 1}


def test_attributes_have_no_say(started, git_apply, state, tmp_path, mine, body):
    mark = tmp_path / "mark"
    started.git("config", "diff.evil.textconv", f"touch {mark}; cat")
    started.git("config", "filter.evil.clean", f"touch {mark}; cat")
    started.git("config", "filter.evil.smudge", f"touch {mark}; cat")
    started.write(".gitattributes", "* text=auto eol=crlf ident\n")
    started.write("dos.py", body(4).replace("\n", "\r\n"))
    started.write("id.py", "# $Id$\n" + body(5))
    started.commit("Add files that Git would change")
    started.write(".gitattributes", "*.py -diff binary working-tree-encoding=UTF-16\n")
    started.git("-c", "core.safecrlf=false", "add", ".gitattributes")
    started.git("commit", "-q", "-m", "Call all modules binary files")
    started.git("checkout", "-q", "HEAD~0")
    started.write(".gitattributes", "*.py diff=evil filter=evil\n")
    started.write("m0.py", body(6))
    started.git("-c", "filter.evil.clean=cat", "add", "-A")
    started.git("commit", "-q", "-m", "Give modules a filter of their own")
    mark.unlink(missing_ok=True)
    kept, rules = mine(started.place)
    assert len(kept) == 4 and not rules and not mark.exists()
    for record in kept:
        assert git_apply(record) == state(record["new"])
    files = {file["path"]: file["text"] for file in kept[1]["new"]["files"]}
    assert "$Id$\n" in files["id.py"]


def test_huge_files_are_not_read(started):
    """200 MB of text, made in Git without a copy in memory; the process that mines grows by much less."""
    chunk = b"one line like the other\n" * 40_000 + b"x" * 40_000
    with subprocess.Popen(
        ["git", "-c", "core.compression=1", "fast-import", "--quiet"],
        cwd=started.place,
        env=started.env,
        stdin=subprocess.PIPE,
    ) as importer:
        message = b"Add the table of everything\n"
        importer.stdin.write(b"commit refs/heads/main\ncommitter a <a@b> 1700009000 +0000\ndata %d\n" % len(message))
        importer.stdin.write(message + b"from refs/heads/main^0\nM 100644 inline huge.py\ndata 200000000\n")
        for _ in range(200):
            importer.stdin.write(chunk)
        importer.stdin.write(b"\n")
    assert importer.returncode == 0
    script = (
        "import sys; from iqc.history.triplets import *; o = Options(window=(0, 1), density=100, horizon=1);"
        "print([i.rule for i in triplets(sys.argv[1], o) if isinstance(i, Dropped)]);"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", script, started.place], capture_output=True, text=True, check=True)
    rules, peak = done.stdout.splitlines()
    assert "triplets.file_bytes" in rules and int(peak) < 150_000  # KiB


def test_a_commit_with_very_many_files(started, mine):
    listing = "".join(f"100644 {'%040x' % (k + 1)}\tdir{k % 100}/f{k}.py\n" for k in range(100_000))
    started.git("update-index", "--index-info", stdin=listing.encode())
    raw_commit(started, b"Add a hundred thousand files\n")
    kept, rules = mine(started.place)
    assert len(kept) == 1 and rules == {"files": 1}


def test_messages_dates_and_parents_of_all_kinds(started, git_apply, state, mine, body):
    work = started
    work.write("m0.py", body(0) + "# 1\n")
    work.git("add", "-A")
    raw_commit(work, "Add a remark that is caf\xe9\n".encode("latin-1"), b"a <a@b> 1 +0000")
    work.write("m0.py", body(0) + "# 2\n")
    work.git("add", "-A")
    raw_commit(work, "Add caf\xe9, and say so\n".encode("latin-1"), b"a <a@b> 4300000000 +0000", b"encoding latin1\n")
    work.write("m0.py", body(0) + "# 3\n")
    work.git("add", "-A")
    raw_commit(work, b"Add with a clock that is broken\n", b"a <a@b> 99999999999999999999 +9999")
    work.write("m0.py", body(0) + "# 4\n")
    work.git("add", "-A")
    raw_commit(work, b"Add without any clock\n", b"nobody")
    work.write("m0.py", body(0) + "# 5\n")
    work.git("add", "-A")
    sides = []
    for k in range(3):
        sides.append(work.git("commit-tree", "-p", "HEAD~1", "-m", f"side {k}", "HEAD^{tree}").decode().strip())
    raw_commit(work, b"Join three lines of work at once\n", parents=("HEAD", *sides))
    kept, rules = mine(work.place)
    assert len(kept) == 6 and not rules
    assert kept[1]["messages"] == ["Add a remark that is caf\ufffd"] and kept[2]["messages"][0].startswith("Add café")
    for record in kept:
        assert git_apply(record) == state(record["new"])
        assert isinstance(record["metadata"]["time"], int)


def test_messages_without_end(started, mine, body):
    started.write("m0.py", body(0) + body(3))
    started.commit("Change a module\n\n" + "x" * 30_000)
    started.write("m0.py", body(0) + body(4))
    started.commit("Change it again, in few words")
    kept, rules = mine(started.place, horizon=3)
    assert rules["message_chars"] >= 2 and all(len(message) < 99 for record in kept for message in record["messages"])


def test_where_a_repository_may_be(started, tmp_path, mine, body):
    work = started
    work.write("m2.py", body(2))
    head = work.commit("Add one more module")
    wanted = [record["id"].partition("@")[2] for record in mine(work.place)[0]]
    places = [work.place]

    def git(*arguments, cwd=tmp_path):
        done = subprocess.run(["git", *arguments], cwd=cwd, env=work.env, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    git("clone", "-q", "--bare", str(work.place), "bare.git")
    git("clone", "-q", "--shared", str(work.place), "alternates")
    git("worktree", "add", "-q", "--detach", str(tmp_path / "worktree"), cwd=work.place)
    git("init", "-q", "outer")
    add = ["submodule", "--quiet", "add", str(work.place), "inner"]
    git("-c", "protocol.file.allow=always", *add, cwd=tmp_path / "outer")
    git("init", "-q", "--separate-git-dir", str(tmp_path / "elsewhere"), str(tmp_path / "indirect"))
    git("fetch", "-q", str(work.place), "main:refs/heads/x", cwd=tmp_path / "indirect")
    git("checkout", "-q", "--detach", "x", cwd=tmp_path / "indirect")
    places += [tmp_path / name for name in ("bare.git", "alternates", "worktree", "outer/inner", "indirect")]
    foreign = tmp_path / "foreign"
    git("clone", "-q", "--bare", str(work.place), str(foreign))
    if os.getuid() == 0:
        for path in [foreign, *foreign.rglob("*")]:
            os.chown(path, 12345, 12345)
    places.append(foreign)
    for place in places:
        with Repository(place) as repository:
            assert repository.head == head
        assert [record["id"].partition("@")[2] for record in mine(place)[0]] == wanted, place
    # Grafts and replaced objects do not change what a history is.
    work.git("replace", "--graft", head)
    (work.place / ".git/info").mkdir(exist_ok=True)
    (work.place / ".git/info/grafts").write_text(head + "\n")
    with Repository(work.place) as repository:
        assert repository.count() == 3
    (foreign / "HEAD").write_text("ref: refs/heads/gone\n")
    with pytest.raises(IqcError, match="no commit at HEAD"):
        Repository(foreign)
    (foreign / "HEAD").write_text("12" * 20 + "\n")
    with pytest.raises(IqcError):
        mine(foreign)


def test_a_configuration_that_never_ends(started, monkeypatch):
    os.mkfifo(started.place / ".git/pipe")
    with (started.place / ".git/config").open("a") as config:
        config.write("[include]\n\tpath = pipe\n")
    monkeypatch.setattr("iqc.history.git._LOOK_SECONDS", 0.3)
    with pytest.raises(IqcError, match="does not answer"):
        Repository(started.place)


def test_a_partial_clone_without_network(started, git_apply, state, mine, body):
    """Blobs that were filtered away are not fetched: what is left of the history is mined."""
    work = started
    work.write("big.py", body(7, 300))
    work.commit("Add a module that is large")
    work.write("m0.py", body(0) + body(8))
    work.commit("Change the first module again")
    work.git("config", "uploadpack.allowFilter", "true")
    for spec, expected in (("blob:limit=4k", (2, {"missing_object": 1})), ("blob:none", (0, {"missing_object": 3}))):
        place = work.place.parent / spec.replace(":", "-")
        source = f"file://{work.place}"
        command = ["git", "clone", "-q", "--bare", f"--filter={spec}", source, str(place)]
        subprocess.run(command, env=work.env, check=True)
        before = sorted(path.name for path in (place / "objects").rglob("*"))
        kept, rules = mine(place)
        assert (len(kept), rules) == expected
        assert sorted(path.name for path in (place / "objects").rglob("*")) == before
        for record in kept:
            assert git_apply(record) == state(record["new"])


def test_damage_in_the_middle_costs_what_needs_it(started, git_apply, state, mine, body, loose):
    """A loose tree without its end, a blob that is another, a pack with a hole: the rest is mined."""
    work = started
    for k in range(2, 12):
        work.write(f"m{k}.py", body(k))
        work.commit(f"Add the module number {k}")
    tree = work.git("rev-parse", "HEAD~6^{tree}").decode().strip()
    blob = work.git("rev-parse", "HEAD~2:m9.py").decode().strip()
    path = loose(work, tree)
    path.write_bytes(path.read_bytes()[:-20])
    loose(work, blob).write_bytes(zlib.compress(b"blob 5\0wrong but whole"))
    kept, rules = mine(work.place)
    assert rules == {"damaged": 2, "missing_object": 1} and len(kept) == 11 - 3
    for record in kept:
        assert git_apply(record) == state(record["new"])


def test_a_damaged_pack(started, mine, body):
    work = started
    for k in range(2, 30):
        work.write("m0.py", body(k))
        work.write(f"m{k}.py", os.urandom(3000).hex() + "\n")
        work.commit(f"Add the module number {k}")
    work.git("gc", "-q")
    (pack,) = (work.place / ".git/objects/pack").glob("*.pack")
    data = bytearray(pack.read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 40] = b"\0" * 40
    pack.chmod(0o644)
    pack.write_bytes(data)
    kept, rules = mine(work.place)
    assert kept and rules and set(rules) <= {"damaged", "missing_object"}
    assert len(kept) + sum(rules.values()) == 29
