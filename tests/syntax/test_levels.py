"""The nodes of every level of every language, on a small source whose nodes are written out (`samples.toml`)."""

import pytest

from iqc.syntax.languages import SYNTAX_LEVELS, languages
from iqc.syntax.parse import error_share, nodes, parse


def shown(text: bytes) -> str:
    first, *rest = text.decode().splitlines()
    return f"{first} ..." if rest else first


def test_every_language_with_levels_has_a_sample(samples):
    assert set(samples) == {row.name for row in languages().values() if row.levels}


@pytest.mark.parametrize("lang", [row.name for row in languages().values() if row.levels])
def test_the_nodes_of_each_level(samples, lang):
    sample, tree = samples[lang], parse(samples[lang]["source"], lang)
    assert error_share(sample["source"], lang) == 0
    assert set(sample) - {"source"} == set(languages()[lang].levels)
    for level in languages()[lang].levels:
        assert [shown(node.text) for node in nodes(tree, lang, level)] == sample[level], level


def test_a_node_is_listed_once(samples):
    for lang, sample in samples.items():
        tree = parse(sample["source"], lang)
        for level in languages()[lang].levels:
            found = [node.id for node in nodes(tree, lang, level)]
            assert len(set(found)) == len(found), (lang, level)


def test_a_function_is_a_definition(samples):
    """What consistency asks of all languages: an anonymous function that is an argument is an expression alone."""
    arguments = {
        "c": "",
        "cpp": "void f() { g([](int x) { return x; }); }",
        "javascript": "g((x) => x); g(function () {});",
        "typescript": "g((x) => x); g(function () {});",
        "tsx": "g((x) => x); g(function () {});",
        "lua": "g(function() end)",
        "perl": "g(sub { 1 });",
        "r": "g(function(x) x)",
        "elixir": "g(fn x -> x end)",
        "ruby": "g { |x| x }",
        "kotlin": "val a = g { it }",
        "swift": "g { $0 }",
        "go": "package p\nvar a = g(func() {})",
        "rust": "static A: B = g(|x| x);",
        "haskell": "import A",
        "python": "g(lambda x: x)",
        "php": "<?php g(function () {}); g(fn ($x) => $x);",
        "dart": "var a = g((x) { return x; });",
        "scala": "val a = g(x => x)",
        "java": "class K { A a = g(x -> x); }",
        "csharp": "class K { A a = g(x => x); }",
        "objc": "A a = g(^(id x) { h(); });",
        "matlab": "g(@(x) x)",
        "bash": "g",
        "sql": "SELECT g(1);",
    }
    assert set(arguments) == {lang for lang, row in languages().items() if "function" in row.levels}
    wrong = {
        lang: [node.text for node in nodes(parse(source, lang), lang, "function")]
        for lang, source in arguments.items()
        if source
    }
    assert {lang for lang, found in wrong.items() if found} <= {"cpp"}
    assert len(wrong["cpp"]) == 1  # f itself
    assert all(set(SYNTAX_LEVELS) == set(languages()[lang].levels) for lang in arguments)
