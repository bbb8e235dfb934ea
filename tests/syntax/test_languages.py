"""The table agrees with the grammars, and files are named rightly."""

import pytest

from iqc.errors import IqcError
from iqc.syntax.languages import SYNTAX_LEVELS, language, language_of, language_of_record, languages
from iqc.syntax.parse import grammar

REQUIRED = [
    "python",
    "c",
    "cpp",
    "java",
    "javascript",
    "typescript",
    "tsx",
    "go",
    "rust",
    "csharp",
    "php",
    "ruby",
    "bash",
]
REQUIRED += ["sql", "html", "css", "json", "yaml", "toml", "markdown"]


@pytest.mark.parametrize("name", REQUIRED)
def test_every_grammar_loads_and_knows_every_node_type(name):
    row = language(name)
    loaded = grammar(name)
    for level, types in row.levels.items():
        assert level in SYNTAX_LEVELS
        assert len(set(types)) == len(types)
        missing = [kind for kind in types if loaded.id_for_node_kind(kind, True) is None]
        assert not missing
    assert 0 < row.max_error_share < 1


def test_programming_languages_offer_every_level():
    for row in languages().values():
        if row.code and row.name != "sql":
            assert set(row.levels) == set(SYNTAX_LEVELS), row.name


def test_no_two_languages_claim_one_name():
    for attribute in ("extensions", "filenames", "interpreters"):
        keys = [key for row in languages().values() for key in getattr(row, attribute)]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("path", "text", "lang"),
    [
        ("a/b.py", None, "python"),
        ("A.PY", None, "python"),
        ("x.tsx", None, "tsx"),
        ("x.d.ts", None, "typescript"),
        ("Gemfile", None, "ruby"),
        ("Cargo.lock", None, "toml"),
        ("x.h", "int f(void);\n", "c"),
        ("x.h", "struct a;\ntypedef struct a *class_t; /* class of things */\n", "c"),
        ("x.h", "#pragma once\nnamespace a {\n}\n", "cpp"),
        ("x.h", "template <typename T>\nT f(T);\n", "cpp"),
        ("x.h", None, "c"),
        ("bin/run", "#!/usr/bin/env python3\n", "python"),
        ("bin/run", "#!/usr/bin/env -S python3.11 -u\n", "python"),
        ("bin/run", "#!/bin/sh -e\n", "bash"),
        ("bin/run", "#! /usr/bin/env FOO=1 node\n", "javascript"),
        ("bin/run", "#!/usr/bin/perl\n", None),
        ("bin/run", None, None),
        ("README", "python\n", None),
        ("photo.jpeg", None, None),
    ],
)
def test_language_of(path, text, lang):
    assert language_of(path, text) == lang


def test_the_record_is_believed_before_the_path():
    assert language_of_record({"metadata": {"lang": "C++", "path": "a.py"}}) == "cpp"
    assert language_of_record({"metadata": {"path": "a.py"}, "text": ""}) == "python"
    assert language_of_record({"text": "x"}) is None


def test_an_unknown_language_is_an_error_by_name():
    with pytest.raises(IqcError, match="klingon"):
        language("klingon")
