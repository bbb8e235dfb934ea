"""Repositories as a command line names them, [NAME=]DIR, and as the files beside it do, owner/name."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from iqc.errors import UsageError


def name_of(path: str | PathLike[str]) -> str:
    """What a repository is called when nothing else is said: its directory's name."""
    return Path(path).resolve().name.removesuffix(".git")


def name_repositories(inputs: Iterable[str]) -> dict[str, str]:
    """Directories by name, in the order given; by the directory's own name where none is said.

    UsageError: a name that is empty, not printable or taken. The ids of records begin with it.
    """
    found: dict[str, str] = {}
    for given in inputs:
        named = "=" in given and not Path(given).exists()
        name, path = given.split("=", 1) if named else (name_of(given), given)
        if not name or not name.isprintable():  # what is no UTF-8 is not printable either
            raise UsageError(f"{given!a} gives no name for records", remedy="give one as NAME=DIR")
        if name in found:
            raise UsageError(f"{found[name]} and {path} are both {name}", remedy=f"give one as OTHER={path}")
        found[name] = path
    return found


class Asked:
    """The repositories that were asked for, found by the full names of a file, in any case.

    A name that was given without owner stands for the only repository of that name in the file.
    """

    def __init__(self, names: Iterable[str]):
        self._names = {name.lower(): name for name in names}
        self._owners: dict[str, str] = {}  # of names without one, as they are met

    def find(self, full_name: str, where: str) -> str | None:
        """The name that was given for owner/name; None when nobody asked for it. UsageError: a second owner of it."""
        lower = full_name.lower()
        if lower in self._names:
            return self._names[lower]
        owner, _, short = lower.rpartition("/")
        if short not in self._names:
            return None
        if self._owners.setdefault(short, owner) != owner:
            raise UsageError(
                f"{where} has {self._owners[short]}/{short} and {full_name}, where {short} is asked for",
                remedy="name the repository with its owner: OWNER/NAME=REPO",
            )
        return self._names[short]
