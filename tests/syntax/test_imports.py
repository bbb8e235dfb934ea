"""Imports of small repositories, each written with the answers: what every file needs, and nothing else."""

import time

import pytest

from iqc.syntax.imports import Resolver, Targets, imports
from iqc.syntax.queries import matches


def needs(files, **answers):
    """The dependencies of each file, for files given as text."""
    from iqc.syntax.languages import language_of

    resolver = Resolver(files, lambda path: files[path].encode() if path in files else None)
    found = {}
    for path, text in files.items():
        if lang := language_of(path, text):
            found[path] = resolver.dependencies(path, text.encode(), lang)
    return {path: others for path, others in found.items() if others}


SPECIFIERS = {
    "python": (
        "import a.b as c, d\nfrom .x import (y as z,\n  w)\nfrom .. import q\nfrom m import *\nfrom . import *\n"
        "from __future__ import annotations\ndef f():\n  try:\n    import g . h\n  except ImportError:\n    pass\n"
        "'import no'\n# import no\n",
        ["a.b", "d", ".x:y", ".x:w", "..:q", "m", ".", "g.h"],
    ),
    "java": (
        "package a.b;\nimport a.b.C;\nimport static a.b.C.f;\nimport a . b.*;\nimport static a.b.D.*;\n"
        "// import no.No;\n",
        ["a.b.C", "a.b.C.f", "a.b.*", "a.b.D.*"],
    ),
    "c": (
        '#include "a\\q.h"\n#include <b/c.h>\n#include MACRO\n#ifdef X\n# include "z.h"\n#endif\n'
        '/* #include "no.h" */\n',
        ['"a/q.h"', "<b/c.h>", '"z.h"'],
    ),
    "javascript": (
        'import a from "./a"; import "./b"; export * from "./c"; const x = require("./d"); import("./e");\n'
        'export {q} from \'z\'; require(name); require("no" + name); let s = "./no"; // import "./no"\n',
        ["./a", "./b", "./c", "./d", "./e", "z"],
    ),
    "typescript": (
        '/// <reference path="r.d.ts" />\nimport type {B} from "./b"; import c = require("./c");\n'
        'type T = import("./t").T;',
        ["./r.d.ts", "./b", "./c", "./t"],
    ),
    "tsx": ('import A from "./a"; const b = <A c={import("./c")} />;', ["./a", "./c"]),
    "rust": (
        "mod a; pub mod b { mod c; use super::d; mod e { use super::super::super::z; use self::y; } use crate::q; }\n"
        'use crate::x::{y, z::*, self as k, w::{self, v as u}}; #[path = "p/foo.rs"] mod p; extern crate foo as bar;\n'
        'fn f() { crate::g::h(); let x: super::T<crate::u::V>; Vec::new(); include_str!("../y.txt") }\n'
        "use ::serde::D; pub(crate) use {m::n, o}; use super::*; // use no::no;\n",
        [
            "mod self::a",
            "mod self::b::c",
            "self::d",
            "super::z",
            "self::b::e::y",
            "crate::q",
            "crate::x::y",
            "crate::x::z",
            "crate::x",
            "crate::x::w",
            "crate::x::w::v",
            '"p/foo.rs"',
            "foo",
            "crate::g::h",
            "super::T",
            "crate::u::V",
            '"../y.txt"',
            "::serde::D",
            "m::n",
            "o",
            "super",
        ],
    ),
    "csharp": (
        "global using A.B; using X = A . C; using static global::D.E; using F; using L = List<int>;\n"
        "namespace N { using G; class K { void f() { using (var x = y) {} using var z = w; } } }",
        ["A.B", "A.C", "D.E", "F", "G"],
    ),
    "go": ('package x\nimport "fmt"\nimport (\n a "b/c"\n . "d"\n _ `e`\n)\nvar s = "no"\n', ["fmt", "b/c", "d", "e"]),
}


@pytest.mark.parametrize("lang", SPECIFIERS)
def test_specifiers(lang):
    text, expected = SPECIFIERS[lang]
    assert imports(text.encode(), lang) == expected


