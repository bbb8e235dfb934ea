"""Repositories with everything in them that Git allows, and some that are broken: mined, or refused by name."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.history import stages
from iqc.history.git import Repository
from iqc.history.states import ContextOptions
from iqc.history.triplets import Options, _Miner, triplets
from iqc.streams.stage import Dropped, Raw

ALL = {"window": (0.0, 1.0), "density": 100.0, "horizon": 1, "min_score": 0.0}


def mine(place, **options):
    items = list(triplets(place, Options(**(ALL | options))))
    kept = [item for item in items if not isinstance(item, Dropped)]
    rules = Counter(item.rule.removeprefix("triplets.") for item in items if isinstance(item, Dropped))
    return kept, rules


def body(k, n=30):
    return "".join(f"def f{k}_{i}(x):\n    return x + {i}\n\n\n" for i in range(n))


@pytest.fixture
def started(work):
    """A repository with two plain commits, so that every later one can be the end of a triplet."""
    for k in range(2):
        work.write(f"m{k}.py", body(k))
        work.commit(f"Add the module number {k}")
    return work


def loose(work, oid):
    path = work.place / ".git/objects" / oid[:2] / oid[2:]
    path.chmod(0o644)
    return path


def raw_commit(work, message, committer=b"a <a@example.org> 1700000000 +0000", headers=b"", parents=("HEAD",)):
    """A commit written byte by byte, as no tool of today would."""
    tree = work.git("write-tree", "--missing-ok").strip()
    ids = [work.git("rev-parse", parent).strip() for parent in parents]
    lines = [b"tree " + tree, *(b"parent " + oid for oid in ids), b"author " + committer, b"committer " + committer]
    data = b"\n".join(lines) + b"\n" + headers + b"\n" + message
    oid = work.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=data).decode().strip()
    work.git("reset", "-q", "--soft", oid)
    return oid


def test_renames_copies_modes_and_empty_files(started, git_apply, state):
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


def test_symbolic_links_of_all_kinds(started, git_apply, state):
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


def test_a_file_that_becomes_binary_has_no_text_on_either_side(started, git_apply, state):
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


def test_submodules_added_changed_and_removed_are_refused(started):
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
def test_encodings(started, git_apply, state, content, outcome):
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


def test_odd_paths(started, git_apply, state):
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
def test_paths_that_leave_the_directory(started, name):
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


def test_a_tree_with_one_name_twice(started):
    work = started
    blobs = [work.git("hash-object", "-w", "--stdin", stdin=body(k).encode()).decode().strip() for k in range(3)]
    tree = tree_of(work, ("100644", "m0.py", blobs[0]), *(("100644", "twice.py", blob) for blob in blobs[1:]))
    commit = work.git("commit-tree", tree, "-p", "HEAD", "-m", "Add a file two times").decode().strip()
    work.git("update-ref", "HEAD", commit)
    kept, rules = mine(work.place)
    assert len(kept) == 1 and rules == {"damaged": 1}


def test_attributes_have_no_say(started, git_apply, state, tmp_path):
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


def test_a_commit_with_very_many_files(started):
    listing = "".join(f"100644 {'%040x' % (k + 1)}\tdir{k % 100}/f{k}.py\n" for k in range(100_000))
    started.git("update-index", "--index-info", stdin=listing.encode())
    raw_commit(started, b"Add a hundred thousand files\n")
    kept, rules = mine(started.place)
    assert len(kept) == 1 and rules == {"files": 1}


def test_messages_dates_and_parents_of_all_kinds(started, git_apply, state):
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


def dated_at(place, times):
    subprocess.run(["git", "init", "-q", "-b", "main", place], check=True)
    subprocess.run(["git", "fast-import", "--quiet"], cwd=place, input=dates(times).encode(), check=True)


def dated(work, times):
    """A line of commits with these dates."""
    work.git("fast-import", "--quiet", stdin=dates(times).encode())
    return work.git("rev-list", "--reverse", "HEAD").decode().split()


def dates(times):
    stream = ""
    for k, time in enumerate(times):
        text, message = body(k, 3), f"Change the module for time {k}\n"
        stream += f"commit refs/heads/main\ncommitter a <a@b> {time} +0000\ndata {len(message)}\n{message}"
        stream += f"M 100644 inline a.py\ndata {len(text)}\n{text}\n"
    return stream


def test_percentiles_by_time(work):
    """Half of the commits are in the first tenth of the life; two clocks are wrong, one by far in each direction."""
    times = [1_000_000_000 + (k if k < 10 else 10 + (k - 9) * 9) for k in range(20)]
    times[5], times[7] = 1, 4_300_000_000
    ids = dated(work, times)
    halves = {by: mine(work.place, window=(0.0, 0.5), by=by)[0] for by in ("rank", "time")}
    starts = {by: [record["old"]["commit"] for record in found] for by, found in halves.items()}
    assert starts["rank"] == ids[:10]
    assert starts["time"] == ids[:14]  # the 14th is at 46 of 100 seconds
    late = mine(work.place, window=(0.5, 1.0), by="time")[0]
    assert [record["old"]["commit"] for record in late] == ids[14:19]
    assert all(0.5 <= record["metadata"]["percentile"] <= 1 for record in late)


@given(st.lists(st.integers(0, 12), min_size=4, max_size=12))
@settings(max_examples=8, deadline=None)
def test_percentiles_by_time_rise_and_lie_in_the_window(times):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "repo")
        dated_at(place, [1_000_000_000 + 86_400 * time for time in times])
        try:
            kept, _ = mine(place, window=(0.4, 0.8), by="time")
        except IqcError as error:
            assert "percentiles by time" in error.what or "no commit between" in error.what
            return
        found = [record["metadata"]["percentile"] for record in kept]
        assert found == sorted(found) and all(0.4 <= share <= 0.8 for share in found)


def test_messages_without_end(started):
    started.write("m0.py", body(0) + body(3))
    started.commit("Change a module\n\n" + "x" * 30_000)
    started.write("m0.py", body(0) + body(4))
    started.commit("Change it again, in few words")
    kept, rules = mine(started.place, horizon=3)
    assert rules["message_chars"] >= 2 and all(len(message) < 99 for record in kept for message in record["messages"])


def test_equal_dates(work):
    ids = dated(work, [1_000_000_000] * 5)
    assert [record["old"]["commit"] for record in mine(work.place)[0]] == ids[:4]
    with pytest.raises(IqcError, match="no percentiles by time"):
        mine(work.place, by="time")
    with pytest.raises(IqcError, match="no commit between"):
        mine(work.place, window=(0.99, 1.0))


def test_where_a_repository_may_be(started, tmp_path):
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


def test_a_partial_clone_without_network(started, git_apply, state):
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


def test_damage_in_the_middle_costs_what_needs_it(started, git_apply, state):
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


def test_a_damaged_pack(started):
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


def run(items):
    """What the runner does: parts in, records out, what cannot be read set aside."""
    one, found, bad = stages.transform(Options(**ALL)), [], []
    for item in items.items:
        try:
            found += [out for out in one(item) if not isinstance(out, Raw | Dropped)]
        except BadRecord as error:
            bad.append(error.what)
    return found, bad


def test_a_repository_that_cannot_be_read_leaves_the_others(started, new_work, tmp_path):
    empty = new_work("empty").place
    single = new_work("single")
    single.write("a", "1")
    single.commit("only one")
    lost = new_work("lost")
    for k in range(4):
        lost.write("a", str(k))
        lost.commit("more")
    loose(lost, lost.git("rev-parse", "HEAD~2").decode().strip()).unlink()
    started.write("m2.py", body(2))
    started.commit("Add one more module")
    given = [str(path) for path in (empty, single.place, lost.place, tmp_path / "absent", started.place)]
    found, bad = run(stages.open_repositories(stages.sources(given), Options(**ALL)))
    assert len(found) == 2 and len(bad) == 4
    for what, words in zip(bad, ("no commit", "one commit", "cannot list the commits", "not a Git repository")):
        assert words in what


def test_bad_lines_of_an_export_are_counted(started, tmp_path):
    export = tmp_path / "export.jsonl"
    export.write_text('{"url": "https://api.github.com/repos/o/r/pu\n[]\n')
    options = stages.pulls.Options(export=(str(export),))
    found = stages.sources([f"o/r={started.place}"])
    assert len(run(stages.open_repositories(found, options, skip_bad=True))[1]) == 2
    with pytest.raises(BadRecord, match=r"export\.jsonl:1"):
        run(stages.open_repositories(found, options))


def test_sections_give_what_one_pass_gives(work, monkeypatch):
    """Cut small, sections hold no more and no less, except that no triplet reaches across a cut."""
    ids = dated(work, [1_000_000_000 + k for k in range(60)])
    whole, _ = mine(work.place)
    monkeypatch.setattr("iqc.history.triplets._STRETCHES", 7)
    parts, _ = mine(work.place)
    assert parts == whole and len(whole) == 59
    spans, _ = mine(work.place, horizon=5, density=30.0)
    at = {oid: k for k, oid in enumerate(ids)}
    ends = [(at[record["old"]["commit"]], at[record["new"]["commit"]]) for record in spans]
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends)) and len(spans) > 5


def test_what_is_held_of_a_history_is_a_window(work):
    """Commits are read as they are needed: a start late in the line holds no commit before it."""
    dated(work, [1_000_000_000 + k for k in range(400)])
    held = []
    original = _Miner._fill

    def fill(self, window, commits):
        original(self, window, commits)
        held.append(len(window))

    _Miner._fill = fill
    try:
        mine(work.place, density=5.0, horizon=4)
    finally:
        _Miner._fill = original
    assert held and max(held) == 5


def test_states_with_more_than_the_touched_files(started):
    """R_old and R_new have the same untouched files, whichever they are; the patch is the same."""
    work = started
    work.write("pkg/__init__.py", "")
    work.write("pkg/a.py", "import pkg.b\nfrom pkg import c\n" + body(1))
    work.write("pkg/b.py", body(2))
    work.write("pkg/c.py", "import m1\n" + body(3))
    work.write("pic.png", b"\0\1")
    work.write("notes.txt", b"caf\xe9\n")
    work.commit("Add a package of three modules")
    work.write("pkg/a.py", "import pkg.b\nimport m0\n" + body(4))
    work.commit("Change what the first module imports")
    found = {}
    for state, depth in (("touched", 1), ("dependencies", 1), ("dependencies", 2), ("snapshot", 1)):
        kept, _ = mine(work.place, window=(0.5, 1.0), context=ContextOptions(state, depth))
        record = kept[-1]
        count = record["metadata"]["context_files"]
        old, new = ([file["path"] for file in record[side]["files"]] for side in ("old", "new"))
        assert old[len(old) - count :] == new[len(new) - count :] and record["metadata"]["state"] == state
        found[state, depth] = (record["patch"], set(old[len(old) - count :]))
    assert len({patch for patch, _ in found.values()}) == 1
    assert found["touched", 1][1] == set()
    assert found["dependencies", 1][1] == {"pkg/b.py", "pkg/c.py", "m0.py"}
    assert found["dependencies", 2][1] == found["dependencies", 1][1] | {"m1.py"}
    assert found["snapshot", 1][1] == found["dependencies", 2][1] | {"pkg/__init__.py", "pic.png", "notes.txt"}
    for limits, rule in (({"max_files": 3}, "state_files"), ({"max_bytes": 10}, "state_bytes")):
        _, rules = mine(work.place, window=(0.5, 1.0), context=ContextOptions("snapshot", **limits))
        assert rules[rule]
        kept, _ = mine(work.place, window=(0.5, 1.0), context=ContextOptions("dependencies", **limits))
        assert kept[-1]["metadata"]["context_files"] < 4


def test_files_without_text_in_a_snapshot(started):
    started.write("pic.png", b"\0\1")
    started.write("notes.txt", b"caf\xe9\n")
    started.write("long.txt", "x" * 2000)
    started.commit("Add files without text")
    started.write("m0.py", body(5))
    started.commit("Change a module beside them")
    options = {"context": ContextOptions("snapshot"), "max_file_bytes": 1999, "window": (0.5, 1.0)}
    kept, _ = mine(started.place, **options)
    texts = {file["path"]: file["text"] for file in kept[-1]["old"]["files"]}
    assert [path for path, text in texts.items() if text is None] == ["long.txt", "notes.txt", "pic.png"]
    loose(started, started.git("rev-parse", "HEAD:m1.py").decode().strip()).unlink()
    _, rules = mine(started.place, **options)
    assert rules["missing_object"]


def test_digest_of_an_item_depends_on_its_part(started):
    (item,) = stages.open_repositories(stages.sources([str(started.place)]), Options(**ALL)).items
    first = next(iter(stages.transform(Options(**ALL))(item)))
    assert isinstance(first, Raw) and len(first.digest) == hashlib.sha256().digest_size
