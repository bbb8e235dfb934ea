"""The directory tree of a repository that changes path by path, listed down to the depth that fits.

A listing names every file. When there are more than `limit` entries, it is cut by depth: the deepest level at which the
entries still fit, where a directory that is not opened is one entry with a slash at its end. A listing whose top level
alone is larger is cut behind `limit` entries.
"""

from dataclasses import dataclass, field

Directory = dict[str, "Directory | None"]  # name -> what is in it; None for a file


@dataclass(slots=True)
class Listing:
    """Paths with `/` between their parts. Adding one costs its depth; listing costs what is listed."""

    limit: int
    root: Directory = field(default_factory=dict)
    _entries: list[str] | None = None  # the last answer, until a path comes or goes

    def add(self, path: str) -> None:
        """The path is there, whether it was or not. A directory of that name gives way."""
        *parts, name = path.split("/")
        here = self.root
        for part in parts:
            inner = here.get(part)
            if inner is None:
                inner = here[part] = {}
            here = inner
        if name not in here or here[name] is not None:
            here[name] = None
            self._entries = None

    def remove(self, path: str) -> None:
        """The path is not there, whether it was or not. Directories left empty go with it."""
        parts = path.split("/")
        chain = [self.root]
        for part in parts[:-1]:
            inner = chain[-1].get(part)
            if inner is None:
                return
            chain.append(inner)
        if parts[-1] not in chain[-1] or chain[-1][parts[-1]] is not None:
            return
        self._entries = None
        for here, part in zip(reversed(chain), reversed(parts)):
            del here[part]
            if here:
                return

    def entries(self) -> list[str]:
        """The entries in the order of their names as strings. The list is shared: copy it to change it."""
        if self._entries is None:
            self._entries = sorted(self._cut())[: self.limit]
        return self._entries

    def _cut(self) -> list[str]:
        """Level by level: a level is opened when its entries fit in the place of the directories that hold them."""
        files: list[str] = []
        level: list[tuple[str, Directory]] = [("", self.root)]
        while level:
            opened = [(path + name, inner) for path, here in level for name, inner in here.items()]
            files += [path for path, inner in opened if inner is None]
            level = [(path + "/", inner) for path, inner in opened if inner is not None]
            if len(files) + sum(len(inner) for _, inner in level) > self.limit:
                return files + [path for path, _ in level]
        return files