def test_python():
    assert needs(
        {
            "setup.py": "import src.pack",
            "src/pack/__init__.py": "from .core import run\nfrom . import util as u, missing",
            "src/pack/core.py": "import json, re\nfrom pack.sub import deep\nfrom pack.sub.deep import name",
            "src/pack/util.py": "def f():\n    from .sub import *\n    import pack.core.nothing",
            "src/pack/json.py": "import json",  # the standard library's
            "src/pack/sub/__init__.py": "from ..core import run\nfrom .... import outside",
            "src/pack/sub/deep.py": "from . import other\nfrom .other import x\nif TYPE_CHECKING:\n    import pack",
            "src/pack/sub/other.pyi": "",
            "tests/helpers.py": "",
            "tests/test_core.py": "import helpers, pack, yaml\nfrom pack.json import loads",
            "tools/yaml.py": "",  # no module for tests/
            "other/src/pack/__init__.py": "",
        }
    ) == {
        "setup.py": ["src/pack/__init__.py"],
        "src/pack/__init__.py": ["src/pack/core.py", "src/pack/util.py"],
        "src/pack/core.py": ["src/pack/sub/deep.py"],
        "src/pack/util.py": ["src/pack/sub/__init__.py"],
        "src/pack/sub/__init__.py": ["src/pack/core.py"],
        "src/pack/sub/deep.py": ["src/pack/__init__.py", "src/pack/sub/other.pyi"],
        "tests/test_core.py": ["src/pack/__init__.py", "src/pack/json.py", "tests/helpers.py"],
    }


def test_a_package_at_the_top_has_the_name_of_the_repository():
    files = {
        "__init__.py": b"from . import a",
        "a.py": b"from me import b, x\nimport me.c.d\nimport other",
        "b.py": b"",
    }
    files |= {"c/d.py": b"from .. import missing\nfrom me.a import y"}
    resolver = Resolver(files, files.get, "you/me")
    found = {path: resolver.dependencies(path, data, "python") for path, data in files.items()}
    assert found == {
        "__init__.py": ["a.py"],
        "a.py": ["__init__.py", "b.py", "c/d.py"],
        "b.py": [],
        "c/d.py": ["__init__.py", "a.py"],
    }


def test_java():
    base = "core/src/main/java/org/demo/app"
    assert needs(
        {
            f"{base}/Main.java": "import org.demo.app.io.*; import java.util.List; class Main { Reader r; }",
            f"{base}/io/Reader.java": "import static org.demo.app.Names.PREFIX; class Reader {}",
            f"{base}/io/Writer.java": "import org.demo.app.Names.Inner; import org.demo.app.Absent; class Writer {}",
            f"{base}/Names.java": "class Names {}",
            "web/src/main/java/org/demo/app/Names.java": "class Names {}",
            "web/src/main/java/org/demo/web/Page.java": "import org.demo.app.Names; import static org.demo.app.Main.*;",
        }
    ) == {
        f"{base}/Main.java": [f"{base}/io/Reader.java"],
        f"{base}/io/Reader.java": [f"{base}/Names.java"],
        f"{base}/io/Writer.java": [f"{base}/Names.java"],
        "web/src/main/java/org/demo/web/Page.java": [f"{base}/Main.java", "web/src/main/java/org/demo/app/Names.java"],
    }


def test_c_and_cpp():
    assert needs(
        {
            "src/a.c": '#include "a.h"\n#include "util/list.h"\n#include <demo/api.h>\n#include <string.h>\n',
            "src/a.h": '#include "../include/demo/api.h"\n#include "a.h"\n',
            "src/string.h": "",  # <string.h> is the system's
            "src/util/list.h": "",
            "third/util/list.h": "",
            "third/x.cc": '#include "util/list.h"\n#include <vector>\n#include "../../etc/passwd"\n#include "/x.h"\n',
            "include/demo/api.h": '#include "table.inc"\n#include "gone.h"\n',
            "include/demo/table.inc": "",
        }
    ) == {
        "src/a.c": ["include/demo/api.h", "src/a.h", "src/util/list.h"],
        "src/a.h": ["include/demo/api.h"],
        "third/x.cc": ["third/util/list.h"],
        "include/demo/api.h": ["include/demo/table.inc"],
    }


