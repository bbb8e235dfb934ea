"""Rust's paths as one file writes them: `use` trees taken apart, and paths inside `mod a { }` seen from the file."""

from tree_sitter import Node

from iqc.syntax.paths import MAX_PARTS
from iqc.syntax.queries import Match


def rust_paths(matches: list[Match]) -> list[tuple[int, str]]:
    """Where each path stands and its text, as `specifiers.py` says."""
    given = {match["mod"][0].start_byte for match in matches if "path" in match}
    found: list[tuple[int, list[str]]] = []
    files: list[tuple[int, str]] = []
    for match in matches:
        if "use" in match:
            found += _flat(match["use"][0])
        elif "file" in match or "path" in match:
            node = match["file" if "file" in match else "path"][0]
            files.append((node.start_byte, f'"{(node.text or b"").decode(errors="replace")}"'))
        elif "mod" in match and match["mod"][0].start_byte not in given:
            node = match["mod"][0]
            found.append((node.start_byte, ["mod self", _name(node)]))
    scopes = [(match["body"][0], _name(match["scope"][0])) for match in matches if "scope" in match]
    return files + _outside(sorted(found), sorted((body.start_byte, body.end_byte, name) for body, name in scopes))


def _name(node: Node) -> str:
    return "".join((node.text or b"").decode(errors="replace").split())


def _flat(tree: Node) -> list[tuple[int, list[str]]]:
    """`a::{b, c::{self, d as e}, f::*}` to a::b, a::c, a::c::d, a::f."""
    found: list[tuple[int, list[str]]] = []
    pending: list[tuple[list[str], Node]] = [([], tree)]
    while pending:
        prefix, node = pending.pop()
        if len(prefix) > MAX_PARTS:
            continue
        if node.type in ("use_as_clause", "scoped_use_list"):
            path = node.child_by_field_name("path")
            inner = node.child_by_field_name("list")
            if inner is not None:
                pending.append((prefix + (_name(path).split("::") if path else []), inner))
            elif path is not None:
                pending.append((prefix, path))
        elif node.type in ("use_list", "use_wildcard"):
            pending += [(prefix, child) for child in node.named_children]
            if node.type == "use_wildcard" and not node.named_children:
                found.append((node.start_byte, prefix))
        else:
            parts = _name(node).split("::")
            found.append((node.start_byte, prefix + (parts if parts != ["self"] or not prefix else [])))
    return found


def _outside(paths: list[tuple[int, list[str]]], scopes: list[tuple[int, int, str]]) -> list[tuple[int, str]]:
    """Paths inside `mod a { }` as they are seen from the file; both lists sorted by where they start."""
    found = []
    inside: list[tuple[int, str]] = []  # ends and names of the modules around
    scopes.reverse()
    for start, parts in paths:
        while scopes and scopes[-1][0] <= start:
            _, end, name = scopes.pop()
            while inside and inside[-1][0] <= end:
                inside.pop()
            inside.append((end, name))
        while inside and inside[-1][0] <= start:
            inside.pop()
        head, rest = parts[0], parts[1:]
        if head in ("self", "super", "mod self") and len(inside) <= MAX_PARTS:
            names = [name for _, name in inside]
            ups = 1 if head == "super" else 0
            while rest and rest[0] == "super":
                ups, rest = ups + 1, rest[1:]
            outer = ["super"] * (ups - len(names)) or ["mod self" if head == "mod self" else "self"]
            found.append((start, "::".join([*outer, *names[: max(0, len(names) - ups)], *rest])))
        else:
            found.append((start, "::".join(parts)))
    return found
