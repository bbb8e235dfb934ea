"""Commits with what the repository was before them: the context against Git's own account of the parent."""

import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from iqc.bm25 import Index, words
from iqc.errors import IqcError
from iqc.history.build import Version, build_history, life
from iqc.history.commits import Options, commits
from iqc.history.git import Repository
from iqc.history.life import Line, cut
from iqc.streams.stage import Dropped

STDLIB = Path(sysconfig.get_path("stdlib"))


def split(items):
    items = list(items)
    return [i for i in items if not isinstance(i, Dropped)], [i for i in items if isinstance(i, Dropped)]


def show(place, *arguments):
    return subprocess.run(["git", "-C", place, *arguments], capture_output=True, check=True).stdout.decode()


@pytest.fixture
def made(tmp_path):
    files = [(f"json/{path.name}", path.read_text(encoding="utf-8")) for path in sorted((STDLIB / "json").glob("*.py"))]
    files += [("README.md", "# Encoder and decoder\n"), ("docs/guide.md", "How to scan strings.\n")]
    build_history(tmp_path / "json.git", life(files, 60))
    return tmp_path / "json.git"


def test_a_record_is_a_change_and_the_state_before_it(made, git_apply, state):
    kept, dropped = split(commits(made, Options(tree_entries=4)))
    assert len(kept) > 30 and {item.rule for item in dropped} <= {"commits.root", "commits.formatting"}
    line = show(made, "rev-list", "--first-parent", "--reverse", "HEAD").split()
    for record in kept:
        parent = show(made, "rev-parse", f"{record['new']['commit']}^").strip()
        assert record["old"]["commit"] == parent and record["id"] == f"json@{record['new']['commit'][:12]}"
        assert record["messages"] == [show(made, "log", "-1", "--format=%B", record["new"]["commit"]).strip()]
        assert record["metadata"]["percentile"] == round(line.index(record["new"]["commit"]) / (len(line) - 1), 4)
        assert git_apply(record) == state(record["new"]) != state(record["old"])
        texts = {
            path: show(made, "show", f"{parent}:{path}")
            for path in show(made, "ls-tree", "-r", "--name-only", parent).split("\n")[:-1]
        }
        context = record["context"]
        readme = {"path": "README.md", "text": texts["README.md"]} if "README.md" in texts else None
        assert context["readme"] == readme
        cut = sorted({path.partition("/")[0] + ("/" if "/" in path else "") for path in texts})
        assert context["tree"] == (sorted(texts) if len(texts) <= 4 else cut)
        index = Index()
        for path, text in texts.items():
            index.add(path, Counter(words(text)))
        best = index.top(words(record["messages"][0]), 5, skip={"README.md"})
        assert [file["path"] for file in context["files"]] == [path for path, _ in best]
        assert all(file["text"] == texts[file["path"]] for file in context["files"])
        changed = {file["path"] for file in record["old"]["files"]}
        assert record["metadata"]["changed_found"] == len(changed & {path for path, _ in best})
    assert sum(record["metadata"]["changed_found"] for record in kept) > len(kept) / 2  # the search finds something


def test_options_of_the_context(made):
    whole, _ = split(commits(made))
    without, _ = split(commits(made, Options(context=False)))
    assert without == [
        {k: v for k, v in record.items() if k != "context"}
        | {"metadata": {k: v for k, v in record["metadata"].items() if not k.startswith(("changed_", "context_"))}}
        for record in whole
    ]
    dropped, _ = split(commits(made, Options(changed="drop")))
    for record in dropped:
        changed = {file["path"] for file in record["old"]["files"]}
        assert changed.isdisjoint(file["path"] for file in record["context"]["files"])
        assert record["metadata"]["context_changed"] == "drop" and record["metadata"]["changed_found"] == 0
    short, _ = split(commits(made, Options(context_files=1, file_chars=100, readme_chars=0)))
    for record, full in zip(short, whole):
        assert record["context"]["readme"] is None and len(record["context"]["files"]) <= 1
        for file, uncut in zip(record["context"]["files"], full["context"]["files"]):
            assert uncut["text"].startswith(file["text"]) and len(file["text"]) <= 100
            assert file["text"].endswith("\n") or "\n" not in uncut["text"][:100]


@pytest.mark.parametrize("order", [1, -1])
def test_sections_are_the_whole(made, order):
    """Whatever the order, whether the state comes from the section before or from elsewhere."""
    whole = list(commits(made))
    with Repository(made) as repository:
        count = repository.count()
        line = Line(count, 0, count - 1)
        sections = list(cut(repository, line, [(k, min(k + 9, count - 1)) for k in range(0, count, 10)]))
    states, found = {}, {}
    for section in sections[::order]:
        found[section.start] = list(commits(made, Options(), section, states))
    assert [item for start in sorted(found) for item in found[start]] == whole
    window, _ = split(commits(made, Options(window=(0.5, 0.75))))
    assert window == [r for r in split(whole)[0] if 0.5 <= r["metadata"]["percentile"] <= 0.75]


