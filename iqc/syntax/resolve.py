"""From a specifier to files of the repository: the rules of Python, Java, C and C++, which know paths alone.

Where several files could be meant, the one nearest to the importing file is taken (`paths.nearest`). The rules of
languages with project files are in `projects.py`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from iqc.syntax.paths import Ends, ancestors, below, ends_of, folder_of, join
from iqc.syntax.queries import table

MAX_READ = 500_000  # bytes of a project file; a longer one is not read
MAX_WILDCARDS = 64  # imports with `*` of a file that are looked into: each costs a look-up a word
_WORD = re.compile(rb"[A-Za-z_$\x80-\xff][\w$\x80-\xff]*")
_ROOTS = ("src", "lib", "python")  # folders that projects put on Python's path, beside the folders above a file


class Project:
    """The repository that all rules share."""

    def __init__(self, paths: Iterable[str], read: Callable[[str], bytes | None], name: str = ""):
        self.name = name.rpartition("/")[2]
        self.paths = sorted(set(paths))
        self.known = frozenset(self.paths)
        self.groups: dict[str, list[str]] = {}
        self._read = read

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        """A file's bytes; b"" when it is absent or longer than `limit`."""
        data = self._read(path) if path in self.known else None
        return data if data and len(data) <= limit else b""

    def with_ends(self, *extensions: str) -> list[str]:
        return [path for path in self.paths if path.endswith(extensions)]

    def named(self, name: str) -> list[str]:
        """The files of that name, in every folder."""
        return [path for path in self.paths if path.endswith(name) and path.rpartition("/")[2] == name]

    def group(self, name: str, files: list[str]) -> list[str]:
        """The files of something that is imported whole, under one name that is no path. `files` are sorted."""
        if len(files) == 1:
            return files
        self.groups[f"/{name}"] = files
        return [f"/{name}"]

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder with a file in it or below it."""
        found: set[str] = {""}
        for path in self.paths:
            while (path := folder_of(path)) not in found:
                found.add(path)
        return frozenset(found)


@dataclass(slots=True)
class Importing:
    """The importing file."""

    path: str
    data: bytes
    wildcards: int = 0
    roots: list[str] | None = None  # what a rule looks below, once it has found that out
    _words: list[str] | None = None

    @property
    def words(self) -> list[str]:
        """The identifiers of the file, each once, in order: what it takes of a package that it imports whole."""
        if self._words is None:
            self._words = list(dict.fromkeys(word.decode(errors="replace") for word in _WORD.findall(self.data)))
        return self._words

    def may_look_into(self) -> bool:
        """Whether one more import of a whole package is looked into."""
        self.wildcards += 1
        return self.wildcards <= MAX_WILDCARDS


class Rule:
    """How one language names files."""

    def __init__(self, project: Project):
        self.project = project

    def find(self, spec: str, importing: Importing) -> list[str]:
        """Files or groups that the specifier names; none when it names nothing of this repository."""
        raise NotImplementedError

    def is_internal(self, spec: str, importing: Importing) -> bool:
        """Whether a specifier that named nothing looks as if it should have."""
        raise NotImplementedError

    def implied(self, path: str) -> list[str]:
        """Specifiers that hold for a file without standing in it."""
        return []


class Python(Rule):
    """Modules and packages below any folder that is no package itself.

    The folders above the file come first, with `src`, `lib` and `python` in them, as if each were on Python's path;
    then the top of a tree that is a package itself, by the repository's name; then a package anywhere. Of
    `from a import b` the module a.b is needed if there is one, else a.
    """

    def __init__(self, project: Project):
        super().__init__(project)
        files = project.with_ends(".py", ".pyi")
        self.folders = {folder_of(path) for path in files}
        self.packages = {folder_of(path) for path in files if path.endswith(("/__init__.py", "/__init__.pyi"))}
        self.builtin = frozenset(table()["python"]["builtin"])
        self.ends = Ends()
        for path in files:
            for end in ends_of(path):
                # A file at a root is found from below that root alone: `x.py` anywhere else is no module x.
                if "/" in end and path[: -len(end) - 1] not in self.packages:
                    self.ends.add(end, path)

    def find(self, spec: str, importing: Importing) -> list[str]:
        module, _, name = spec.partition(":")
        below_dots = module.lstrip(".")
        parts = below_dots.split(".") if below_dots else []
        names = [[*parts, name], parts] if name else [parts]
        if dots := len(module) - len(below_dots):
            folder = join(folder_of(importing.path), "../" * (dots - 1))
            return [] if folder is None else self._at(folder, names)
        for root in self._roots(importing):
            if found := self._at(root, names):
                return found
        if parts[0] == self.project.name and (found := self._at("", [wanted[1:] for wanted in names])):
            return found
        ends = (end for wanted in names for end in _modules("", wanted))
        anywhere = () if parts[0] in self.builtin else (self.ends.find(end, importing.path) for end in ends)
        return [path for path in anywhere if path][:1]

    def _at(self, folder: str, names: list[list[str]]) -> list[str]:
        """The first of the names that is a module, seen from `folder`; no name is the package itself."""
        found = (path for parts in names for path in _modules(folder, parts) if path in self.project.known)
        return list(islice(found, 1))

    def _roots(self, importing: Importing) -> list[str]:
        if importing.roots is None:
            folders = [folder for folder in ancestors(importing.path) if folder not in self.packages]
            beside = [below(folder, name) for folder in folders for name in _ROOTS]
            importing.roots = folders + [folder for folder in beside if folder in self.project.folders]
        return importing.roots

    def is_internal(self, spec: str, importing: Importing) -> bool:
        top = spec.partition(":")[0].partition(".")[0]
        if not top:
            return True
        near = (below(root, top) in self.folders for root in self._roots(importing))
        return top not in self.builtin and any(near)


def _modules(folder: str, parts: list[str]) -> list[str]:
    """The files that a module may be; a stub stands in for what is compiled."""
    path = "/".join([folder, *parts] if folder else parts)
    names = [below(path, "__init__.py"), below(path, "__init__.pyi")]
    return [f"{path}.py", names[0], f"{path}.pyi", names[1]] if parts else names


class Java(Rule):
    """A class is a file whose path ends in package and name; of a package imported whole, the classes that the file
    names. A member of a class, static or nested, is found with the class."""

    def __init__(self, project: Project):
        super().__init__(project)
        files = project.with_ends(".java")
        self.classes = Ends(files)
        self.packages = {end for folder in {folder_of(path) for path in files} for end in ends_of(folder)}

    def find(self, spec: str, importing: Importing) -> list[str]:
        parts = spec.removesuffix(".*").split(".")
        for length in range(len(parts), 1, -1):
            if found := self.classes.find("/".join(parts[:length]) + ".java", importing.path):
                return [found]
        package = "/".join(parts)
        if not spec.endswith(".*") or package not in self.packages or not importing.may_look_into():
            return []
        named = (self.classes.find(f"{package}/{word}.java", importing.path) for word in importing.words)
        return [path for path in named if path]

    def is_internal(self, spec: str, importing: Importing) -> bool:
        """In a package whose first three names are those of the importing file's folders; `a.*` may need nothing."""
        first = "/".join(spec.split(".")[:3])
        return not spec.endswith("*") and f"/{first}/" in f"/{importing.path}"


class C(Rule):
    """A quoted include is looked for beside the file first; then, as one in brackets, by the end of its path."""

    EXTENSIONS = tuple(
        ".h .hh .hpp .hxx .h++ .inc .inl .ipp .tpp .tcc .def .cuh .c .cc .cpp .cxx .c++ .cu .ixx".split()  # noqa: SIM905
    )

    def __init__(self, project: Project):
        super().__init__(project)
        self.files = Ends(path for path in project.paths if path.lower().endswith(self.EXTENSIONS))
        self.builtin = frozenset(table()["c"]["builtin"])

    def find(self, spec: str, importing: Importing) -> list[str]:
        name = spec[1:-1].strip()
        if spec.startswith('"'):
            beside = join(folder_of(importing.path), name)
            if beside in self.project.known:
                return [beside] if beside else []
        elif name in self.builtin:
            return []
        while name.startswith(("../", "./")):  # from a folder that the build names
            name = name.partition("/")[2]
        found = self.files.find(name, importing.path)
        return [found] if found else []

    def is_internal(self, spec: str, importing: Importing) -> bool:
        return spec.startswith('"')
