"""What a file says that it imports, as text, by the tree-sitter queries of `imports.toml`.

python        a.b.c of `import a.b.c` and of `from a.b import c`; ..a.b with the dots of a relative import
java          a.b.C, a.b.C.member of a static import, a.b.*
c, cpp        "x.h" and <x.h>, with their quotes
go            the path between its quotes
"""

import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from tree_sitter import Node, Query, QueryCursor

from iqc.syntax.parse import grammar, parse
from iqc.syntax.paths import MAX_PARTS

MAX_SPECIFIER = 1000  # characters; a longer one is data
Match = dict[str, list[Node]]  # the nodes of one match by the names of their captures


@cache
def table() -> dict[str, dict]:
    """`imports.toml`, each language with a row of its own."""
    rows = tomllib.loads((files("iqc.syntax") / "imports.toml").read_text(encoding="utf-8"))
    return {lang: rows[row["like"]] if "like" in row else row for lang, row in rows.items()}


@cache
def _query(lang: str, name: str) -> Query:
    return Query(grammar(lang), table()[lang][name])


def imports(data: bytes, lang: str, path: str = "") -> list[str]:
    """The specifiers of a file, each once, in the order of the file; none for a language that has no query.

    What cannot name a file is passed over: with a NUL, above MAX_SPECIFIER, of more than MAX_PARTS parts.
    """
    if lang not in table():
        return []
    found: list[tuple[int, str]] = []
    for _, match in QueryCursor(_query(lang, "query")).matches(parse(data, lang).root_node):
        where = max(node.start_byte for nodes in match.values() for node in nodes)
        found.append((where, _TEXT.get(lang, _dotted)(match)))
    return list(dict.fromkeys(spec for _, spec in sorted(found) if _is_usable(spec)))


def _is_usable(spec: str) -> bool:
    return 0 < len(spec) <= MAX_SPECIFIER and "\0" not in spec and spec.count(".") <= MAX_PARTS


def _string(match: Match, name: str) -> str:
    nodes = match.get(name)
    return (nodes[0].text or b"").decode(errors="replace") if nodes else ""


def _dotted(match: Match) -> str:
    """`module` and `name` with a dot between them, without the white space that may stand around dots."""
    module, name = ("".join(_string(match, part).split()) for part in ("module", "name"))
    if "wildcard" in match:
        name = "*"
    return f"{module}.{name}" if module and name and not module.endswith(".") else module + name


def _python(match: Match) -> str:
    """`from a import *` needs a alone."""
    return _dotted({"module": match["module"]} if "wildcard" in match else match)


def _include(match: Match) -> str:
    return _string(match, "name").replace("\\", "/")  # as compilers for Windows have it


def _quoted(match: Match) -> str:
    return _string(match, "name").strip("\"'`")


_TEXT: dict[str, Callable[[Match], str]] = {"python": _python, "c": _include, "cpp": _include, "go": _quoted}
