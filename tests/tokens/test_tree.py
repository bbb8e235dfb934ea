from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import BadRecord
from iqc.streams.stage import Dropped
from iqc.tokens.chat import chat_turns
from iqc.tokens.pack import Encoded
from iqc.tokens.tokenise import Options, encode, samples, tokenise
from iqc.tokens.tree import _groups, _Path, _Stretch, paths_of

CALLS = [{"id": str(n), "function": {"name": "run", "arguments": {"n": n}}} for n in range(2)]
WORDS = ("a", "a b", "x = 1\n", "", "</think>", "a\n")


@st.composite
def trees(draw):
    """Conversations that branch anywhere: the results of tools among them, equal texts in different branches."""
    nodes = [{"id": 0, "parent": None, "role": draw(st.sampled_from(["system", "user"])), "content": "Do."}]
    for number in range(1, draw(st.integers(1, 12))):
        above = nodes[draw(st.integers(max(0, number - 4), number - 1))]
        roles = ["user", "assistant"] + ["tool"] * (2 * (above["role"] in ("assistant", "tool")))
        node = {"id": number, "parent": above["id"], "role": draw(st.sampled_from(roles)), "reward": 0.5}
        node["content"] = draw(st.sampled_from(WORDS))
        if node["role"] == "assistant" and draw(st.booleans()):
            node["tool_calls"] = CALLS
        if draw(st.integers(0, 4)) == 0:
            node["loss"] = draw(st.sampled_from([False, True, 0.5]))
        nodes.append(node)
    order = draw(st.permutations(nodes))
    return {"id": "t", "nodes": order, "tools": [{"name": "run"}]}


def made(record, tok, **options):
    out = list(samples(record, tok, Options(**options)))
    return (
        [one.row for one in out if isinstance(one, Encoded)],
        {one.record["id"]: one for one in out if isinstance(one, Dropped)},
    )


def read_out(row):
    """Every path of a document: the places of its tokens."""
    parents = row.parents if row.parents is not None else np.arange(-1, row.tokens.size - 1)
    paths = []
    for end in sorted(set(range(row.tokens.size)) - set(parents.tolist())):
        path, at = [], end
        while at >= 0:
            path.append(at)
            at = parents[at]
        paths.append(path[::-1])
    return paths


@given(record=trees(), layout=st.sampled_from(["paths", "trie"]), context=st.sampled_from([60, 90, 10_000]))
def test_every_path_reads_as_the_chat_that_it_is(record, layout, context, tok):
    chats = {chat["id"]: tokenise(chat, tok) for _, chat in paths_of(record)}
    rows, dropped = made(record, tok, trees=layout, context=context)
    for name, one in dropped.items():
        size = chats[name].tokens.size
        assert one.rule == ("path_longer_than_context" if size > context else "path_with_nothing_new")
    found = sorted(row.tokens[path].tolist() for row in rows for path in read_out(row))
    assert found == sorted(row.tokens.tolist() for name, row in chats.items() if name not in dropped)
    assert all(row.tokens.size <= context for row in rows)
    if layout == "trie" and context == 10_000:
        assert [row.ids for row in rows] == ([["t"]] if found else [])
    if layout == "paths":
        assert sorted(row.ids[0] for row in rows) == sorted(name for name in chats if name not in dropped)


@given(record=trees(), layout=st.sampled_from(["paths", "trie"]), context=st.sampled_from([60, 90, 10_000]))
def test_every_token_is_learnt_once_or_once_for_each_path(record, layout, context, tok):
    """The reference: paths one by one, a token being named by the nodes and the tokens on the way to it."""
    once, each = {}, {}
    nodes = {chat["id"]: path for path, chat in paths_of(record)}
    dropped = {
        shared: made(record, tok, trees=layout, context=context, shared=shared)[1] for shared in ("once", "each")
    }
    for _, chat in paths_of(record):
        row = tokenise(chat, tok)
        owners = owner_of_each_token(chat, nodes[chat["id"]], tok)
        for end in range(1, row.tokens.size):
            key = tuple(zip(owners[: end + 1], row.tokens[: end + 1].tolist()))
            if chat["id"] not in dropped["once"]:
                once[key] = float(row.loss[end])
            if chat["id"] not in dropped["each"]:
                each[key] = each.get(key, 0) + float(row.loss[end])
    for shared, wanted in (("once", once), ("each", each)):
        rows, _ = made(record, tok, trees=layout, context=context, shared=shared)
        assert sum(float(row.loss.sum()) for row in rows) == pytest.approx(sum(wanted.values()))
        per_token = sorted(float(weight) for row in rows for weight in row.loss if weight)
        if layout == "trie" and len(rows) <= 1:
            assert per_token == sorted(float(weight) for weight in wanted.values() if weight)
        if shared == "once":
            assert per_token == sorted(float(weight) for weight in wanted.values() if weight)


def owner_of_each_token(chat, path, tok):
    """The node that each token of a path belongs to. How a turn ends depends on the next one, so that it is there."""
    owners = []
    for count, node in enumerate(path, start=1):
        shown = dict(chat, messages=chat["messages"][: count + 1])
        behind = [segment for segment in chat_turns(shown)[-1] if segment.value] if count < len(path) else []
        end = tokenise(shown, tok).tokens.size - sum(encode(tok, segment).size for segment in behind)
        owners += [node] * (end - len(owners))
    return owners


