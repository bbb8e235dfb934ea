"""The queries of `imports.toml`, run over a file."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tree_sitter import Node, Query, QueryCursor

from iqc.syntax.parse import grammar, parse

SECONDS, BYTES_A_SECOND = 1.0, 200_000  # processor time that a file may take; real ones parse at 1 MB/s and more
MAX_NAME = 1000  # bytes of a specifier; a longer one is data


@dataclass(frozen=True, slots=True)
class Match:
    """The nodes that one match captured, by name."""

    data: bytes
    nodes: dict[str, Node]

    def __contains__(self, name: str) -> bool:
        return name in self.nodes

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def text(self, name: str) -> str:
        """The text of a captured node, '' where there is none."""
        return text_of(self.nodes[name], self.data) if name in self.nodes else ""

    @property
    def is_short(self) -> bool:
        """Whether no captured node is longer than a name: the text of a long one could be asked for in every match."""
        return all(node.end_byte - node.start_byte <= MAX_NAME for node in self.nodes.values())

    @property
    def start(self) -> int:
        """The byte at which the last captured node starts: two names of one statement differ in it."""
        return max(node.start_byte for node in self.nodes.values())


def text_of(node: Node, data: bytes) -> str:
    """The text of a node; of one that is too long for a name, its beginning.

    `Node.text` is slow where the parser was handed the file in pieces, as it is under a time limit.
    """
    return data[node.start_byte : min(node.end_byte, node.start_byte + MAX_NAME + 1)].decode(errors="replace")


@cache
def table() -> dict[str, dict]:
    """`imports.toml`, each language with a row of its own."""
    rows = tomllib.loads((files("iqc.syntax") / "imports.toml").read_text(encoding="utf-8"))
    return {lang: rows[row["like"]] if "like" in row else row for lang, row in rows.items()}


@cache
def _query(lang: str, name: str) -> tuple[Query, dict[str, re.Pattern[str]]]:
    row = table()[lang]
    return Query(grammar(lang), row[name]), {key: re.compile(text) for key, text in row.get("says", {}).items()}


def matches(data: bytes, lang: str, name: str) -> Iterator[Match]:
    """The matches of a query of the language's row, in no order to rely on. TimeoutError: the parser goes round in a
    text that is made for it (4 KB of `a<a<` take seconds as C#, twice as many four times that)."""
    query, says = _query(lang, name)
    tree = parse(data, lang, SECONDS + len(data) / BYTES_A_SECOND)
    for _, captures in QueryCursor(query).matches(tree.root_node):
        match = Match(data, {key: nodes[0] for key, nodes in captures.items()})
        if all(says[key].fullmatch(match.text(key)) for key in match.nodes if key in says):
            yield match
