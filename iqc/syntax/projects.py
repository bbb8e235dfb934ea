"""The rules of languages whose imports name modules, crates and namespaces, which project files or sources declare.

Project files are data: they are parsed, never obeyed. One that cannot be read declares nothing.
"""

import re
import tomllib
from typing import Any

from iqc.syntax.namespaces import declared
from iqc.syntax.paths import MAX_PARTS, ancestors, below, folder_of, join, nearest
from iqc.syntax.queries import table
from iqc.syntax.resolve import Importing, Project, Rule

_MODULE = re.compile(rb"^[ \t]*module[ \t]+\"?([^\s\"]+)", re.MULTILINE)


class Go(Rule):
    """An import path below a module's is a folder: the package is all its files but the tests.

    Modules are the folders with a `go.mod`. Without any, as before Go 1.11, the folder is what follows host, owner and
    repository. `vendor/` holds other modules by their whole paths.
    """

    def __init__(self, project: Project):
        super().__init__(project)
        self.packages: dict[str, list[str]] = {}
        self.modules: dict[str, str] = {}
        for path in project.paths:
            if path.endswith(".go") and not path.endswith("_test.go"):
                self.packages.setdefault(folder_of(path), []).append(path)
        for path in project.named("go.mod"):
            if said := _MODULE.search(project.read(path)):
                self.modules.setdefault(said[1].decode(errors="replace"), folder_of(path))

    def find(self, spec: str, importing: Importing) -> list[str]:
        folder = self._folder(spec)
        vendored = (below(root, f"vendor/{spec}") for root in ancestors(importing.path))
        for candidate in vendored if folder is None else [folder]:
            if candidate in self.packages:
                return self.project.group(f"go/{candidate}", self.packages[candidate])
        return []

    def _folder(self, spec: str) -> str | None:
        if spec.startswith("./") or spec.startswith("../"):
            return None
        for length in range(len(parts := spec.split("/")[:MAX_PARTS]), 0, -1):
            root = self.modules.get("/".join(parts[:length]))
            if root is not None:
                return "/".join([*([root] if root else []), *parts[length:]])
        if not self.modules and len(parts) > 3 and "." in parts[0]:
            folder = "/".join(parts[3:])
            return folder if folder in self.packages else None
        return None

    def is_internal(self, spec: str, importing: Importing) -> bool:
        return self._folder(spec) is not None