def body(k, n=30):
    return "".join(f"def f{k}_{i}(x):\n    return x + {i}\n\n\n" for i in range(n))


@pytest.mark.parametrize(
    ("rule", "files", "message", "options"),
    [
        ("revert", {"a.py": body(1)}, 'Revert "Add a module"', {}),
        ("subject_chars", {"a.py": body(1)}, "A b c d e", {}),
        ("subject_words", {"a.py": body(1)}, "Rewrite everything", {}),
        ("subject", {"a.py": body(1)}, "Bump the version of all", {}),
        ("encoding", {"a.py": b"x = '\xe9'\n"}, "Add a Latin file", {}),
        ("encodings", {"a.py": "x = 'é'\n", "b.py": b"# coding: latin-1\n'\xe9'\n"}, "Add two files here", {}),
        ("file_bytes", {"a.py": "x" * 2000}, "Add a large file", {"max_file_bytes": 1999}),
        ("patch_bytes", {"a.py": "x" * 2000}, "Add a large file", {"max_patch_bytes": 1999}),
        ("files", {"a.py": "x\n", "b.py": "y\n"}, "Add two files here", {"max_files": 1}),
        ("vendored", {"vendor/a.py": body(1)}, "Add a library of others", {}),
        ("lock", {"yarn.lock": "x\n"}, "Lock the versions of all", {}),
        ("generated", {"a_pb2.py": body(1)}, "Add what was generated", {}),
        ("formatting", {"first.py": "\n\n" + body(0)}, "Format the first module", {}),
        ("empty", {}, "Nothing changes in this commit", {}),
        ("path_encoding", {b"\xe9.py": body(1)}, "Add an odd name", {}),
    ],
)
def test_a_commit_is_dropped_by_its_rule(work, rule, files, message, options):
    work.write("first.py", body(0))
    work.commit("Add the first module of all")
    for path, content in files.items():
        work.write(path if isinstance(path, str) else path.decode(errors="surrogateescape"), content)
    last = work.commit(message)
    kept, dropped = split(commits(work.place, Options(**options)))
    assert kept == [] and [item.rule for item in dropped] == ["commits.root", f"commits.{rule}"]
    assert dropped[1].record["new"]["commit"] == last
    if rule in ("file_bytes", "patch_bytes", "files"):
        assert dropped[1].value > dropped[1].threshold
    if rule == "subject_words":
        assert dropped[1].value == 2 <= dropped[1].threshold[0]


@pytest.mark.parametrize(
    ("author", "bot"),
    [
        ("dependabot[bot] <49699333+dependabot[bot]@users.noreply.github.com>", True),
        ("renovate-bot <bot@renovateapp.com>", True),
        ("pre-commit-ci <x@example.org>", True),
        ("Robot Chen <abbot@example.org>", False),
        ("Dependable Bottomley <d@example.org>", False),
    ],
)
def test_bots_write_no_examples(work, author, bot):
    work.write("a.py", body(0))
    work.commit("Add the first module of all")
    work.write("a.py", body(1))
    work.git("add", "-A")
    work.git("commit", "-q", "-m", "Change the module of all", f"--author={author}")
    _, dropped = split(commits(work.place, Options(context=False)))
    assert [item.rule for item in dropped[1:]] == (["commits.bot"] if bot else [])


def test_merges_and_missing_objects(work, git_apply, state):
    work.write("README.rst", "The readme\n")
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
    work.write("gone.py", body(9))
    work.commit("Add a module that is lost")
    work.write("gone.py", body(10))
    work.commit("Change the module that is lost")
    work.write("m0.py", body(11))
    work.commit("Change the first of the modules")
    tree = work.git("rev-parse", "HEAD^{tree}").decode().strip()
    work.write("m1.py", body(12))
    work.commit("Change the second of the modules")
    work.write("m2.py", body(13))
    work.commit("Change the third of the modules")
    for oid in (work.git("rev-parse", "HEAD~3:gone.py").decode().strip(), tree):
        (work.place / ".git/objects" / oid[:2] / oid[2:]).unlink()
    kept, dropped = split(commits(work.place))
    rules = Counter(item.rule for item in dropped)
    assert rules == {"commits.root": 1, "commits.sync_merge": 1, "commits.missing_object": 1, "commits.damaged": 2}
    subjects = [record["messages"][0].split("\n")[-1] for record in kept]
    added = [f"Add the {what}" for what in ("module number 1", "module number 2", "side module")]
    assert subjects == [*added, "Add a module that is lost", "Change the third of the modules"]
    for record in kept:
        assert git_apply(record) == state(record["new"])
    assert kept[2]["metadata"]["merge"] and kept[2]["context"]["readme"]["path"] == "README.rst"
    assert kept[-1]["context"]["tree"] == ["README.rst", "gone.py", "m0.py", "m1.py", "m2.py", "other.py", "side.py"]


