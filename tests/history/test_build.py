"""A made history is the same everywhere, ends in the given files, and is made of code that parses."""

import ast
import sysconfig
from pathlib import Path

import pytest

from iqc.errors import IqcError
from iqc.history.build import Version, build_history, life
from iqc.history.git import Repository

STDLIB = Path(sysconfig.get_path("stdlib"))
C = "#include <a.h>\n\nstatic int x;\n\n/* of f */\nint f(int a)\n{\n\treturn a;\n}\n\nchar *g(void) { return 0; }\n"


@pytest.fixture(scope="module")
def files():
    paths = [path for room in ("json", "concurrent/futures") for path in sorted((STDLIB / room).glob("*.py"))]
    found = [(str(path.relative_to(STDLIB)), path.read_text(encoding="utf-8")) for path in paths]
    tests = "import json\n\n\ndef test_a():\n    assert json\n\n\ndef test_b():\n    assert json.loads('1') == 1\n"
    return [*found, ("tests/test_json.py", tests), ("src/f.c", C), ("README.md", "# R\n"), ("é b.py", "")]


def replay(versions):
    state = {}
    for version in versions:
        for path, content in version.files.items():
            if content is None:
                del state[path]
            else:
                assert state.get(path) != content, version.message
                state[path] = content
        yield version, dict(state)


@pytest.mark.parametrize("commits", [20, 60, 1000])
def test_a_life_ends_in_the_files_and_every_python_state_parses(files, commits):
    versions = life(files, commits)
    if commits < 1000:
        assert len(versions) <= commits + 3 * len(files)
    for version, state in replay(versions):
        for path in version.files:
            if path.endswith(".py") and path in state:
                ast.parse(state[path])
    assert state == {path: text.encode() for path, text in files}


def test_the_messages_say_what_the_commits_do(files):
    versions = life(files, 1000)
    subjects = [version.message.strip() for version in versions]
    assert len(versions) > 80
    assert "Add loads to json" in subjects and "Document loads in json" in subjects
    assert {"Add f to src/f.c", "Add g to src/f.c"} <= {subject.replace("old_", "") for subject in subjects}
    for (version, state), (_, before) in zip(list(replay(versions))[1:], replay(versions)):
        verb, *_ = version.message.split()
        (path,) = [path for path, content in version.files.items() if content is not None]
        if verb == "Move":
            assert set(before) - set(state) and state[path] in before.values()
        else:
            assert verb in ("Add", "Document") and len(state[path]) > len(before.get(path, b"")) - (path == "é b.py")
    assert any(subject.startswith("Move ") for subject in subjects)
    assert subjects.index("Add tests in tests.test_json") > len(subjects) / 2


def test_same_input_same_commits(files, tmp_path):
    one = build_history(tmp_path / "one", life(files, 60))
    two = build_history(tmp_path / "two", life(list(files), 60))
    assert one == two != build_history(tmp_path / "three", life(files, 60, seed=1))
    with Repository(tmp_path / "one") as repository:
        commits = list(repository.log(one))
    assert [commit.message for commit in commits] == [version.message.strip() for version in life(files, 60)]
    assert commits[1].time - commits[0].time == 86_400


def test_versions_of_every_kind(work, tmp_path):
    versions = [
        Version("one", {"a b/c.py": "x\n", 'q"uo\\te': b"\0\xff", "link": "a b/c.py"}, {"link": "120000"}),
        Version("two\n\nwith body", {"a b/c.py": None, "a b": "now a file\r\n"}, {"a b": "100755"}),
        Version("three", {}),
    ]
    build_history(tmp_path / "made", versions)
    work.git("clone", "-q", str(tmp_path / "made"), "clone")
    clone = work.place / "clone"
    assert (clone / "a b").read_bytes() == b"now a file\r\n" and (clone / "a b").stat().st_mode & 0o100
    assert (clone / 'q"uo\\te').read_bytes() == b"\0\xff" and (clone / "link").is_symlink()
    assert work.git("-C", "clone", "log", "--format=%B") == b"three\ntwo\n\nwith body\none\n"
    work.git("-C", "clone", "fsck", "--strict")


def test_a_place_that_is_taken_and_an_empty_history(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IqcError, match="not empty"):
        build_history(tmp_path, [Version("one", {"a": "1"})])
    with pytest.raises(IqcError, match="at least one version"):
        build_history(tmp_path / "new", [])
    with pytest.raises(IqcError, match="twice"):
        life([("a", "1"), ("a", "2")])