LINEAR = [
    {"id": "a", "parent": None, "role": "user", "content": "Do."},
    {"id": "b", "parent": "a", "role": "assistant", "content": "Yes.", "tool_calls": CALLS[:1]},
    {"id": "c", "parent": "b", "role": "tool", "content": "ok"},
    {"id": "d", "parent": "c", "role": "assistant", "content": "Done."},
]


def test_a_tree_of_one_path_is_its_chat(tok):
    chat = {"id": "t", "messages": [{k: v for k, v in node.items() if k not in ("id", "parent")} for node in LINEAR]}
    (chat_row,) = made(chat, tok)[0]
    for layout in ("paths", "trie"):
        (row,) = made({"id": "t", "nodes": LINEAR}, tok, trees=layout)[0]
        assert row.tokens.tolist() == chat_row.tokens.tolist() and row.loss.tolist() == chat_row.loss.tolist()
        assert row.parents is None and row.ids == (["t#d"] if layout == "paths" else ["t"])


def test_branches_of_equal_text_are_learnt_twice(tok):
    """They are two samples of what the policy did, not one."""
    nodes = [*LINEAR[:1], *({"id": n, "parent": "a", "role": "assistant", "content": "Yes."} for n in "xy")]
    (row,) = made({"id": "t", "nodes": nodes}, tok, trees="trie")[0]
    one = tokenise({"id": "c", "messages": [LINEAR[0], {"role": "assistant", "content": "Yes."}]}, tok)
    assert row.loss.sum() == 2 * one.loss.sum() and len(read_out(row)) == 2


@given(st.lists(st.integers(1, 5), min_size=1, max_size=7), st.integers(1, 4), st.integers(20, 80))
def test_tries_of_neighbours_hold_the_fewest_tokens(leaves, fan, context):
    """Against every way of parting the leaves, depth first, into tries that fit."""
    stretches = [_Stretch(-1, np.zeros(5, np.uint32))]
    paths = []
    for number, size in enumerate(leaves):
        if number % fan == 0:
            stretches.append(_Stretch(0, np.zeros(7, np.uint32)))
            middle = len(stretches) - 1
        stretches.append(_Stretch(middle, np.zeros(size, np.uint32)))
        paths.append(_Path({}, [0, middle, len(stretches) - 1], 12 + size))

    def tokens(group):
        return sum(stretches[n].tokens.size for n in {n for path in group for n in path.stretches})

    totals = []
    for mask in range(1 << (len(paths) - 1)):
        cuts = [0, *(n + 1 for n in range(len(paths) - 1) if mask >> n & 1), len(paths)]
        parts = [paths[a:b] for a, b in pairwise(cuts)]
        if all(tokens(part) <= context for part in parts):
            totals.append(sum(map(tokens, parts)))
    groups = _groups(paths, stretches, context)
    assert [path for group in groups for path in group] == paths
    assert all(tokens(group) <= context for group in groups) and sum(map(tokens, groups)) == min(totals)


@pytest.mark.parametrize(
    "nodes, what",
    [
        ("x", "not a list"),
        ([1], "not a list"),
        ([{"role": "user"}], r"nodes\[0\] has no id"),
        ([LINEAR[0] | {"id": 1.5}], "has no id"),
        ([LINEAR[0], LINEAR[0]], "two nodes have the id 'a'"),
        ([LINEAR[0], LINEAR[0] | {"id": "b"}], "2 roots, 'a' and 'b'"),
        ([LINEAR[0], LINEAR[1] | {"parent": "z"}], "'z', which is no node"),
        ([LINEAR[0], LINEAR[1] | {"parent": []}], "which is no node"),
        ([LINEAR[1] | {"parent": "b"}], "in a circle"),
        ([LINEAR[0], LINEAR[1] | {"parent": "c"}, LINEAR[2]], "'b' go round in a circle"),
        ([LINEAR[0], LINEAR[1] | {"role": "system"}], "'b' is a system turn below another"),
        ([LINEAR[0], LINEAR[2] | {"parent": "a"}], "result of a tool behind user"),
        ([LINEAR[0] | {"role": "tool"}], "result of a tool behind nothing"),
        ([LINEAR[0], LINEAR[1] | {"content": 5}], "not text"),
        ([LINEAR[0], LINEAR[1] | {"loss": -1}], "loss is -1"),
    ],
)
def test_what_is_no_tree_is_refused(tok, nodes, what):
    with pytest.raises(BadRecord, match=what) as found:
        list(samples({"id": "t", "nodes": nodes}, tok, Options()))
    assert found.value.remedy


def test_a_deep_tree(tok):
    """Deeper than Python's stack."""
    roles = ("user", "assistant")
    nodes = [{"id": n, "parent": n - 1 if n else None, "role": roles[n % 2], "content": "a"} for n in range(3000)]
    rows, _ = made({"id": "t", "nodes": nodes}, tok, trees="trie")
    assert len(rows) == 1 and rows[0].loss.sum() == 2 * 1500


def test_weights_that_paths_add_up_beyond_float32_are_refused(tok):
    nodes = [LINEAR[0], LINEAR[1] | {"loss": 3e38}, *(LINEAR[3] | {"id": n, "parent": "b"} for n in "xy")]
    record = {"id": "t", "nodes": nodes}
    assert list(samples(record, tok, Options(trees="trie")))
    with pytest.raises(BadRecord, match=r"6e\+38 for what paths share"):
        list(samples(record, tok, Options(trees="trie", shared="each")))