def test_go():
    files = {
        "go.mod": "// a comment\nmodule example.org/demo/v2\n\ngo 1.22\n",
        "main.go": 'package main\nimport (\n"fmt"\n"example.org/demo/v2/in"\n"example.org/tool"\n"github.com/x/y"\n)',
        "in/a.go": 'package in\nimport "example.org/demo/v2"',
        "in/b.go": "package in",
        "in/a_test.go": 'package in_test\nimport . "example.org/demo/v2/in"',
        "tool/go.mod": "module example.org/tool",
        "tool/t.go": 'package tool\nimport "example.org/demo/v2/absent"\nimport "github.com/a/b/in"',
        "vendor/github.com/x/y/y.go": "package y",
    }
    assert needs(files) == {
        "main.go": ["in/a.go", "in/b.go", "tool/t.go", "vendor/github.com/x/y/y.go"],
        "in/a.go": ["main.go"],
        "in/a_test.go": ["in/a.go", "in/b.go"],
    }
    del files["go.mod"], files["tool/go.mod"]  # before modules: host, owner, repository, folder
    assert needs(files)["tool/t.go"] == ["in/a.go", "in/b.go"]


def test_javascript_and_typescript():
    assert needs(
        {
            "package.json": '{"name": "root", "workspaces": ["packages/*"]}',
            "tsconfig.json": """{ // comments and commas too many
                "extends": "./base", "compilerOptions":
                {"paths": {"@/*": ["app/*"], "@/core/*": ["gone/*", "core/*"]},},}""",
            "base.json": '{"compilerOptions": {"baseUrl": "./web"}}',
            "web/app/main.tsx": 'import x from "@/util"; import "@/core/deep"; import "plain"; import R from "react";',
            "web/app/util.ts": 'import "./style.css"; export * from "./part.js"; import "./folder"; import "../../.."',
            "web/app/style.css": "",
            "web/app/part.ts": 'import d from "./data.json"; import "./gone"',
            "web/app/data.json": "{}",
            "web/app/folder/index.ts": 'import "@scope/lib"; import {y} from "@scope/lib/sub"; import ".."',
            "web/app/index.d.ts": "",
            "web/core/deep.ts": "",
            "web/amd.js": 'define(["no"], () => { require("app/util"); require("scope/lib"); require("plain"); })',
            "web/plain.js": 'const u = require("./app/util"); require("built"); require("entry/thing")',
            "packages/lib/package.json": '{"name": "@scope/lib", "exports": {".": {"types": "./dist/index.d.ts"}}}',
            "packages/lib/src/index.ts": "",
            "packages/lib/src/sub.ts": "",
            "packages/built/package.json": '{"name": "built", "main": "./code.js"}',
            "packages/built/code.js": "",
            "packages/built/index.js": "",
            "packages/entry/package.json": '{"name": "entry", "exports": {"./thing": ["./a.cjs"]}, "main": 3}',
            "packages/entry/a.cjs": 'require("../built")',
            "broken/package.json": '{"name": ' + "[" * 5000,
            "broken/tsconfig.json": '/*"' + "/*" * 5000,
            "broken/x.ts": 'import "built"',
        }
    ) == {
        "web/app/main.tsx": ["web/app/util.ts", "web/core/deep.ts", "web/plain.js"],
        "web/app/util.ts": ["web/app/folder/index.ts", "web/app/part.ts", "web/app/style.css"],
        "web/app/part.ts": ["web/app/data.json"],
        "web/app/folder/index.ts": ["packages/lib/src/index.ts", "packages/lib/src/sub.ts", "web/app/index.d.ts"],
        "web/amd.js": ["web/app/util.ts", "web/plain.js"],
        "web/plain.js": ["packages/built/code.js", "packages/entry/a.cjs", "web/app/util.ts"],
        "packages/entry/a.cjs": ["packages/built/code.js"],
        "broken/x.ts": ["packages/built/code.js"],
    }


