"""Parsing with tree-sitter: the share of a file that does not parse, and the nodes of a syntax level.

`has_error` says only that something, somewhere, did not parse: on real C it is set for 60 % of good files, because the
grammar sees code before the preprocessor. What is measured here is how much of the file the grammar could not place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from random import Random
from typing import TYPE_CHECKING, cast

import tree_sitter_language_pack
from tree_sitter import Language as Grammar
from tree_sitter import Node, Parser, Query, QueryCursor, Tree, TreeCursor

from iqc.errors import BadRecord, IqcError
from iqc.syntax.guard import survives, suspicious
from iqc.syntax.languages import language

if TYPE_CHECKING:
    from tree_sitter_language_pack import SupportedLanguage


_ORDER = attrgetter("start_byte", "end_byte", "descendant_count")  # the last tells nodes of one span apart
_BATCH = 8  # numbers of the first batch of a draw


@cache
def grammar(lang: str) -> Grammar:
    """The grammar of a language of the table; IqcError when the table or the installed pack lacks it."""
    name = language(lang).grammar
    try:
        return tree_sitter_language_pack.get_language(cast("SupportedLanguage", name))
    except (LookupError, OSError, ImportError, ValueError) as error:
        raise IqcError(
            f"the tree-sitter grammar {name!r} of {lang} cannot be loaded: {error}",
            remedy="install tree-sitter-language-pack 0.13.0, which carries its grammars",
        ) from error


@cache
def _parser(lang: str) -> Parser:
    return Parser(grammar(lang))


def encode(text: str) -> bytes:
    """UTF-8, which is what node offsets count; a lone surrogate is a bad record."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"the text is not Unicode: {error}", remedy="decode the file in its encoding") from None


def parse(source: str | bytes, lang: str, seconds: float | None = None) -> Tree:
    """The syntax tree of a file. Parsing never fails: what the grammar cannot read becomes error nodes.

    `seconds`: TimeoutError when a text that looks hostile (iqc.syntax.guard) takes more processor time, or crashes.
    """
    data, parser = encode(source) if isinstance(source, str) else source, _parser(lang)
    if lang == "perl" and not data.endswith(b"\n"):
        data += b"\n"  # its scanner never returns from a comment in which the file ends, whatever the time limit
    if seconds is not None and suspicious(data) and not survives(lambda: parser.parse(data), seconds):
        raise TimeoutError(f"not parsed as {lang} within {seconds} s")
    return parser.parse(data)


def error_bytes(tree: Tree) -> int:
    """Bytes that the grammar could not place; a missing node, which has no bytes, counts as one byte.

    They are the bytes of error nodes less the structured, well-formed subtrees in them. One unbalanced `#ifdef` makes
    an error node of a whole C file although every function in it is understood: counted whole, 15 % of 250 system
    headers lie above a share of 0.2; counted so, 3 %, while English prose read as C or C++ scores 0.7 and more.
    """
    total = 0
    pending = [tree.root_node]
    while pending:
        node = pending.pop()
        if node.is_missing:
            total += 1
        elif node.is_error:
            total += node.end_byte - node.start_byte
            for child in node.children:
                if child.is_error or child.is_missing or not child.child_count:
                    continue  # already counted with this node
                total -= child.end_byte - child.start_byte
                pending.append(child)
        elif node.has_error:
            pending.extend(node.children)
    return total


def error_share(source: str | bytes, lang: str) -> float:
    """`error_bytes` / bytes of the file, in [0, 1]; an empty file has no errors."""
    data = encode(source) if isinstance(source, str) else source
    return min(1.0, error_bytes(parse(data, lang)) / len(data)) if data else 0.0


@dataclass(frozen=True, slots=True)
class _Level:
    """A syntax level of a language: its nodes as a query, and as the ids that `Node.kind_id` gives."""

    query: Query
    kinds: frozenset[int]  # anywhere
    children: frozenset[int]  # as a child of one of `parents`
    parents: frozenset[int]
    words: frozenset[bytes] | None  # what the first child must say, where a node of `kinds` says a word of the table
    all_words: frozenset[bytes]

    def speaks(self, node: Node) -> bool:
        """Whether a definition that is told from a call by its first word alone (Elixir) is of this level."""
        first = node.child(0)
        word = first.text if first is not None else None
        return word in self.words if self.words is not None else word not in self.all_words


