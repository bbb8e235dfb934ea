"""The draw of a node: only nodes of the level, all of them, each as likely as any other."""

from collections import Counter
from random import Random

import pytest

from iqc.syntax import parse as module
from iqc.syntax.languages import SYNTAX_LEVELS, languages
from iqc.syntax.parse import draw, nodes, parse

SOURCE = "def f(a, b):\n    if a > b:\n        return g(a.x, [b, 1])\n    x = (a + b) * 2\n    return x\n\n\n" * 6
SPARSE = "x = [" + "1, " * 400 + "]\n\n\ndef f():\n    pass\n\n\ndef g():\n    def h():\n        pass\n"

# 99.99 % quantiles of chi-square by the approximation of Wilson and Hilferty (1931); the seeds are fixed.
Z = 3.719


def quantile(freedom: int) -> float:
    return freedom * (1 - 2 / (9 * freedom) + Z * (2 / (9 * freedom)) ** 0.5) ** 3


def key(node) -> tuple[int, int, int, str]:
    return node.start_byte, node.end_byte, node.descendant_count, node.type


def assert_uniform(tree, lang, level, usable=lambda node: True, each=120):
    support = {key(node) for node in nodes(tree, lang, level) if usable(node)}
    draws, random = each * len(support), Random(level)
    counts = Counter(key(draw(tree, lang, level, random, usable)) for _ in range(draws))
    assert set(counts) == support
    if len(support) == 1:
        return
    statistic = sum((counts[node] - each) ** 2 / each for node in support)
    assert statistic < quantile(len(support) - 1)


@pytest.mark.parametrize("level", SYNTAX_LEVELS)
@pytest.mark.parametrize("source", [SOURCE, SPARSE, SOURCE + "def bad(:\n    return (1 +\n"])
def test_the_draw_is_uniform(source, level):
    assert_uniform(parse(source, "python"), "python", level)


def test_the_draw_is_uniform_among_usable_nodes():
    def short(node):
        return node.end_byte - node.start_byte < 12

    assert_uniform(parse(SOURCE, "python"), "python", "expression", short)


@pytest.mark.parametrize("batch", [1, 64])
def test_the_draw_is_uniform_whether_or_not_it_comes_to_the_enumeration(batch, monkeypatch):
    """One number a batch, and a batch that is larger than all the numbers: both ends of the mixture."""
    monkeypatch.setattr(module, "_BATCH", batch)
    assert_uniform(parse(SPARSE, "python"), "python", "function", each=500)


def test_most_draws_do_not_enumerate(monkeypatch):
    tree, calls = parse(SOURCE, "python"), []
    monkeypatch.setattr(module, "nodes", lambda *args: calls.append(args) or nodes(*args))
    random = Random(0)
    for _ in range(300):
        draw(tree, "python", "expression", random)
    assert len(calls) < 3
    draw(parse("x = 1\n", "python"), "python", "function", random)
    assert calls[-1][2] == "function"


def test_nothing_to_draw():
    random = Random(0)
    assert draw(parse("x = 1\n", "python"), "python", "function", random) is None
    assert draw(parse("", "python"), "python", "expression", random) is None
    assert draw(parse("{}", "json"), "json", "function", random) is None
    assert draw(parse(SOURCE, "python"), "python", "expression", random, lambda node: False) is None


def test_the_same_seed_draws_the_same_nodes():
    def run():
        tree, random = parse(SOURCE, "python"), Random(7)  # a tree of its own: other addresses
        return [key(draw(tree, "python", level, random)) for level in SYNTAX_LEVELS * 20]

    assert run() == run()


def by_number(tree, lang, level):
    """What the draw can reach: every node by its number, judged as `draw` judges it."""
    cursor, found = tree.walk(), []
    for number in range(tree.root_node.descendant_count):
        cursor.goto_descendant(number)
        if node := module._hit(cursor, module._level(lang, level)):
            found.append(key(node))
    return sorted(found)


def assert_same_nodes(source, lang):
    tree = parse(source, lang)
    for level in languages()[lang].levels:
        assert by_number(tree, lang, level) == sorted(map(key, nodes(tree, lang, level))), (lang, level)


def test_numbers_reach_the_nodes_that_the_query_captures(samples):
    """Named and anonymous nodes of one name, aliases, extras, errors: both must mean the same by a node."""
    for lang, sample in samples.items():
        source = sample["source"]
        assert_same_nodes(source, lang)
        assert_same_nodes(source[: 2 * len(source) // 3] + " ( ' }\n", lang)
        assert_same_nodes(source[len(source) // 3 :], lang)
