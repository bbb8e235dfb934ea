"""Imports of a real library beside Python's own: `ast` reads them, the import system's path finder says the file."""

import ast
import importlib.machinery
import sysconfig
from pathlib import Path

import pytest

from iqc.syntax.imports import Resolver

LIB = Path(sysconfig.get_path("stdlib"))
FOLDERS = ("asyncio", "collections", "concurrent", "email", "encodings", "html", "http", "importlib", "json", "logging")
FOLDERS += ("multiprocessing", "unittest", "urllib", "wsgiref", "xml")


@pytest.fixture(scope="module")
def sources():
    """The modules at the top and in some packages: {path: bytes}."""
    files = [*LIB.glob("*.py"), *(file for name in FOLDERS for file in (LIB / name).rglob("*.py"))]
    return {file.relative_to(LIB).as_posix(): file.read_bytes() for file in sorted(files)}


def found_by_python(name, known):
    """The file of a module below LIB as `importlib` finds it, without running anything; None for any other."""
    folders, spec = [str(LIB)], None
    for part in name.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, folders) if folders is not None else None
        if spec is None:
            return None
        folders = spec.submodule_search_locations
    if not spec.origin or not spec.origin.startswith(f"{LIB}/"):
        return None
    path = Path(spec.origin).relative_to(LIB).as_posix()
    return path if path in known else None


def truth(path, data, known):
    """The modules of LIB that a file imports, by `ast`: b of `from a import b` where b is a module, else a."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Import):
            found |= {found_by_python(alias.name, known) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = found_by_python(f"{base}.{alias.name}", known) if alias.name != "*" else None
                found.add(inner or found_by_python(base, known))
    return found - {None, path}


def test_the_standard_library_has_the_edges_that_python_finds(sources):
    resolver = Resolver(sources, sources.get)
    right = ours = theirs = 0
    wrong = []
    for path, data in sources.items():
        expected, found = truth(path, data, sources), set(resolver.dependencies(path, data, "python"))
        right, ours, theirs = right + len(expected & found), ours + len(found), theirs + len(expected)
        wrong += [(path, sorted(expected - found), sorted(found - expected))] if expected != found else []
    assert theirs > 1500
    assert right / theirs >= 0.995 and right / ours >= 0.995, wrong[:20]
