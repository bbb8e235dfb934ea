"""Trajectory trees: conversations that share their beginnings, as the documents that a model is trained on.

A tree is `nodes`, each a message with `id` and `parent` (null for the root, one in a tree). Every leaf ends a path from
the root, which is a chat and is rendered as one. What paths share by their nodes is one stretch of tokens; texts that
are equal by chance are not shared. Two layouts:

paths   Each path a document `ID#LEAF`: every trainer takes it, and what is shared is computed again for each path.
trie    Paths that share are one document `ID`, in which each stretch is once (`parents` in iqc.tokens.sequence). Where
        all do not fit into the context, neighbouring paths make up documents `ID#0`, `ID#1`, ..., chosen by dynamic
        programming so that the fewest tokens are there twice (KAT-Coder 4.1: packing under a memory bound).

The loss of a token that paths share is counted once: in the first document that holds it (`shared="once"`). Otherwise
once for each of its paths (`each`), as if each path were a sample of its own: in a trie its weight is that many times
its own (the gradient scaler of KAT-Coder 4.1, for a plain sum). No path is cut; one that is too long, or that adds
nothing to learn, comes back with the reason, as the chat that it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iqc.errors import BadRecord
from iqc.streams.stage import Dropped, Record
from iqc.tokens.chat import chat_turns
from iqc.tokens.segments import Segment
from iqc.tokens.sequence import Row, chain

LAYOUTS = ("paths", "trie")
SHARED = ("once", "each")
Encode = Callable[[Segment], NDArray[np.uint32]]


@dataclass(slots=True)
class _Stretch:
    """The tokens of a segment on one or more paths. `above`: the number of the stretch before it, -1 at the root."""

    above: int
    tokens: NDArray[np.uint32]
    weight: float = 0.0
    below: dict[tuple, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Path:
    chat: Record
    stretches: list[int]
    size: int = 0


def paths_of(record: Record) -> Iterator[tuple[list[int], Record]]:
    """Each leaf's path, leaves depth first in the order of the nodes: the numbers of its nodes and the chat that they
    are. Raises BadRecord where the nodes are no tree, or their roles no conversation."""
    nodes = record["nodes"]
    parents, below, root = _structure(nodes)
    stack = [root]
    while stack:
        at = stack.pop()
        stack += reversed(below[at])
        if not below[at]:
            path, up = [], at
            while up >= 0:
                path.append(up)
                up = parents[up]
            path.reverse()
            chat = {"id": f"{record['id']}#{nodes[at]['id']}", "messages": [_message(nodes[n]) for n in path]}
            yield path, chat | ({"tools": record["tools"]} if "tools" in record else {})


def tree_documents(
    record: Record, paths: list[tuple[list[int], Record]], encode: Encode, *, context: int, layout: str, shared: str
) -> Iterator[Row | Dropped]:
    """The rows of one document each that the tree becomes, and the paths that are in none. `paths` are those of
    `paths_of`, masked or not; a call that is masked on one of its paths alone is learnt."""
    stretches, found = _stretches(paths, encode)
    learnt: set[int] = set()
    kept: list[_Path] = []
    for path in found:
        path.size = sum(stretches[n].tokens.size for n in path.stretches)
        new = [n for n in path.stretches if n not in learnt]
        if path.size > context:
            yield Dropped(path.chat, "path_longer_than_context", path.size, context)
        elif not any(stretches[n].weight and (stretches[n].above >= 0 or stretches[n].tokens.size > 1) for n in new):
            yield Dropped(path.chat, "path_with_nothing_new", 0, 1)
        else:
            kept.append(path)
            learnt.update(new if shared == "once" else ())
    groups = [[path] for path in kept] if layout == "paths" else _groups(kept, stretches, context)
    seen: set[int] = set()
    for number, group in enumerate(groups):
        name = record["id"] if len(groups) == 1 else f"{record['id']}#{number}"
        yield _row(group[0].chat["id"] if layout == "paths" else name, group, stretches, seen, shared)


def _row(name: str, group: list[_Path], stretches: list[_Stretch], seen: set[int], shared: str) -> Row:
    """One document of those paths: a chain of one, a trie of several. `seen`: what earlier documents have taught."""
    uses: dict[int, int] = {}  # in the order of the first path through each: depth first
    for path in group:
        for number in path.stretches:
            uses[number] = uses.get(number, 0) + 1
    sizes = np.array([stretches[n].tokens.size for n in uses])
    ends = dict(zip(uses, np.cumsum(sizes) - 1))  # where in the document the last token of each is
    each = {n: stretches[n].weight * (count if shared == "each" else n not in seen) for n, count in uses.items()}
    seen.update(uses)
    heaviest = max(each.values())
    if heaviest > float(np.finfo(np.float32).max):
        raise BadRecord(f"a weight of {heaviest:g} for what paths share", remedy="use weights within float32")
    loss = np.repeat(np.array([each[n] for n in uses], np.float32), sizes)
    loss[0] = 0
    parents = None
    if len(group) > 1:
        parents = chain(int(sizes.sum()))
        parents[np.cumsum(sizes) - sizes] = [ends.get(stretches[n].above, -1) for n in uses]
    tokens = np.concatenate([stretches[n].tokens for n in uses])
    if ((loss == 0) | (loss == 1)).all():
        return Row(tokens, np.array([tokens.size], np.uint32), loss.astype(np.uint8), [name], parents)
    return Row(tokens, np.array([tokens.size], np.uint32), loss, [name], parents)


def _stretches(paths: list[tuple[list[int], Record]], encode: Encode) -> tuple[list[_Stretch], list[_Path]]:
    """All segments of all paths, shared ones once. A segment is shared where the node, its place among the node's
    segments and its text are the same: what ends the results of tools depends on what follows them."""
    stretches: list[_Stretch] = []
    top: dict[tuple, int] = {}
    found = []
    for path, chat in paths:
        at, below, numbers = -1, top, []
        for node, turn in zip(path, chat_turns(chat)):
            for place, segment in enumerate(turn):
                if not segment.value:
                    continue
                key = (node, place, segment.value, segment.is_control)
                if key not in below:
                    below[key] = len(stretches)
                    stretches.append(_Stretch(at, encode(segment)))
                at = below[key]
                below = stretches[at].below
                stretches[at].weight = max(stretches[at].weight, segment.weight)
                numbers.append(at)
        found.append(_Path(chat, numbers))
    return stretches, found


def _groups(paths: list[_Path], stretches: list[_Stretch], context: int) -> list[list[_Path]]:
    """Neighbouring paths into tries of at most `context` tokens, so that these hold the fewest tokens in all. Depth
    first, a path shares most with its neighbour: a trie grows by what the path does not share with the one before."""
    grows = [paths[0].size] if paths else []
    for before, path in pairwise(paths):
        have = set(before.stretches)
        grows.append(sum(stretches[n].tokens.size for n in path.stretches if n not in have))
    best: list[tuple[int, int]] = [(0, 0)]  # (tokens, first path of the last trie), for the paths so far
    for end in range(1, len(paths) + 1):
        inside, options = 0, []
        for first in range(end - 1, -1, -1):
            size = inside + paths[first].size
            if size > context:
                break
            options.append((best[first][0] + size, first))
            inside += grows[first]
        best.append(min(options))
    groups: list[list[_Path]] = []
    end = len(paths)
    while end:
        first = best[end][1]
        groups.append(paths[first:end])
        end = first
    return groups[::-1]


def _message(node: Record) -> Record:
    return {name: value for name, value in node.items() if name not in ("id", "parent", "reward")}


def _structure(nodes: Any) -> tuple[list[int], list[list[int]], int]:
    """The parent (-1 for the root) and the children of every node, and the root, by their numbers in the list."""
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, dict) for node in nodes):
        raise BadRecord("nodes is not a list of at least one node", remedy="use [{id, parent, role, content}, ...]")
    numbers: dict[Any, int] = {}
    for number, node in enumerate(nodes):
        name = node.get("id")
        if type(name) not in (str, int):
            raise BadRecord(f"nodes[{number}] has no id", remedy="give every node an id, a string or an integer")
        if name in numbers:
            raise BadRecord(f"two nodes have the id {name!r}", remedy="give every node of a tree an id of its own")
        numbers[name] = number
    parents: list[int] = []
    below: list[list[int]] = [[] for _ in nodes]
    roots = []
    for number, node in enumerate(nodes):
        above = node.get("parent")
        if above is None:
            roots.append(number)
            parents.append(-1)
            continue
        if type(above) not in (str, int) or above not in numbers:
            raise BadRecord(
                f"the parent of node {node['id']!r} is {above!r}, which is no node",
                remedy="parent is the id of another node of the tree, null for the root",
            )
        parents.append(numbers[above])
        below[numbers[above]].append(number)
    if len(roots) > 1:
        two = " and ".join(repr(nodes[number]["id"]) for number in roots[:2])
        raise BadRecord(f"a tree with {len(roots)} roots, {two} among them", remedy="make a tree of each")
    reached = list(roots)
    for number in reached:
        reached += below[number]
    if len(reached) < len(nodes):
        lost = sorted(set(range(len(nodes))) - set(reached))
        raise BadRecord(
            f"the parents of node {nodes[lost[0]]['id']!r} go round in a circle",
            remedy="every node's parents must lead to the one whose parent is null",
        )
    for number in reached:
        _check_role(nodes, number, parents[number])
    return parents, below, roots[0]


def _check_role(nodes: list[Record], number: int, above: int) -> None:
    """A tree must be a conversation on every path: the system speaks first, and a tool answers an assistant."""
    role, before = nodes[number].get("role"), nodes[above].get("role") if above >= 0 else None
    if role == "system" and above >= 0:
        raise BadRecord(f"node {nodes[number]['id']!r} is a system turn below another", remedy="put it at the root")
    if role == "tool" and before not in ("assistant", "tool"):
        raise BadRecord(
            f"node {nodes[number]['id']!r} is the result of a tool behind {before or 'nothing'}",
            remedy="put it behind the assistant's call or behind another result",
        )
