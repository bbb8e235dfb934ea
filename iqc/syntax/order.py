"""Files in the order of their dependencies, and the independent parts of a repository.

The order is that in which a depth-first walk leaves the files: each right behind what it needs, as far as that is not
placed already, so what belongs together stays together. The walk enters at the files that nothing needs, by name, then
at what is left, and goes to dependencies by name. Of a cycle it drops the edge that leads back to a file whose own
dependencies are still being placed: the cycle's first file in the walk comes last of it. Between files that are not in
one cycle no edge is ever dropped (Cormen et al., section 20.4: a walk finishes v before u for each edge u -> v unless u
is reachable from v).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence


def order(dependencies: Mapping[str, Sequence[str]]) -> list[str]:
    """The keys, each behind the keys that it depends on; linear time but for sorting, no recursion.

    The order in which keys and dependencies come does not matter; a dependency that is no key is passed over.
    """
    needs = {name: sorted(set(dependencies[name]) & dependencies.keys()) for name in sorted(dependencies)}
    needed = {other for name, others in needs.items() for other in others if other != name}
    placed: list[str] = []
    seen: set[str] = set()
    for start in (*(name for name in needs if name not in needed), *needs):
        if start in seen:
            continue
        seen.add(start)
        walk: list[tuple[str, Iterator[str]]] = [(start, iter(needs[start]))]
        while walk:
            name, rest = walk[-1]
            for other in rest:
                if other not in seen:
                    seen.add(other)
                    walk.append((other, iter(needs[other])))
                    break
            else:
                placed.append(name)
                walk.pop()
    return placed


def components(dependencies: Mapping[str, Sequence[str]], names: Iterable[str]) -> list[list[str]]:
    """The weakly connected components: files that have no edge to a file of another, in whichever direction.

    `names` are the keys in the order wanted: of the components by their first file, and of the files in each.
    """
    parent = {name: name for name in dependencies}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]  # halving: paths stay short (Tarjan and van Leeuwen 1984)
        return name

    for name, others in dependencies.items():
        for other in others:
            if other in parent:
                parent[root(other)] = root(name)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(root(name), []).append(name)
    return list(found.values())
