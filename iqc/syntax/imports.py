"""What a file imports: its specifiers (`imports`), and the files of the same repository that they name (`Resolver`).

What no import shows is not found: classes of the same Java package, files of the same Go package. Nothing is run, and
nothing but the list of paths and some project files is looked at (go.mod, package.json, tsconfig.json, Cargo.toml; in
C# the namespaces that files declare).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from iqc.syntax.projects import CSharp, Go, Rust
from iqc.syntax.resolve import C, Importing, Java, Project, Python, Rule
from iqc.syntax.scripts import Script
from iqc.syntax.specifiers import imports

__all__ = ["ORDERED", "Resolver", "Targets", "imports"]

RULES: dict[str, type[Rule]] = {
    "python": Python,
    "java": Java,
    "c": C,
    "cpp": C,
    "javascript": Script,
    "typescript": Script,
    "tsx": Script,
    "go": Go,
    "rust": Rust,
    "csharp": CSharp,
}
ORDERED = frozenset(RULES)  # the languages whose imports are resolved


@dataclass(slots=True)
class Targets:
    """What one file imports.

    names       files and groups, sorted
    unresolved  specifiers that look like the repository's own but name nothing in it: generated or moved files, mostly
    parsed      False for a text made to keep the parser busy: it imports nothing
    """

    names: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)
    parsed: bool = True


class Resolver:
    """Imports to paths, for the files of one repository.

    `paths`: all its files. `read` gives the bytes of one, None when it cannot be had. `name`: the repository's, which
    is the package's where a package lies at the top.

    Where an import names all files of a folder (a Go package), the edges of n importers to m files would be n x m.
    `targets` gives a group instead, one name for all of them, whose files `groups` has; `dependencies` has files.
    """

    def __init__(self, paths: Iterable[str], read: Callable[[str], bytes | None], name: str = ""):
        self._project = Project(paths, read, name)
        self._rules: dict[type[Rule], Rule] = {}

    @property
    def groups(self) -> dict[str, list[str]]:
        """The files of each group that `targets` has given so far, sorted."""
        return self._project.groups

    def dependencies(self, path: str, data: bytes, lang: str) -> list[str]:
        """The files that the file at `path` imports, sorted, without itself."""
        found = {file for name in self.targets(path, data, lang).names for file in self.groups.get(name, [name])}
        return sorted(found - {path})

    def targets(self, path: str, data: bytes, lang: str) -> Targets:
        """What the file at `path` imports, but itself."""
        if lang not in RULES:
            return Targets()
        kind = RULES[lang]
        if kind not in self._rules:
            self._rules[kind] = kind(self._project)
        rule, importing = self._rules[kind], Importing(path, data)
        found: set[str] = set()
        unresolved = []
        try:
            own = imports(data, lang)
        except TimeoutError:
            return Targets(parsed=False)
        for spec in dict.fromkeys((*own, *rule.implied(path))):
            named = rule.find(spec, importing)
            found.update(named)
            if not named and rule.is_internal(spec, importing):
                unresolved.append(spec)
        return Targets(sorted(found - {path}), unresolved)
