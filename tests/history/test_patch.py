"""The in-process application agrees with Git on any pair of states, and refuses what does not fit."""

from time import process_time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iqc.history.patch import PatchError, apply_patch, unquote, without

LINE = st.sampled_from(
    ["a\n", "b\n", "  c\n", "\n", "x\r\n", "-- y\n", "++ z\n", "@@ -1 +1 @@\n", "diff --git a b\n", "é\n"]
)
TEXT = st.tuples(st.lists(LINE, max_size=25), st.sampled_from(["", "end", "\\ No newline", "\r"])).map(
    lambda pair: "".join(pair[0]) + pair[1]
)
NAME = st.sampled_from(["a.py", "b c.txt", "d/e.py", 'q"uote', "tab\there", "ü.c", "a b/c", "back\\slash"])
STATE = st.dictionaries(NAME, st.tuples(st.sampled_from(["100644", "100755"]), TEXT), max_size=4)


@pytest.fixture
def diff(work):
    """The diff that Git makes of two states, by trees, without a working tree."""

    def tree(state):
        lines = []
        for path, (mode, text) in sorted(state.items()):
            oid = work.git("hash-object", "-w", "--stdin", stdin=text.encode()).decode().strip()
            lines.append(f"{mode} {oid}\t{path}\0")
        work.git("read-tree", "--empty")
        work.git("update-index", "-z", "--index-info", stdin="".join(lines).encode())
        return work.git("write-tree").decode().strip()

    def of(old, new):
        return work.git("-c", "core.quotePath=false", "diff-tree", "-r", "-p", "-M", tree(old), tree(new)).decode()

    return of


@given(STATE, STATE)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_patch_of_two_states_gives_the_second(diff, old, new):
    assert apply_patch(old, diff(old, new)) == new


def test_a_rename_with_changes_and_modes(diff):
    text = "".join(f"line {k}\n" for k in range(40))
    old = {"a/old name.py": ("100644", text), "gone.py": ("100644", "x\n"), "empty": ("100644", "")}
    new = {"b/new.py": ("100755", text.replace("line 7\n", "seven\n")), "link": ("120000", "b/new.py")}
    patch = diff(old, new)
    assert "rename from a/old name.py" in patch
    assert apply_patch(old, patch) == new
    assert apply_patch(new | {"other": ("100644", "z")}, diff(new, old)) == old | {"other": ("100644", "z")}
    rest = without(patch, {"b/new.py"})
    assert apply_patch(old, rest) == {"a/old name.py": old["a/old name.py"], "link": new["link"]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda old, patch: ({**old, "a.py": ("100644", "other\n" * 9)}, patch),  # another text
        lambda old, patch: ({**old, "a.py": ("100644", "new\n" + old["a.py"][1])}, patch),  # shifted by a line
        lambda old, patch: ({}, patch),
        lambda old, patch: (old, patch[: -len("l8\n") - 1]),
        lambda old, patch: (old, patch.removesuffix("\n")),
        lambda old, patch: (old, patch.replace("@@ -", "@@ ~")),
        lambda old, patch: (old, patch.replace("diff --git", "patch", 1)),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(diff, spoil):
    old = {"a.py": ("100644", "".join(f"l{k}\n" for k in range(9)))}
    new = {"a.py": ("100644", old["a.py"][1].replace("l5\n", "five\n"))}
    patch = diff(old, new)
    assert apply_patch(old, patch) == new
    with pytest.raises(PatchError):
        apply_patch(*spoil(old, patch))


def test_a_file_of_equal_lines_takes_linear_time():
    text, gone = "a\n" * 200_000, 12_000
    first = 200_000 - gone - 2
    patch = f"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -{first},{gone + 3} +{first},3 @@\n"
    patch += " a\n" * 3 + "-a\n" * gone
    started = process_time()
    assert apply_patch({"x": ("100644", text)}, patch) == {"x": ("100644", "a\n" * (200_000 - gone))}
    hunks = "".join(f"@@ -{k},1 +{k},1 @@\n-a\n+b\n" for k in range(2, 200_000, 20))
    changed = apply_patch({"x": ("100644", text)}, "diff --git a/x b/x\n--- a/x\n+++ b/x\n" + hunks)["x"][1]
    assert changed.count("b") == 10_000 and changed.startswith("a\nb\n")
    assert process_time() - started < 2


def test_names_are_unquoted_as_git_quotes_them(work):
    names = ['a"b', "tab\t", "back\\slash", "bell\a", "nl\n"]
    for name in names:
        work.write(name, "x")
    work.commit("c")
    shown = work.git("-c", "core.quotePath=false", "ls-files").decode().splitlines()
    assert sorted(map(unquote, shown)) == sorted(names)