def test_rust():
    assert needs(
        {
            "Cargo.toml": '[workspace]\nmembers = ["a", "b-lib"]',
            "a/Cargo.toml": '[package]\nname = "a"\n[[bin]]\nname = "x"\npath = "src/tool.rs"',
            "a/src/main.rs": "mod net; mod inline { pub mod leaf; } use net::http::Get; use b_lib::Table; use std::io;",
            "a/src/net/mod.rs": "pub mod http; use super::inline; pub(crate) use self::http::*; mod absent;",
            "a/src/net/http.rs": "use super::super::inline::leaf; use crate::net; fn f() { crate::inline::leaf::g() }",
            "a/src/inline/leaf.rs": 'include!("../gen.rs");',
            "a/src/gen.rs": "",
            "a/src/tool.rs": '#[path = "net/http.rs"] mod other; use crate::Missing;',
            "a/tests/it.rs": "mod common; use b_lib::deep::X;",
            "a/tests/common.rs": "use super::thing; use crate::other;",
            "b-lib/Cargo.toml": '[package]\nname = "b-lib"\n[lib]\npath = "code/first.rs"',
            "b-lib/code/first.rs": "pub mod deep; pub struct Table;",
            "b-lib/code/deep.rs": "use crate::{Table, deep::X}; mod tests { use super::*; }",
            "c/Cargo.toml": "[package\nname = " + "[" * 5000,
        }
    ) == {
        "a/src/main.rs": ["a/src/inline/leaf.rs", "a/src/net/http.rs", "a/src/net/mod.rs", "b-lib/code/first.rs"],
        "a/src/net/mod.rs": ["a/src/main.rs", "a/src/net/http.rs"],
        "a/src/net/http.rs": ["a/src/inline/leaf.rs", "a/src/net/mod.rs"],
        "a/src/inline/leaf.rs": ["a/src/gen.rs"],
        "a/src/tool.rs": ["a/src/net/http.rs"],
        "a/tests/it.rs": ["a/tests/common.rs", "b-lib/code/deep.rs"],
        "b-lib/code/first.rs": ["b-lib/code/deep.rs"],
        "b-lib/code/deep.rs": ["b-lib/code/first.rs"],
    }


def test_csharp():
    assert needs(
        {
            "Lib/Lib.csproj": "",
            "Lib/Node.cs": "namespace Demo.Trees { public class Node { class Hidden {} } interface INode {} }",
            "Lib/More.cs": "namespace Demo.Trees\n{\n#if X\n partial class Node {}\n#endif\n enum Kind { Hidden } }",
            "Lib/Text.cs": "namespace Demo.Text;\nstatic class Words { public static int Count(this string s) => 1; }",
            "Lib/Using.cs": "global using Demo.Text;",
            "Lib/Use.cs": "namespace Demo.Use { class U { int f(string s) => s.Count(); Hidden h; } }",
            "App/App.csproj": "",
            "App/Main.cs": "using System; using Demo.Trees; using static Demo.Text.Words; class Main { INode n; }",
            "App/Alias.cs": "using N = Demo.Trees.Node; using Demo.Gone; class A { string s; int n = s.Count(); }",
        }
    ) == {
        "Lib/Use.cs": ["Lib/Text.cs"],
        "App/Main.cs": ["Lib/Node.cs", "Lib/Text.cs"],
        "App/Alias.cs": ["Lib/More.cs", "Lib/Node.cs"],
    }


def test_a_namespace_that_the_grammar_does_not_see():
    """The preprocessor can hide its brace, as in a file of Newtonsoft.Json; its line is believed then."""
    odd = "namespace Demo.Odd\n    public class Seen\n    {\n    }\n"
    assert not any("namespace" in match for match in matches(odd.encode(), "csharp", "declares"))
    assert needs({"Odd.cs": odd, "Use.cs": "using Demo.Odd; class Use { Seen s; }"}) == {"Use.cs": ["Odd.cs"]}


def test_a_group_stands_for_a_package_that_is_imported_whole():
    files = {f"p/f{number}.go": "package p" for number in range(3)} | {"go.mod": "module m", "x.go": 'import "m/p"'}
    resolver = Resolver(files, lambda path: files[path].encode())
    assert resolver.targets("x.go", files["x.go"].encode(), "go").names == ["/go/p"]
    assert resolver.groups == {"/go/p": ["p/f0.go", "p/f1.go", "p/f2.go"]}


def test_what_looks_internal_and_is_not_there_is_said():
    files = {"a.py": "from . import gone\nimport os, numpy", "b.c": '#include "gone.h"\n#include <gone2.h>\n'}
    resolver = Resolver(files, lambda path: None)
    assert resolver.targets("a.py", files["a.py"].encode(), "python") == Targets([], [".:gone"])
    assert resolver.targets("b.c", files["b.c"].encode(), "c") == Targets([], ['"gone.h"'])


