"""What does not parse is measured in bytes; nodes of a level are what the source says."""

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.syntax import parse as module
from iqc.syntax.languages import language, languages
from iqc.syntax.parse import error_share, nodes, parse

STDLIB = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:30]


def texts(source, lang, level):
    return [node.text.decode() for node in nodes(parse(source, lang), lang, level)]


def test_good_files_have_no_error_bytes():
    assert [path.name for path in STDLIB if error_share(path.read_bytes(), "python") != 0] == []
    assert error_share("", "python") == 0


def test_prose_is_not_code_of_any_programming_language():
    prose = (
        "It's a long way, she said: (not) the shortest; and we'd better take the other road, which goes around the\n"
        'hill. Nobody knows "why" they built it there [see page 3], \'though some say that it was cheaper!\n'
    ) * 5
    passes = {row.name for row in languages().values() if error_share(prose, row.name) <= row.max_error_share}
    assert passes == {"php", "html", "markdown", "bash", "matlab"}  # text is content, or words are commands


def test_a_file_may_end_in_a_comment(samples):
    """Of a grammar whose scanner did not see the end of the file, this test does not return."""
    for lang, sample in samples.items():
        if comment := language(lang).comment:
            for start in ("", "b", "b "):
                assert error_share(f"{sample['source']}{start}{comment}a", lang) < 0.2


@given(st.text(max_size=200), st.sampled_from(sorted(languages())))
@settings(max_examples=300, deadline=None)
def test_the_share_is_a_share(text, lang):
    assert 0 <= error_share(text, lang) <= 1


def test_the_share_grows_with_the_damage():
    good = "def f(x):\n    return x + 1\n\n\n"
    shares = [error_share(good * (20 - bad) + ") ] = ! def class ( } 1x\n" * bad, "python") for bad in (0, 1, 5, 15)]
    assert shares == sorted(shares) and shares[0] == 0 < shares[1] < 0.1 < shares[3]


def test_a_missing_token_counts_as_one_byte():
    source = "int f(void) { return 1 }\n"
    assert error_share(source, "c") == pytest.approx(1 / len(source))


def test_code_inside_an_unbalanced_condition_still_counts_as_parsed():
    """Two alternative openings of one block: valid after the preprocessor, never balanced before it."""
    function = "int g%d(int a)\n{\n    if (a > 2)\n        return a * 3;\n    return 0;\n}\n\n"
    broken = "#ifdef A\nint f(int a) {\n#else\nint f(long a) {\n#endif\n    return 1;\n}\n\n"
    source = broken + "".join(function % k for k in range(10))
    assert parse(source, "c").root_node.has_error
    assert 0 < error_share(source, "c") < language("c").max_error_share


def test_nodes_of_each_level():
    source = "def f(a):\n    def g():\n        pass\n    return a.b + g(1)\n"
    assert [text.splitlines()[0] for text in texts(source, "python", "function")] == ["def f(a):", "def g():"]
    assert texts(source, "python", "statement") == ["return a.b + g(1)"]
    assert sorted(texts(source, "python", "expression")) == ["a.b", "a.b + g(1)", "g(1)"]


def test_nodes_with_errors_are_no_nodes():
    source = "def good():\n    return 1\n\ndef bad():\n    return (1 +\n"
    assert all("bad" not in text for text in texts(source, "python", "function"))


def test_a_grammar_that_cannot_be_loaded_is_an_error_by_name(monkeypatch):
    def fail(name):
        raise LookupError(f"no {name}")

    monkeypatch.setattr(module.tree_sitter_language_pack, "get_language", fail)
    module.grammar.cache_clear()
    try:
        with pytest.raises(IqcError, match="rust"):
            module.grammar("rust")
    finally:
        module.grammar.cache_clear()


def test_a_lone_surrogate_is_a_bad_record():
    with pytest.raises(BadRecord):
        parse("x = '\ud800'", "python")
