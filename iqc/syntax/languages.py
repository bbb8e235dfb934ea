"""The table of languages: how a file's language is named, and which syntax nodes make each fill-in-the-middle level.

The facts are in `languages.toml`. A language is recognised by file name, extension or `#!` line, never by a model: a
record that says its language in `metadata.lang` is believed.
"""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from iqc.errors import IqcError
from iqc.streams.stage import metadata_of

SYNTAX_LEVELS = ("expression", "statement", "function")
# Extensions that more than one language uses: the first pattern that the text has decides; None is a language that the
# table lacks. Without a match, or without text, the row with the extension has it. Patterns are for the start of lines,
# where comments and strings seldom are. Nobody vouches for the text: what a pattern repeats never goes on into what it
# repeats next, so that a search takes linear time, and it reads the first _READ characters.
_CPP_HEADER = (
    r"^[ \t]*+(?:namespace[ \t]+\w|template[ \t]*<|class[ \t]+\w++[^;*(){:]{0,300}+[{:]|using[ \t]+[\w:]++[ \t]*[=;]"
    r"|using namespace\b|(?:public|private|protected)[ \t]*:"
    r"|#[ \t]*include[ \t]*<(?:string|vector|memory|map|cstd\w+|iostream|utility)>)"
    r"|\bstd::|\bconstexpr\b|\bnoexcept\b"
)
_OBJECTIVE_C = (
    r"^[ \t]*@(?:interface|implementation|protocol|property|class|import|end)\b|^[ \t]*#[ \t]*import[ \t]*[<\"]"
)
_PERL = (
    r"^#!.*\bperl|^[ \t]*(?:use|no)[ \t]+(?:v?5|strict|warnings|utf8|lib|parent|base|[A-Z]\w*+(?:::\w++)*+)\b[^;\n]*+;"
    r"|^[ \t]*package[ \t]+[\w:]++[ \t]*[;{]|^[ \t]*sub[ \t]+\w++\s*+[({]|^[ \t]*(?:my|our|local)[ \t]+[($@%]"
    r"|^=(?:pod|head1)\b"
)
_MATLAB = (
    r"^[ \t]*%|^[ \t]*(?:function\b(?![ \t]*\()|classdef\b)|^[ \t]*end(?:function|if|for)?;?[ \t\r]*$|\.\.\.[ \t\r]*$"
)
_READ = 50_000
_RULES: dict[str, list[tuple[str, str | None]]] = {
    ".h": [(_OBJECTIVE_C, "objc"), (_CPP_HEADER, "cpp")],
    ".m": [
        (r"\A\s*+\(\*|^BeginPackage\[", None),  # Mathematica
        (r"^[ \t]*:-[ \t]*(?:module|interface|implementation)\b", None),  # Mercury
        (_OBJECTIVE_C, "objc"),
        (_MATLAB, "matlab"),
        (r"^[ \t]*(?://|/\*|#[ \t]*(?:include|define|if|pragma)|\w.*[{}][ \t\r]*$)", "objc"),
        (r"^[ \t]*+[\w.(){}:,\[\]][\w.(){}:, \t\[\]]*+=[^=]", "matlab"),
    ],
    ".pl": [(_PERL, "perl"), (r"^[ \t]*:-|^\w++(?:\(.*\))?[ \t]*:-|^[a-z]\w*+\(.*\)\.[ \t\r]*$", None)],  # Prolog
    ".t": [(_PERL, "perl"), (r"", None)],  # Turing, and many a data file
    # Rebol; a resource of the Mac; roff
    ".r": [(r"\A\s*+(?i:rebol|red)\b.*\[", None), (r"\A\s*+/\*|^\.\\\"", None)],
    ".ts": [(r"\A\s*+<(?:\?xml|!DOCTYPE)", None)],  # translations of Qt
}
_BY_CONTENT = {
    extension: [(re.compile(pattern, re.MULTILINE), name) for pattern, name in rules]
    for extension, rules in _RULES.items()
}
# `#!/usr/bin/env -S python3.11 -u` and `#!/bin/sh -e` both name the interpreter without its version.
_SHEBANG = re.compile(
    r"#!\s*(?:\S*/env\s+(?:-S\s+)?(?:\w+=\S*\s+)*)?(?:\S*/)?([A-Za-z][A-Za-z-]*(?:2|3)?)[\d.]*(?:\s|$)"
)