@cache
def _level(lang: str, level: str) -> _Level | None:
    """The level of a language, None where it has none. What `draw` and the query mean by a node is the same.

    `kind_id` is the id of a node's visible name, with aliases resolved, as in a query; a named and an anonymous node
    of one name have two ids. The table must not name a supertype, which a query matches by position and no node has as
    its kind; the position of an expression that stands as a statement is said by `parents` instead.
    """
    row = language(lang)
    if level not in row.levels:
        return None
    types, (children, parents) = row.levels[level], row.within.get(level, ((), ()))
    # A wildcard, narrowed down afterwards: one pattern for each pair of types makes the query several times slower.
    patterns = [f"({kind}) @node" for kind in types]
    patterns += [f"({parent} (_) @child)" for parent in parents]

    def ids(names: tuple[str, ...]) -> frozenset[int]:
        found = (grammar(lang).id_for_node_kind(name, True) for name in names)
        return frozenset(number for number in found if number is not None)

    return _Level(
        Query(grammar(lang), "\n".join(patterns)),
        ids(types),
        ids(children),
        ids(parents),
        frozenset(word.encode() for word in row.words[level]) if level in row.words else None,
        frozenset(word.encode() for words in row.words.values() for word in words),
    )


def nodes(tree: Tree, lang: str, level: str) -> list[Node]:
    """The nodes of a syntax level (`languages.SYNTAX_LEVELS`), nested ones included, by start, end, inner before outer.

    Empty when the language does not offer the level. A node that holds an error is no node of the level.
    """
    if (wanted := _level(lang, level)) is None:
        return []
    captured = QueryCursor(wanted.query).captures(tree.root_node)
    found = captured.get("node", [])
    found += [node for node in captured.get("child", []) if node.kind_id in wanted.children]
    if tree.root_node.has_error:
        found = [node for node in found if not node.has_error]
    if wanted.all_words:
        found = [node for node in found if wanted.speaks(node)]
    return sorted(found, key=_ORDER)  # captures come in the order of their addresses


def draw(
    tree: Tree, lang: str, level: str, random: Random, usable: Callable[[Node], bool] = lambda node: True
) -> Node | None:
    """One of `nodes(tree, lang, level)` for which `usable` holds, each as likely as any other; None if there is none.

    Enumerating a level costs 0.3 to 0.5 of the parse. Most draws do without: tree-sitter numbers the nodes of a tree
    in preorder and finds the nth fast, so nodes are drawn by number among all, and those that are not of the level
    are drawn again. A batch of numbers is visited in order, which is several times cheaper than at random, and one of
    its hits is chosen. Every usable node is in a batch, and is chosen from it, with the same probability, so the draw
    is uniform given that there was a hit; after n / 8 numbers without one the nodes are enumerated after all, which is
    uniform too, and so is the mixture. Of 10,000 nodes, 100 of the level: enumerated once in 300,000 draws.

    Cheaper still, a random byte and up to its first ancestor of the level, is not uniform: it draws a node in
    proportion to its bytes outside nested nodes of the level. Rejection cannot set that right at a bounded cost, since
    a node that nested ones cover whole is never drawn.
    """
    if (wanted := _level(lang, level)) is None:
        return None
    cursor, count = tree.walk(), tree.root_node.descendant_count
    batch, left = _BATCH, count // 8
    while left > 0:
        hits = []
        for number in sorted(random.choices(range(count), k=min(batch, left))):
            cursor.goto_descendant(number)
            if (node := _hit(cursor, wanted)) is not None and usable(node):
                hits.append(node)
        if hits:
            return random.choice(hits)
        left -= batch
        batch *= 2
    found = [node for node in nodes(tree, lang, level) if usable(node)]
    return random.choice(found) if found else None


def _hit(cursor: TreeCursor, wanted: _Level) -> Node | None:
    """The cursor's node if it is of the level. May leave the cursor at the node's parent."""
    node = cast(Node, cursor.node)
    if node.kind_id not in wanted.kinds:
        if node.kind_id not in wanted.children or not cursor.goto_parent():
            return None
        if cast(Node, cursor.node).kind_id not in wanted.parents:
            return None
    if node.has_error or (wanted.all_words and not wanted.speaks(node)):
        return None
    return node
