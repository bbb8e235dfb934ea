"""The table of languages: how a file's language is named, and which syntax nodes make each fill-in-the-middle level.

The facts are in `languages.toml`. A language is recognised by file name, extension or `#!` line, never by a model: a
record that says its language in `metadata.lang` is believed.
"""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

from iqc.errors import IqcError
from iqc.streams.stage import metadata_of

SYNTAX_LEVELS = ("expression", "statement", "function")
# An expression is a statement too where it stands in a block; an anonymous function is a function where it gets a name.
_WITHIN = (("statement", "expression", "statement_in"), ("function", "lambda", "function_in"))

# A .h file is C unless it says something that only C++ says.
_CPP_HEADER = re.compile(
    r"^\s*(?:namespace\s+\w|template\s*<|class\s+\w+[^;*()]*[{:]|using\s+[\w:]+\s*[=;]|using namespace\b"
    r"|(?:public|private|protected)\s*:|#\s*include\s*<(?:string|vector|memory|map|cstd\w+|iostream|utility)>)"
    r"|\bstd::|\bconstexpr\b|\bnoexcept\b",
    re.MULTILINE,
)
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
            code=row["code"],
            max_error_share=row["max_error_share"],
            extensions=tuple(row["extensions"]),
            filenames=tuple(row.get("filenames", ())),
            interpreters=tuple(row.get("interpreters", ())),
            levels={level: tuple(row[level]) for level in SYNTAX_LEVELS if level in row},
            within={
                level: (tuple(row[kinds]), tuple(row[parents])) for level, kinds, parents in _WITHIN if parents in row
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
    """The language of a file, or None. `text` tells C from C++ in a `.h`, and reads the `#!` line of a bare name."""
    by_name, by_extension, by_interpreter = _index()
    name = PurePosixPath(path).name
    if name in by_name:
        return by_name[name]
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in by_extension:
        if suffix == ".h" and text is not None and _CPP_HEADER.search(text):
            return "cpp"
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


# Names that other collections give to the same languages (GitHub Linguist, the Stack).
_ALIASES = {"c++": "cpp", "c#": "csharp", "c-sharp": "csharp", "shell": "bash", "js": "javascript", "ts": "typescript"}