@pytest.mark.parametrize(
    "spec",
    ["../" * 50 + "etc/passwd", "/etc/passwd", "a\0b", "x" * 100_000, "../" * 50_000 + "a", "é" * 400, "a//b", "."],
)
def test_hostile_specifiers_name_nothing(spec):
    dotted = spec.replace("/", ".")
    texts = {
        "python": f"import {dotted}\nfrom {dotted} import x\nfrom {'.' * 5000} import y",
        "java": f"import {dotted};\nimport {dotted}.*;",
        "c": f'#include "{spec}"\n#include <{spec}>\n#include ""\n',
        "go": f'import "{spec}"\nimport ""',
    }
    paths = ["d/e.py", "d/f.py", "d/e.java", "d/e.c", "d/e.go", "go.mod"]
    resolver = Resolver(paths, lambda path: b"module d\nmodule " + b"x" * 10_000)
    for lang, text in texts.items():
        assert resolver.dependencies("d/e.py", text.encode("utf-8", "surrogateescape"), lang) == []
        assert resolver.dependencies("d/e.py", b"\xff\xfe\0" + text.encode(), lang) == []


TIMED = {  # texts for which a plain way takes time that grows with the square of their length, or faster
    "rust": [
        "use " + "super::" * 100_000 + "x;",
        "use " + "a::{" * 20_000 + "b" + "}" * 20_000 + ";",
        "use " + "abcdefgh::" * 90 + "{" + "x, " * 50_000 + "y};",
        "mod a { " * 5000 + "use self::b; " * 1000 + "}" * 5000,
        "mod " + "a" * 500_000 + " {" + "use self::b; " * 20_000 + "}",
    ],
    "python": ["from " + "a." * 100_000 + "b import " + "x, " * 20_000 + "y", "import " + "a." * 100_000 + "b"],
    "csharp": ["namespace A { " * 5000 + "class B { }" + "}" * 5000, "a<" * 8000],
    "java": ["".join(f"import a{number}.*;" for number in range(20_000)) + "class B { int " + "c; int d" * 10_000],
    "typescript": ["require('./b');" * 20_000, "/// <reference path='" * 20_000],
    "c": ["#include <" + "../" * 100_000 + "a.h>\n", '#include "a.h"\n' * 50_000],
}


@pytest.mark.parametrize("lang, number", [(lang, number) for lang in TIMED for number in range(len(TIMED[lang]))])
def test_time_is_bounded(lang, number):
    text = TIMED[lang][number].encode()
    paths = [
        "src/lib.rs",
        "src/a/b.rs",
        "a/b.py",
        "a/B.java",
        "a.h",
        "b.ts",
        "x/main.cs",
        *(f"a{n}/B.java" for n in range(99)),
    ]
    resolver = Resolver(paths, lambda path: text)
    started = time.process_time()
    resolver.targets("src/lib.rs", text, lang)
    assert time.process_time() - started < 12  # tens of minutes, where it is not


def test_project_files_made_to_be_slow():
    slow = [
        '{"' + '\\"' * 100_000 + "\\",
        "/*" * 200_000,
        '{"a": ' + "[" * 200_000,
        "{" + ", " * 200_000,
        '"' * 200_000,
    ]
    files = {f"{number}/tsconfig.json": text for number, text in enumerate(slow)}
    files |= {f"{number}/package.json": text for number, text in enumerate(slow)}
    files |= {f"{number}/a.ts": 'import "x"; import "./b"' for number in range(len(slow))} | {"b.ts": ""}
    started = time.process_time()
    assert needs(files) == {}
    assert time.process_time() - started < 12


def test_many_files_of_one_name_and_deep_paths_take_linear_time():
    paths = [f"{number}/x/util.h" for number in range(20_000)] + ["a/" * 1500 + "util.h", "deep/" * 60 + "y.py"]
    resolver = Resolver(paths, lambda path: None)
    for number in range(0, 20_000, 10):
        assert resolver.dependencies(f"{number}/main.c", b'#include "util.h"\n', "c") == [f"{number}/x/util.h"]
    assert resolver.dependencies("a/" * 1500 + "b.c", b'#include "util.h"\n', "c") == ["a/" * 1500 + "util.h"]