class Rust(Rule):
    """Modules are files below the file that declares them; crates are the folders with a `Cargo.toml`.

    The longest beginning of a path that is a module is taken: what follows it are items. A path whose first name is no
    child module may begin with a crate of the repository.
    """

    def __init__(self, project: Project):
        super().__init__(project)
        self.roots: dict[str, str] = {}  # files that Cargo.toml names as a crate's first, with their folders
        self.crates: dict[str, list[str]] = {}  # first files by the name that sources use
        self.manifests: set[str] = set()
        for path in project.named("Cargo.toml"):
            folder = folder_of(path)
            self.manifests.add(folder)
            manifest = _toml(project.read(path))
            library = _table(manifest, "lib")
            first = join(folder, library["path"] if isinstance(library.get("path"), str) else "src/lib.rs")
            name = library.get("name") or _table(manifest, "package").get("name")
            if isinstance(name, str) and first in project.known:
                self.crates.setdefault(name.replace("-", "_"), []).append(first)
            targets = [library, *(row for kind in ("bin", "example", "test", "bench") for row in _rows(manifest, kind))]
            said = (join(folder, row["path"]) for row in targets if isinstance(row.get("path"), str))
            self.roots.update((path, folder_of(path)) for path in said if path in project.known and path)
        self.root_in = {folder: path for path, folder in sorted(self.roots.items(), reverse=True)}

    def find(self, spec: str, importing: Importing) -> list[str]:
        if spec.startswith('"'):  # include!, include_str!, #[path]
            file = join(folder_of(importing.path), spec.strip('"'))
            return [file] if file in self.project.known and file else []
        whole = spec.startswith("mod ")
        first, *rest = spec.removeprefix("mod ").split("::")
        if first == "self":
            return self._below(importing.path, rest, whole)
        if first == "super":
            file = importing.path
            rest.insert(0, "super")
            while rest and rest[0] == "super":
                file = self._parent(file) or ""
                rest = rest[1:]
            return self._below(file, rest) if file else []
        if first == "crate":
            root = self._root(importing.path)
            return self._below(root, rest) if root else []
        if first and (child := self._below(importing.path, [first, *rest])) != [importing.path]:
            return child
        name = first or (rest or [""])[0]  # `::name` is a crate
        if name in self.crates:
            return self._below(nearest(sorted(self.crates[name]), importing.path), rest if first else rest[1:])
        return []

    def _below(self, file: str, names: list[str], whole: bool = False) -> list[str]:
        """The longest beginning of `names` that is a module below a file's; the file itself for none of them."""
        folder = self._folder(file)
        for length in range(len(names), 0, -1):
            path = below(folder, "/".join(names[:length]))
            for candidate in (f"{path}.rs", f"{path}/mod.rs"):
                if candidate in self.project.known:
                    return [candidate]
            if whole:
                return []
        return [file]

    def _is_root(self, file: str) -> bool:
        """A crate's first file: by its name, by Cargo.toml, or by Cargo's layout of targets."""
        folder, _, name = file.rpartition("/")
        if name in ("lib.rs", "main.rs") or file in self.roots:
            return True
        package, _, kind = folder.rpartition("/")
        if kind == "bin" and package.endswith("src"):
            package, kind = folder_of(package), "tests"
        return (kind in ("tests", "benches", "examples") or name == "build.rs") and (
            (folder if name == "build.rs" else package) in self.manifests
        )

    def _folder(self, file: str) -> str:
        """Where the child modules of a file lie."""
        is_own = file.endswith("/mod.rs") or file == "mod.rs" or self._is_root(file)
        return folder_of(file) if is_own else file.removesuffix(".rs")

    def _owner(self, folder: str) -> str | None:
        """The file whose child modules lie in a folder."""
        names = [below(folder, name) for name in ("mod.rs", "lib.rs", "main.rs")]
        found = next((name for name in [*names, f"{folder}.rs"] if name in self.project.known), None)
        return found or self.root_in.get(folder)

    def _parent(self, file: str) -> str | None:
        if self._is_root(file):
            return None
        folder = folder_of(file)
        return self._owner(folder_of(folder) if file.endswith("/mod.rs") else folder)

    def _root(self, file: str) -> str | None:
        """The first file of the crate that a file belongs to."""
        if self._is_root(file):
            return file
        for folder in ancestors(file):
            for name in (below(folder, "lib.rs"), below(folder, "main.rs"), self.root_in.get(folder)):
                if name in self.project.known:
                    return name
            if folder in self.manifests:
                break
        return None

    def is_internal(self, spec: str, importing: Importing) -> bool:
        return spec.startswith(('"', "mod ", "crate", "super", "self"))


def _toml(data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        return {}


def _table(parsed: Any, name: str) -> dict[str, Any]:
    value = parsed.get(name)
    return value if isinstance(value, dict) else {}


def _rows(parsed: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = parsed.get(name)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


class CSharp(Rule):
    """A namespace is what files say that they declare: `using` it takes the types and extension methods of it that the
    file names. A path may go on with a type (`using static`, an alias). A `global using` holds for its project: the
    files below the nearest folder with a `.csproj`, or the repository.
    """

    MAX_BYTES = 3_000_000  # of a source that is read for its namespaces

    def __init__(self, project: Project):
        super().__init__(project)
        self.projects = {folder_of(path) for path in project.with_ends(".csproj")}
        self.namespaces: dict[str, dict[str, list[str]]] = {}
        self.everywhere: dict[str, list[str]] = {}
        for path in project.with_ends(".cs"):
            try:
                found = declared(project.read(path, self.MAX_BYTES))
            except TimeoutError:
                continue
            for namespace, name in found.names:
                files = self.namespaces.setdefault(namespace, {}).setdefault(name, [])
                if not files or files[-1] != path:
                    files.append(path)
            if found.everywhere:
                self.everywhere.setdefault(self._project(path), []).extend(found.everywhere)
        self.builtin = frozenset(table()["csharp"]["builtin"])
        self.first_names = {namespace.partition(".")[0] for namespace in self.namespaces} - self.builtin

    def _project(self, path: str) -> str:
        return next((folder for folder in ancestors(path) if folder in self.projects), "")

    def find(self, spec: str, importing: Importing) -> list[str]:
        parts = spec.split(".")
        for length in range(len(parts), 0, -1):
            namespace = ".".join(parts[:length])
            names = self.namespaces.get(namespace)
            if names is None:
                continue
            if length < len(parts):
                wanted = [parts[length]]
            else:
                wanted = importing.words if importing.may_look_into() else []
            groups = (self.project.group(f"csharp/{namespace}.{name}", names[name]) for name in wanted if name in names)
            return [found for group in groups for found in group]
        return []

    def implied(self, path: str) -> list[str]:
        return self.everywhere.get(self._project(path), [])

    def is_internal(self, spec: str, importing: Importing) -> bool:
        return spec not in self.namespaces and spec.partition(".")[0] in self.first_names
