"""The queries of `imports.toml`, run over a file; each match is the nodes that it captured, by name."""

import tomllib
from functools import cache
from importlib.resources import files

from tree_sitter import Node, Query, QueryCursor

from iqc.syntax.parse import grammar, parse

Match = dict[str, list[Node]]


@cache
def table() -> dict[str, dict]:
    """`imports.toml`, each language with a row of its own."""
    rows = tomllib.loads((files("iqc.syntax") / "imports.toml").read_text(encoding="utf-8"))
    return {lang: rows[row["like"]] if "like" in row else row for lang, row in rows.items()}


@cache
def _query(lang: str, name: str) -> Query:
    return Query(grammar(lang), table()[lang][name])


def matches(data: bytes, lang: str, query: str) -> list[Match]:
    """The matches of a query of the language's row, in no order to rely on."""
    return [match for _, match in QueryCursor(_query(lang, query)).matches(parse(data, lang).root_node)]


def text_of(match: Match, name: str) -> str:
    """The text of a captured node, '' where there is none."""
    nodes = match.get(name)
    return (nodes[0].text or b"").decode(errors="replace") if nodes else ""


def where(match: Match) -> int:
    """The byte at which the last captured node starts: two names of one statement differ in it."""
    return max(node.start_byte for nodes in match.values() for node in nodes)