def test_ten_thousand_files_and_a_message_of_control_characters(tmp_path):
    odd = "Set the value\x1b[31m \x02of \x7fd7 \u202eneedle"
    files = {f"d{k}/f{i}.py": f"value_{k}_{i} = {k}\n" for k in range(100) for i in range(100)}
    versions = [
        Version("Add the first module of all", files),
        Version(odd, {"d7/f8.py": "value_7_8 = 'needle'\n"}),
        Version("Replace the needle by other", {"d7/f8.py": "value_7_8 = 'other'\n"}),
    ]
    build_history(tmp_path / "large.git", versions)
    kept, _ = split(commits(tmp_path / "large.git"))
    assert kept[0]["messages"] == [odd]
    assert kept[1]["context"]["tree"] == sorted(f"d{k}/" for k in range(100))
    assert kept[1]["context"]["files"][0]["path"] == "d7/f8.py"


def test_what_has_no_commits_is_an_error_by_name(work, tmp_path):
    with pytest.raises(IqcError, match="not a Git repository"):
        list(commits(tmp_path / "nothing"))
    with pytest.raises(IqcError, match="no commit"):
        list(commits(work.place))
    work.write("a", "1")
    work.commit("one")
    assert [item.rule for item in commits(work.place)] == ["commits.root"]


@pytest.mark.parametrize("options", [{"window": (0.8, 0.4)}, {"changed": "perhaps"}])
def test_wrong_options(options):
    with pytest.raises(IqcError):
        Options(**options)


def test_a_change_of_hundreds_of_megabytes_costs_no_memory(work, monkeypatch):
    """Its diff is given up; the index follows by the tree, and the commits around it are whole."""
    monkeypatch.setattr("iqc.history.git._DIFF_BYTES", 100_000)
    work.write("a.py", body(0))
    work.commit("Add the first module of all")
    work.write("data/huge.txt", "needle in a line\n" * 100_000)
    work.write("b.py", body(1) + "# thread\n")
    work.commit("Add some data and a module")
    work.write("b.py", body(2))
    work.commit("Change the module of the thread needle")
    work.write("data/huge.txt", "other\n")
    work.commit("Replace the data of the needle")
    work.write("a.py", body(3))
    work.commit("Change the first module of the other")
    kept, dropped = split(commits(work.place, Options(max_file_bytes=10**7)))
    assert [item.rule for item in dropped] == ["commits.root", "commits.patch_bytes", "commits.patch_bytes"]
    assert [file["path"] for file in kept[0]["context"]["files"]] == ["b.py"]
    assert "data/huge.txt" in kept[0]["context"]["tree"]
    assert [file["path"] for file in kept[1]["context"]["files"]] == ["data/huge.txt"]


def test_large_changes_are_not_compared(work, monkeypatch):
    """Git is not asked for the diff of what no record can hold; the index follows by reading the files."""
    monkeypatch.setattr("iqc.history.change._COMPARED_BYTES", 10_000)
    monkeypatch.setattr("iqc.history.change._COMPARED_FILES", 5)
    compared = []
    diffs = Repository.diffs
    monkeypatch.setattr(Repository, "diffs", lambda self, pairs: compared.extend(pairs) or diffs(self, pairs))
    work.write("a.py", body(0))
    work.commit("Add the first module of all")
    work.write("one.txt", "needle in a line\n" * 400)
    work.write("two.txt", "needle in a line\n" * 400)
    work.commit("Add two files of data")
    work.write("large.txt", "needle in a line\n" * 1000)
    work.commit("Add a large file of data")
    for k in range(6):
        work.write(f"m{k}.py", f"thread = {k}\n")
    work.commit("Add six modules of thread")
    work.write("a.py", body(3))
    last = work.commit("Change the first module of needle and thread")
    kept, dropped = split(commits(work.place, Options(max_file_bytes=12_000, context_files=9)))
    found = [(item.rule, item.value, item.threshold) for item in dropped[1:]]
    assert found == [
        ("commits.change_bytes", 13_600, 10_000),
        ("commits.file_bytes", 17_000, 12_000),
        ("commits.files", 6, 5),
    ]
    assert [new for _, new in compared] == [last]
    shown = sorted(file["path"] for file in kept[0]["context"]["files"])
    assert shown == [*(f"m{k}.py" for k in range(6)), "one.txt", "two.txt"]


def test_people_are_not_in_messages(work):
    work.write("a.py", body(0))
    work.commit("Add the first module of all")
    work.write("a.py", body(1))
    work.commit(
        "Change it as dave@corp.example.com asked\n\nText.\n\nCo-authored-by: D <d@e.org>\nSigned-off-by: E <e@f.org>"
    )
    kept, _ = split(commits(work.place))
    assert kept[0]["messages"] == ["Change it as user@example.org asked\n\nText."]
