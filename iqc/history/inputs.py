"""Repositories as a command line names them: [NAME=]DIR."""

from collections.abc import Iterable
from pathlib import Path

from iqc.errors import UsageError


def name_repositories(inputs: Iterable[str]) -> dict[str, str]:
    """Directories by name, in the order given; by the directory's own name where none is said.

    UsageError: a name that is empty, not printable or taken. The ids of records begin with it.
    """
    found: dict[str, str] = {}
    for given in inputs:
        named = "=" in given and not Path(given).exists()
        name, path = given.split("=", 1) if named else (Path(given).resolve().name.removesuffix(".git"), given)
        if not name or not name.isprintable():  # what is no UTF-8 is not printable either
            raise UsageError(f"{given!a} gives no name for records", remedy="give one as NAME=DIR")
        if name in found:
            raise UsageError(f"{found[name]} and {path} are both {name}", remedy=f"give one as OTHER={path}")
        found[name] = path
    return found
