"""The table agrees with the grammars, and files are named rightly."""

import itertools
import time
import unittest.mock
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.syntax.languages import SYNTAX_LEVELS, language, language_of, language_of_record, languages
from iqc.syntax.parse import grammar, nodes, parse

# The languages of KAT-Coder, by the names that it gives them.
KAT = """
    Python Java TypeScript JavaScript C C++ C# Kotlin Go Rust PHP Ruby Swift Objective-C Scala R Shell/Bash SQL MATLAB
    Dart Lua Elixir Haskell Perl
"""
DOCUMENTS = ["html", "css", "json", "yaml", "toml", "markdown"]


@pytest.mark.parametrize("name", [*KAT.split(), "TSX"])
def test_every_language_of_kat_is_in_the_table_with_every_level(name):
    row = language(language_of_record({"metadata": {"lang": name}}))
    assert row.code and set(row.levels) == set(SYNTAX_LEVELS)
    assert row.comment
    assert row.extensions or row.name == "matlab"


def test_the_other_rows_are_documents():
    assert [row.name for row in languages().values() if not row.code] == DOCUMENTS


@pytest.mark.parametrize("name", sorted(languages()))
def test_every_grammar_knows_every_node_type(name):
    """As a node that can be seen: a supertype or a hidden node is in the grammar too, but is no node's type."""
    row = language(name)
    loaded = grammar(name)
    for level, types in row.levels.items():
        children, parents = row.within.get(level, ((), ()))
        assert types or children
        assert len(set(types + children)) == len(types + children)
        for kind in types + children + parents:
            number = loaded.id_for_node_kind(kind, True)
            assert number is not None and loaded.node_kind_is_visible(number), kind
            assert loaded.node_kind_for_id(number) == kind
    assert set(row.within) <= set(row.levels)
    assert 0 < row.max_error_share < 1


def test_comments_are_comments(samples):
    """A line comment, and a block comment over two lines, parse and leave the nodes of the sample as they are."""
    for lang, sample in samples.items():
        row = language(lang)
        lines = [f"{row.comment} a comment\n"] if row.comment else []
        if row.block_comment:
            start, end = row.block_comment
            lines.append(f"{start}\na comment\n{end}\n")
        source = sample["source"]
        for line in lines:
            commented = source.replace("<?php\n", f"<?php\n{line}") if lang == "php" else line + source
            tree = parse(commented, lang)
            assert not tree.root_node.has_error, (lang, line)
            for level in row.levels:
                assert len(nodes(tree, lang, level)) == len(sample[level]), (lang, line)


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
        ("bin/run", "#!/usr/bin/perl\n", "perl"),
        ("bin/run", "#!/usr/bin/perl5.36 -w\n", "perl"),
        ("bin/run", "#!/usr/bin/env Rscript\n", "r"),
        ("bin/run", "#!/usr/bin/tclsh\n", None),
        ("x.R", None, "r"),
        ("x.h", "#import <Foundation/Foundation.h>\n@class A;\n", "objc"),
        ("x.h", "// a class\n@protocol A <NSObject>\n- (void)f;\n@end\n", "objc"),
        ("x.m", None, "objc"),
        ("x.mm", "#include <vector>\n", "objc"),
        ("x.m", '#import "A.h"\n@implementation A\n@end\n', "objc"),
        ("x.m", '/* A */\n#include "a.h"\nint f(void) {\n  return 1;\n}\n', "objc"),
        ("x.m", "function y = f(x)\n%F does it.\ny = x;\n", "matlab"),
        ("x.m", "function f\ndisp(1)\nend\n", "matlab"),
        ("x.m", "classdef K < handle\nend\n", "matlab"),
        ("x.m", "clear all\nx = [1 2 3];\nplot(x)\n", "matlab"),
        ("x.m", "# Octave's comment\nx = 1;\nif x\n  y = 2;\nendif\n", "matlab"),
        ("x.m", "(* ::Package:: *)\nf[x_] := x\n", None),
        ("x.m", ":- module a.\n:- interface.\n", None),
        ("x.pl", None, "perl"),
        ("x.pl", "#!/usr/bin/perl -w\nprint 1;\n", "perl"),
        ("x.pl", "use strict;\nmy $x = 1;\n", "perl"),
        ("x.pl", "print 1;\n", "perl"),
        ("x.pl", "%h = (\n  a => 1,\n);\n", "perl"),
        ("x.pl", ":- use_module(library(lists)).\n\np(X) :- q(X).\n", None),
        ("x.pl", "likes(mary, wine).\nlikes(john, X) :-\n    likes(mary, X).\n", None),
        ("x.t", "use Test::More;\nok 1;\n", "perl"),
        ("x.t", 'put "hello"\n', None),
        ("x.r", "x <- 1\n", "r"),
        ("x.r", 'REBOL [Title: "x"]\nprint 1\n', None),
        ("x.ts", "const a: number = 1;\n", "typescript"),
        ("x.ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n<TS></TS>\n', None),
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


def test_no_text_makes_the_search_for_its_language_long():
    """Cubic or quadratic patterns took minutes to hours for one of these; linear ones take milliseconds."""
    units = [
        "\n",
        " ",
        "a",
        "a ",
        "a(",
        ".",
        "::a",
        "a{",
        "{ ",
        "...",
        "a=",
        "class a ",
        "use A::a",
        "sub a\n",
        ")",
        "[",
    ]
    heads = ["", "class a", "use A", "sub a", "a(", "end", "using a", "\n  "]
    started = time.process_time()
    for extension, head, unit in itertools.product([".h", ".m", ".pl", ".r", ".ts"], heads, units):
        language_of("a" + extension, head + unit * (50_000 // len(unit)) + "x")
        assert time.process_time() - started < 60, (extension, head, unit)


@given(st.text("a.B/ \n-", max_size=12))
def test_suffixes_are_those_of_pathlib(path):
    """`language_of` is asked for every file of every commit, so it does without a path object."""
    assume(not PurePosixPath(path).name.startswith(".."))  # Python 3.14 changed what the suffix of ..a is
    suffix = PurePosixPath(path).suffix.lower()
    expected = {".a": "python", ".b": "c"}.get(suffix)
    table = ({}, {".a": "python", ".b": "c"}, {})
    with unittest.mock.patch("iqc.syntax.languages._index", lambda: table):
        assert language_of(path) == expected
