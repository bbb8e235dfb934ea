"""What states hold beside the files that a change touches."""

from iqc.history.states import ContextOptions


def test_states_with_more_than_the_touched_files(started, mine, body):
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


def test_files_without_text_in_a_snapshot(started, mine, body, loose):
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
