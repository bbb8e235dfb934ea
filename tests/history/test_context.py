"""The state that follows the diffs against one read anew from the tree, in random histories, whole and damaged."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iqc.history.build import Version, build_history
from iqc.history.context import State, wanted
from iqc.history.git import MissingObject, Repository
from iqc.history.listing import Listing

MAX_BYTES = 120
PATHS = [
    "a.py",
    "b.py",
    "d/a.py",
    "d/e/c.c",
    "ü ber.py",
    'q"uote.py',
    "new\nline.py",
    "vendor/x.py",
    "yarn.lock",
    "README.md",
]
LINES = [
    "alpha\n",
    "beta gamma\n",
    "parseHTTPName(x)\n",
    "\n",
    "größe = 1\r\n",
    "-- minus\n",
    "++ plus\n",
    "x" * 50 + "\n",
]

text = st.tuples(st.lists(st.sampled_from(LINES), max_size=6), st.sampled_from(["", "last", "last\r"])).map(
    lambda parts: "".join(parts[0]).encode() + parts[1].encode()
)
content = st.one_of(text, text, text, st.sampled_from([b"", b"\0binary\n", b"caf\xe9 \xff\n", b"alpha\n" * 40]))
edit = st.one_of(
    st.tuples(
        st.just("write"), st.sampled_from(PATHS), content, st.sampled_from(["100644", "100644", "100755", "120000"])
    ),
    st.tuples(st.just("delete"), st.sampled_from(PATHS)),
    st.tuples(st.just("move"), st.sampled_from(PATHS), st.sampled_from(PATHS)),
    st.tuples(st.just("append"), st.sampled_from(PATHS), text),
)
history = st.lists(st.lists(edit, min_size=1, max_size=4), min_size=1, max_size=10)


def versions(steps):
    """The edits, played: what fast-import is told, and what it then has."""
    now, modes, out = {}, {}, []
    for number, edits in enumerate(steps):
        before, old_modes = dict(now), dict(modes)
        for what, path, *rest in edits:
            if what == "write":
                now[path], modes[path] = rest
            elif path not in now:
                continue
            elif what == "append":
                now[path] += rest[0]
            elif what == "delete":
                del now[path], modes[path]
            elif rest[0] != path:
                now[rest[0]], modes[rest[0]] = now.pop(path), modes.pop(path)
        changed = {path: now.get(path) for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
        changed |= {path: now[path] for path in now if old_modes.get(path) != modes[path]}
        changed = {path: changed[path] for path in sorted(changed)}
        out.append(Version(f"Change {number}", changed, {path: modes[path] for path in changed if path in modes}))
    return out


def state(repository, limit=1000):
    return State(repository, MAX_BYTES, Listing(limit))


def described(state):
    """Everything that a state knows, by path."""
    return (
        {path: (file.path, file.mode, file.oid, file.size) for path, file in state.files.items()},
        {word: {file.path: n for file, n in posting.items()} for word, posting in state.index._postings.items()},
        {file.path: n for file, n in state.index._sizes.items()},
        state.index._total,
        state.listing.entries(),
        [(file.path, score) for file, score in state.index.top(["alpha", "name", "last", "x"], 5)],
    )


def follow(repository, moving):
    """Each commit, after the state has followed it."""
    for commit in repository.log(repository.head):
        diff = None
        if commit.parents:
            try:
                diff = repository.diff(commit.parents[0], commit.id)
            except MissingObject:
                pass
        moving.advance(commit, diff)
        yield commit


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history)
def test_a_state_that_follows_is_one_read_anew(steps):
    with tempfile.TemporaryDirectory() as place:
        build_history(f"{place}/r.git", versions(steps))
        with Repository(f"{place}/r.git") as repository:
            moving, back = state(repository), state(repository)
            line = []
            for commit in follow(repository, moving):
                line.append(commit.id)
                anew = state(repository)
                anew.synchronise(commit.id)
                assert described(moving) == described(anew)
            for oid in [line[-1], line[0], line[len(line) // 2]]:  # from any state to any other
                back.synchronise(oid)
                anew = state(repository)
                anew.synchronise(oid)
                assert described(back) == described(anew)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history, st.randoms(use_true_random=False))
def test_missing_blobs_do_not_corrupt_the_index(steps, random):
    with tempfile.TemporaryDirectory() as place:
        build_history(f"{place}/r.git", versions(steps))
        with Repository(f"{place}/r.git") as repository:
            blobs = sorted({c.new for commit in repository.log(repository.head) for c in commit.changes} - {"0" * 40})
        for oid in blobs:
            if random.random() < 0.3:
                (Path(place) / "r.git/objects" / oid[:2] / oid[2:]).unlink()
        with Repository(f"{place}/r.git") as repository:
            moving = state(repository)
            for commit in follow(repository, moving):
                anew = state(repository)
                anew.synchronise(commit.id)
                assert described(moving) == described(anew)


def test_a_path_that_is_not_utf8_is_left_out_and_may_become_one(work):
    work.write("a.py", "alpha beta gamma\n" * 5)
    work.write(b"\xe9.py".decode(errors="surrogateescape"), "delta\n")
    work.commit("one")
    (work.place / b"\xe9.py".decode(errors="surrogateescape")).rename(work.place / "e.py")
    (work.place / "a.py").rename(work.place / b"\xe8.py".decode(errors="surrogateescape"))
    work.commit("two")
    with Repository(work.place) as repository:
        moving, seen = state(repository), []
        for commit in follow(repository, moving):
            anew = state(repository)
            anew.synchronise(commit.id)
            assert described(moving) == described(anew)
            seen.append(sorted(moving.files))
    assert seen == [["a.py"], ["e.py"]]


def test_a_rename_moves_no_words(work, monkeypatch):
    work.write("a.py", "alpha\n" * 10)
    work.commit("one")
    (work.place / "a.py").rename(work.place / "b.py")
    work.commit("two")
    with Repository(work.place) as repository:
        moving = state(repository)
        line = follow(repository, moving)
        next(line)
        monkeypatch.setattr(Repository, "blobs", lambda *_: iter(()))  # nothing is read again
        next(line)
    assert [file.path for file in moving.top("alpha", 5, [])] == ["b.py"]


def test_what_the_index_holds():
    assert wanted("src/a.py") and wanted("README") and wanted("distance/a.py")
    for path in ("vendor/a.py", "a/node_modules/b.js", "yarn.lock", "x_pb2.py", "web/app.min.js"):
        assert not wanted(path)


paths = st.lists(st.lists(st.sampled_from(["a", "b", "a-b", "ab", "c.py"]), min_size=1, max_size=4), max_size=30).map(
    lambda found: [
        path
        for path in dict.fromkeys("/".join(parts) for parts in found)
        if not any(other != path and other.startswith(path + "/") for other in ("/".join(parts) for parts in found))
    ]
)


@given(paths, st.sets(st.integers(0, 29)), st.integers(1, 40))
def test_a_listing_is_the_deepest_that_fits(names, gone, limit):
    listing = Listing(limit)
    for path in names:
        listing.add(path)
        listing.entries()
    for number in gone:
        if number < len(names):
            listing.remove(names[number])
            listing.remove(names[number])
    left = [path for number, path in enumerate(names) if number not in gone]

    def to_depth(depth):
        parts = [path.split("/") for path in left]
        return sorted({"/".join(p) if len(p) <= depth else "/".join(p[:depth]) + "/" for p in parts})

    deep = [to_depth(depth) for depth in range(4, 0, -1)]
    assert listing.entries() == next((entries for entries in deep if len(entries) <= limit), deep[-1][:limit])


@pytest.mark.parametrize("path", ["a", "a/b", "../x", "/abs/x", "a//b", ""])
def test_any_path_may_come_and_go(path):
    listing = Listing(10)
    listing.add(path)
    assert listing.entries() == [path]
    listing.remove("a/b/c")
    listing.remove(path)
    assert listing.entries() == [] and listing.root == {}


def literal(work, *entries):
    """A tree that Git itself would not make: mode, name, object."""
    data = b"".join(f"{mode} {name}".encode() + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)
    return work.git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", stdin=data).decode().strip()


def test_trees_that_git_would_not_make(work):
    """Names twice, names that leave the tree: whatever the state takes of them, what follows is right again."""

    def blob(text):
        return work.git("hash-object", "-w", "--stdin", stdin=text.encode()).decode().strip()

    one, two = blob("alpha\n"), blob("alpha\nbeta\n")
    inner = literal(work, ("100644", "e.py", one))
    good = literal(work, ("100644", "a.py", one), ("100644", "dup.py", two))
    trees = [
        good,
        literal(work, ("100644", "a.py", one), ("100644", "dup.py", one), ("100644", "dup.py", two)),
        literal(work, ("100644", "a.py", two), ("100644", "dup.py", two)),
        literal(work, ("40000", "..", inner), ("40000", ".git", inner), ("100644", "a.py", one)),
        good,
    ]
    parent = []
    for tree in trees:
        parent = ["-p", work.git("commit-tree", tree, *parent, "-m", "x").decode().strip()]
    work.git("update-ref", "HEAD", parent[1])
    with Repository(work.place) as repository:
        moving = state(repository)
        for commit in repository.log(repository.head):
            before = commit.parents[0] if commit.parents else ""
            if moving.commit != before:
                moving.synchronise(before)
            if not commit.damage:
                diff = repository.diff(commit.parents[0], commit.id) if commit.parents else None
                moving.advance(commit, diff)
        anew = state(repository)
        anew.synchronise(repository.head)
        assert described(moving) == described(anew)
        assert sorted(moving.files) == ["a.py", "dup.py"]


def test_a_diff_that_does_not_fit_loses_the_state_not_the_run(work):
    work.write("a.py", "alpha\n")
    first = work.commit("one")
    work.write("a.py", "beta\n")
    work.commit("two")
    with Repository(work.place) as repository:
        line = list(repository.log(repository.head))
        moving = state(repository)
        moving.synchronise(first)
        moving.advance(line[1], repository.diff(first, line[1].id).replace(b"-alpha", b"-other"))
        assert moving.commit == "" and not moving.files
        moving.synchronise(line[1].id)
        anew = state(repository)
        anew.synchronise(line[1].id)
        assert described(moving) == described(anew)
