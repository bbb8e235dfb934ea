"""What may stand in front of a sample: the rules on generated repositories, and what is found in a small one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.dedup.documents import THRESHOLD
from iqc.dedup.minhash import jaccard, shingles
from iqc.fim.snippets import LEAST_MIDDLE, Snippets


def file(path, text, lang="python"):
    return {"path": path, "text": text, "lang": lang}


def function(name, *called):
    return f"def {name}(self, value):\n" + "".join(f"    {call}(value)\n" for call in called) + "    return value\n"


PARSER = function("parse_header", "read_line", "split_fields", "check_magic")
USER = function("load_header", "open_file", "read_line", "split_fields")
OTHER = function("draw_window", "paint", "refresh_screen")

line = st.sampled_from(
    ["", "import os", "value = read_header(path)", "for k in range(10):", "    total += weights[k] * k", "return total",
     "class Reader(Base):", "    def read_header(self, path):", "x", "}", "# a long comment about the header's bytes"]
)  # fmt: skip
body = st.lists(line, max_size=30).map("\n".join)


@given(st.lists(body, min_size=1, max_size=6), st.data())
@settings(max_examples=200)
def test_the_rules_hold_in_any_repository(texts, data):
    files = [file(f"{number}.py", text) for number, text in enumerate(texts)]
    lines, budget = data.draw(st.integers(2, 12)), data.draw(st.integers(20, 400))
    snippets = Snippets(files, budget=budget, lines=lines)
    own = data.draw(st.integers(0, len(files) - 1))
    start, end = sorted((data.draw(st.integers(0, len(texts[own]))), data.draw(st.integers(0, len(texts[own])))))
    parts = texts[own][:start], texts[own][start:end], texts[own][end:]
    found = snippets.similar(own, *parts)
    assert found == Snippets(files, budget=budget, lines=lines).similar(own, *parts)  # nothing is left of the last call
    if isinstance(found, str):
        return
    assert 0 < sum(len(s["path"]) + len(s["text"]) + 2 for s in found) <= budget
    taken = set()
    for snippet in found:
        number = int(snippet["path"].removesuffix(".py"))
        rows = range(snippet["line"] - 1, snippet["line"] + snippet["text"].count("\n"))
        assert number != own and len(rows) <= lines
        assert snippet["text"] == "\n".join(texts[number].split("\n")[rows.start : rows.stop])
        assert texts[number] != texts[own]
        assert jaccard(shingles(texts[number]), shingles(texts[own])) < THRESHOLD
        if len(parts[1].strip()) >= LEAST_MIDDLE:
            assert " ".join(parts[1].split()) not in " ".join(snippet["text"].split())
        places = {(number, row) for row in rows}
        assert not taken & places
        taken |= places


def test_the_most_similar_stands_last():
    own = file("own.py", "def header(self):\n    magic = \n    fields = split_fields(read_line())\n    check_magic()\n")
    files = [file("parser.py", PARSER), own, file("window.py", OTHER), file("user.py", USER)]
    prefix, suffix = own["text"].split("magic = \n")
    found = Snippets(files).similar(1, f"{prefix}magic = ", "read_magic()", f"\n{suffix}")
    assert [snippet["path"] for snippet in found][-2:] == ["user.py", "parser.py"]


def test_the_middle_is_not_asked_for():
    own = file("own.py", "before = 1\n\nafter = 2\n")
    files = [own, file("a.py", "alpha = secret_name_of_the_middle\n"), file("b.py", "before = after\n")]
    found = Snippets(files).similar(0, "before = 1\n", "secret", "\nafter = 2\n")
    assert [snippet["path"] for snippet in found] == ["b.py"]


def test_a_near_duplicate_gives_nothing_and_neither_does_a_copy_of_the_middle():
    long = "\n".join(function(f"step_{k}", f"call_{k}", "read_line") for k in range(30))
    middle = "    call_7(value)\n    read_line(value)"
    prefix, suffix = long.split(middle)
    near = file("near.py", long.replace("step_3", "step_three"))
    assert Snippets([file("own.py", long), near]).similar(0, prefix, middle, suffix) == (
        "no snippet is similar and may be shown"
    )
    indented = "class K:\n    def step_7(self, value):\n        call_7(value)\n        read_line(value)\n\n" + OTHER
    files = [file("own.py", long), file("copy.py", indented), file("parser.py", PARSER)]
    found = Snippets(files).similar(0, prefix, middle, suffix)
    assert [snippet["path"] for snippet in found] == ["parser.py"]


def test_what_lies_in_the_middle_is_a_copy_too():
    copied = function("a_long_function", *(f"call_{k}" for k in range(40)))
    own = f"{OTHER}\n{copied}\n{USER}"
    around = "\n".join(function(f"step_{k}", f"part_{k}", "read_line") for k in range(30))
    files = [file("own.py", own), file("other.py", f"{PARSER}\n{copied}\n{around}")]
    prefix, suffix = own.split(copied)
    found = Snippets(files, lines=6).similar(0, prefix, copied, suffix)
    shown = "\n".join(snippet["text"] for snippet in found)
    assert not any("\n".join(copied.split("\n")[k : k + 6]) in shown for k in range(36))


def test_a_middle_of_fewer_than_20_characters_may_be_shown():
    files = [file("own.py", "a = read_line(1)\nb = 2\n"), file("b.py", "c = read_line(1)\n")]
    found = Snippets(files).similar(0, "a = ", "read_line(1)", "\nb = 2\n")
    assert isinstance(found, str)  # nothing else is asked for
    found = Snippets([*files, file("c.py", "a = read_line(1)\nd = 4\n")]).similar(
        0, "a = ", "read_line(1)", "\nb = 2\n"
    )
    assert [snippet["path"] for snippet in found] == ["c.py"]


def test_files_that_give_no_snippets():
    own = file("own.py", PARSER)
    for other in (
        file("own.py", USER),  # the same path
        file("data.json", '{"parse_header": "read_line"}\n', "json"),
        file("README.md", "parse_header: read_line\n", "markdown"),
        file("notes", "parse_header read_line\n", None),
        file("long.py", "read_line " * 200_000),
        file("wide.py", "read_line " * 2_000),  # a line over the budget
        file("empty.py", "\n \n"),
        {"path": "picture.py", "text": None, "lang": None},
    ):
        assert Snippets([own, other]).similar(0, "", "def", PARSER[3:]) == "no other file of code in the repository"


def test_a_language_by_another_name_is_known():
    files = [file("own.py", PARSER), file("user", USER, "Python"), file("window.cpp", OTHER, "C++")]
    found = Snippets(files).similar(0, "", "def", PARSER[3:])
    assert {snippet["path"] for snippet in found} == {"user", "window.cpp"}


def test_a_hole_with_nothing_around_it_finds_nothing():
    assert isinstance(Snippets([file("a.py", "x = 1"), file("b.py", PARSER)]).similar(0, "", "x = 1", ""), str)