@dataclass(frozen=True, slots=True)
class Language:
    """One row of the table. `levels` maps a syntax level to its node types; a level that is not offered is absent.

    within  by level, (node types, parents): these types are of the level too, as children of one of these parents
    words   by level, for a language whose definitions are calls: a node whose first child is such a word is of that
            level only ("type" is a level that is never drawn)
    """

    name: str
    grammar: str
    comment: str
    block_comment: tuple[str, str] | None
    code: bool
    max_error_share: float
    extensions: tuple[str, ...]
    filenames: tuple[str, ...] = ()
    interpreters: tuple[str, ...] = ()
    levels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    within: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)


@cache
def languages() -> dict[str, Language]:
    """The table, by name."""
    table = tomllib.loads((files("iqc.syntax") / "languages.toml").read_text(encoding="utf-8"))
    return {
        name: Language(
            name=name,
            grammar=row["grammar"],
            comment=row["comment"],
            block_comment=(row["block_comment"][0], row["block_comment"][1]) if "block_comment" in row else None,
            code=row["code"],
            max_error_share=row["max_error_share"],
            extensions=tuple(row["extensions"]),
            filenames=tuple(row.get("filenames", ())),
            interpreters=tuple(row.get("interpreters", ())),
            levels={level: tuple(row[level]) for level in SYNTAX_LEVELS if level in row},
            within={
                level: (tuple(row.get(f"{level}_child", row["expression"])), tuple(row[f"{level}_in"]))
                for level in SYNTAX_LEVELS
                if f"{level}_in" in row
            },
            words={level: tuple(words) for level, words in row.get("words", {}).items()},
        )
        for name, row in table.items()
    }


def language(name: str) -> Language:
    """The row of a language by name; IqcError when the table has none."""
    try:
        return languages()[name]
    except KeyError:
        raise IqcError(f"no language named {name!r}", remedy=f"use one of {', '.join(languages())}") from None


@cache
def _index() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Language names by file name, by extension and by interpreter."""
    rows = languages().values()
    return (
        {key: row.name for row in rows for key in row.filenames},
        {key: row.name for row in rows for key in row.extensions},
        {key: row.name for row in rows for key in row.interpreters},
    )


def language_of(path: str, text: str | None = None) -> str | None:
    """The language of a file, or None. `text` tells languages of one extension apart, and has a bare name's `#!`."""
    by_name, by_extension, by_interpreter = _index()
    name = path.rstrip("/").rpartition("/")[2]
    if name in by_name:
        return by_name[name]
    stem, dot, ending = name.rpartition(".")
    suffix = (dot + ending).lower() if stem.strip(".") and ending else ""  # none of .bashrc: its name is all it has
    if suffix in by_extension:
        if text is not None and suffix in _BY_CONTENT:
            start = text[:_READ]
            for pattern, found in _BY_CONTENT[suffix]:
                if pattern.search(start):
                    return found
        return by_extension[suffix]
    if not suffix and text is not None and text.startswith("#!"):
        shebang = _SHEBANG.match(text[:200])
        return by_interpreter.get(shebang[1]) if shebang else None
    return None


def language_of_record(record: dict) -> str | None:
    """What the record says in `metadata.lang`, in lower case, or else what `metadata.path` tells."""
    metadata = metadata_of(record)
    said = metadata.get("lang")
    if isinstance(said, str) and said:
        return _ALIASES.get(said.lower(), said.lower())
    path = metadata.get("path")
    return language_of(path, record.get("text")) if isinstance(path, str) else None


# Names that other collections give to the same languages (GitHub Linguist, the Stack, code blocks of Markdown).
_ALIASES = {
    "c++": "cpp",
    "c#": "csharp",
    "c-sharp": "csharp",
    "cs": "csharp",
    "golang": "go",
    "hs": "haskell",
    "js": "javascript",
    "jsx": "javascript",
    "objective-c": "objc",
    "objective-c++": "objc",
    "objectivec": "objc",
    "octave": "matlab",
    "plpgsql": "sql",
    "plsql": "sql",
    "py": "python",
    "rb": "ruby",
    "rs": "rust",
    "sh": "bash",
    "shell": "bash",
    "shell/bash": "bash",
    "ts": "typescript",
    "tsql": "sql",
    "zsh": "bash",
}
