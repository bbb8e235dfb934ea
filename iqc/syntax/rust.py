"""Rust's paths as one file writes them: `use` trees taken apart, and paths inside `mod a { }` seen from the file."""

from tree_sitter import Node

from iqc.syntax.paths import MAX_PARTS
from iqc.syntax.queries import MAX_NAME, Match, text_of


def rust_paths(matches: list[Match]) -> list[tuple[int, str]]:
    """Where each path stands and its text, as `specifiers.py` says."""
    given = {match["mod"].start_byte for match in matches if "path" in match}
    found: list[tuple[int, list[str]]] = []
    files: list[tuple[int, str]] = []
    for match in matches:
        name = next(name for name in ("use", "inner", "file", "path", "mod", "scope") if name in match)
        if name in ("use", "inner"):
            found += _flat(match[name], match.data)
        elif name in ("file", "path"):
            files.append((match[name].start_byte, f'"{match.text(name)}"'))
        elif name == "mod" and match["mod"].start_byte not in given:
            found.append((match["mod"].start_byte, ["mod self", match.text("mod")]))
    scopes = [
        (match["body"].start_byte, match["body"].end_byte, match.text("scope")) for match in matches if "scope" in match
    ]
    return files + _outside(sorted(found), sorted(scopes))


def _parts(node: Node, data: bytes) -> list[str]:
    """The names of a path; too many of them when it is too long to be looked into."""
    is_long = node.end_byte - node.start_byte > MAX_NAME
    return [""] * (MAX_PARTS + 1) if is_long else "".join(text_of(node, data).split()).split("::")


def _flat(tree: Node, data: bytes) -> list[tuple[int, list[str]]]:
    """`a::{b, c::{self, d as e}, f::*}` to a::b, a::c, a::c::d, a::f."""
    found: list[tuple[int, list[str]]] = []
    pending: list[tuple[list[str], Node]] = [([], tree)]
    while pending:
        prefix, node = pending.pop()
        if node.type in ("use_as_clause", "scoped_use_list"):
            path = node.child_by_field_name("path")
            inner = node.child_by_field_name("list")
            if inner is not None:
                prefix = prefix + (_parts(path, data) if path else [])
            if len(prefix) <= MAX_PARTS and (below := path if inner is None else inner) is not None:
                pending.append((prefix, below))
        elif node.type in ("use_list", "use_wildcard"):
            pending += [(prefix, child) for child in node.named_children]
            if node.type == "use_wildcard" and not node.named_children:
                found.append((node.start_byte, prefix))
        else:
            parts = _parts(node, data)
            found.append((node.start_byte, prefix + (parts if parts != ["self"] or not prefix else [])))
    return [(start, parts) for start, parts in found if len(parts) <= MAX_PARTS]


def _outside(paths: list[tuple[int, list[str]]], scopes: list[tuple[int, int, str]]) -> list[tuple[int, str]]:
    """Paths inside `mod a { }` as they are seen from the file; both lists sorted by where they start."""
    found = []
    inside: list[tuple[int, str]] = []  # ends and names of the modules around
    scopes.reverse()
    for start, path in paths:
        while scopes and scopes[-1][0] <= start:
            _, end, name = scopes.pop()
            while inside and inside[-1][0] <= end:
                inside.pop()
            inside.append((end, name))
        while inside and inside[-1][0] <= start:
            inside.pop()
        parts, head, rest = path, path[0], path[1:]
        if head in ("self", "super", "mod self") and len(inside) <= MAX_PARTS:
            names = [name for _, name in inside]
            ups = 1 if head == "super" else 0
            while rest and rest[0] == "super":
                ups, rest = ups + 1, rest[1:]
            outer = ["super"] * (ups - len(names)) or ["mod self" if head == "mod self" else "self"]
            parts = [*outer, *names[: max(0, len(names) - ups)], *rest]
        if len(text := "::".join(parts)) <= MAX_NAME:
            found.append((start, text))
    return found
