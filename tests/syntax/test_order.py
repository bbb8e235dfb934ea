from hypothesis import given
from hypothesis import strategies as st

from iqc.syntax.order import components, order

NAMES = st.sampled_from([f"{folder}{name}.py" for folder in ("", "a/", "b/") for name in "pqrst"])
GRAPHS = st.dictionaries(NAMES, st.lists(NAMES, max_size=6), max_size=15)


def reaches(graph, start):
    """What can be reached from a file by one edge or more, the slow and plain way."""
    found, pending = set(), list(graph[start])
    while pending:
        name = pending.pop()
        if name in graph and name not in found:
            found.add(name)
            pending += graph[name]
    return found


@given(GRAPHS)
def test_a_permutation_in_which_only_edges_of_cycles_are_dropped(graph):
    found = order(graph)
    assert sorted(found) == sorted(graph)
    place = {name: number for number, name in enumerate(found)}
    for name in graph:
        for other in set(graph[name]) & graph.keys():
            assert place[other] < place[name] or name in reaches(graph, other)


@given(GRAPHS, st.randoms(use_true_random=False))
def test_the_order_of_keys_and_dependencies_does_not_matter(graph, random):
    keys = list(graph)
    random.shuffle(keys)
    assert order({key: random.sample(graph[key], len(graph[key])) for key in keys}) == order(graph)


@given(GRAPHS)
def test_components_are_what_is_joined_by_edges_in_either_direction(graph):
    placed = order(graph)
    found = components(graph, placed)
    assert sorted(name for group in found for name in group) == sorted(graph)
    of = {name: number for number, group in enumerate(found) for name in group}
    assert all(of[name] == of[other] for name in graph for other in graph[name] if other in graph)
    undirected = {name: [] for name in graph}
    for name in graph:
        for other in set(graph[name]) & graph.keys():
            undirected[name].append(other)
            undirected[other].append(name)
    for group in found:
        assert group == [name for name in placed if name in group]
        assert set(group) == {group[0]} | reaches(undirected, group[0])


def test_what_belongs_together_stays_together():
    graph = {"app1.py": ["lib1.py"], "app2.py": ["lib2.py"], "lib1.py": [], "lib2.py": []}
    assert order(graph) == ["lib1.py", "app1.py", "lib2.py", "app2.py"]


def test_a_cycle_is_entered_from_what_needs_it():
    """a and b need each other: a comes first where main asks for b, and b where the walk enters at a."""
    assert order({"main.py": ["b.py"], "a.py": ["b.py"], "b.py": ["a.py"]}) == ["a.py", "b.py", "main.py"]
    assert order({"a.py": ["b.py"], "b.py": ["a.py"]}) == ["b.py", "a.py"]


def test_long_chains_and_long_cycles_need_no_recursion():
    names = [f"{number:06}.py" for number in range(100_000)]
    chain = {name: [names[number + 1]] for number, name in enumerate(names[:-1])} | {names[-1]: []}
    assert order(chain) == names[::-1]
    cycle = chain | {names[-1]: [names[0]]}
    assert order(cycle) == names[::-1]
    assert components(cycle, names) == [names]
