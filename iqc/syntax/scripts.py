"""The rule of JavaScript and TypeScript: relative files, paths of a tsconfig.json, packages of the same repository."""

import re
from functools import lru_cache
from typing import Any

import orjson

from iqc.syntax.paths import ancestors, below, folder_of, join, nearest
from iqc.syntax.resolve import Importing, Project, Rule

_TYPED = (".ts", ".tsx", ".d.ts", ".mts", ".cts")
_PLAIN = (".js", ".jsx", ".mjs", ".cjs")
_OTHER = (".json", ".vue", ".svelte")
# TypeScript sources are imported by the name that they are compiled to.
_COMPILED = {".js": (".ts", ".tsx", ".d.ts"), ".jsx": (".tsx",), ".mjs": (".mts", ".d.mts"), ".cjs": (".cts", ".d.cts")}
_ENTRIES = ("source", "types", "typings", "module", "main")  # of package.json, sources before what is built of them
_BUILT = re.compile(r"^(?:\./)?(?:dist|lib|build|out|esm|cjs)/(?:(?:esm|cjs)/)?")
_MAX_EXTENDS = 8  # tsconfig.json files in one chain
_MANIFESTS = 64  # package.json files that are kept parsed
_MAX_VALUES = 64  # paths looked at in one field of package.json
# Each alternative matches wherever it begins, to the end of the text if need be: the time is linear.
_STRING = r'("(?:[^"\\]|\\.|\\\Z)*+(?:"|\Z))'
_NOTE = re.compile(_STRING + r"|//[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/|\Z)", re.DOTALL)
_COMMA = re.compile(_STRING + r"|,(?=\s*+[}\]])", re.DOTALL)


class Script(Rule):
    """A relative specifier is a file, with or without its extension, or a folder with an index or a package.json.

    Others are looked up in `paths` and `baseUrl` of the nearest tsconfig.json or jsconfig.json, then among the names in
    the repository's own package.json files, whose fields name a source, or what is built of it; then, with a `/` in
    them, below each folder above the file (loaders and bundlers are told such roots in programs, which nobody runs).
    """

    def __init__(self, project: Project):
        super().__init__(project)
        self.packages: dict[str, list[str]] = {}
        self._manifest = lru_cache(_MANIFESTS)(lambda path: _json(project.read(path)))
        for path in project.named("package.json"):
            name = self._manifest(path).get("name")
            if isinstance(name, str) and name:
                self.packages.setdefault(name, []).append(path)
        self._configs: dict[str, _Paths | None] = {}

    def find(self, spec: str, importing: Importing) -> list[str]:
        typed = importing.path.endswith(_TYPED)
        if _is_relative(spec):
            return self._file(join(folder_of(importing.path), spec), typed)
        if (config := self._config(importing.path)) is not None:
            for target in config.of(spec):
                if found := self._file(target, typed):
                    return found
        name, rest = _package(spec)
        if name in self.packages:
            return self._in_package(nearest(self.packages[name], importing.path), rest, typed)
        roots = ancestors(importing.path) if rest and not spec.startswith("@") else ()
        found_below = (self._file(join(folder, spec), typed) for folder in roots)
        return next(filter(None, found_below), [])

    def _file(self, path: str | None, typed: bool, into: bool = True) -> list[str]:
        """The file that a path without its extension means."""
        if path is None:
            return []
        known = self.project.known
        extensions = (*_TYPED, *_PLAIN, *_OTHER) if typed else (*_PLAIN, *_TYPED, *_OTHER)
        stem, dot, extension = path.rpartition(".")
        compiled = [stem + other for other in _COMPILED.get(dot + extension, ())]
        for candidate in [path, *compiled, *(path + extension for extension in extensions)]:
            if candidate in known:
                return [candidate]
        if into and path in self.project.folders:
            if below(path, "package.json") in known and (
                found := self._in_package(below(path, "package.json"), "", typed)
            ):
                return found
            return self._file(below(path, "index"), typed, into=False)
        return []

    def _in_package(self, manifest: str, rest: str, typed: bool) -> list[str]:
        """The file that `name` or `name/rest` means, in the package of that package.json."""
        folder, fields = folder_of(manifest), self._manifest(manifest)
        exports = fields.get("exports")
        key = f"./{rest}" if rest else "."
        if isinstance(exports, dict) and (key in exports or any(name.startswith(".") for name in exports)):
            exports = exports.get(key)
        elif rest:
            exports = None
        values = [value for value in map(fields.get, () if rest else _ENTRIES) if isinstance(value, str)]
        values += _strings(exports)
        values += [_BUILT.sub("src/", value) for value in values if _BUILT.match(value)]
        values += [rest, f"src/{rest}", f"lib/{rest}"] if rest else ["src/index", "index", "lib/index"]
        for value in values:
            if found := self._file(join(folder, value), typed, into=False):
                return found
        return self._file(join(folder, f"{rest}/index"), typed, into=False) if rest else []

    def _config(self, path: str) -> "_Paths | None":
        """What the nearest tsconfig.json above a file says of paths."""
        passed: list[str] = []
        found = None
        for folder in ancestors(path):
            if folder in self._configs:
                found = self._configs[folder]
                break
            passed.append(folder)
            names = (below(folder, name) for name in ("tsconfig.json", "jsconfig.json"))
            if name := next((name for name in names if name in self.project.known), None):
                found = self._read_config(name)
                break
        self._configs.update(dict.fromkeys(passed, found))
        return found

    def _read_config(self, path: str | None) -> "_Paths":
        """`paths` and `baseUrl`, each from the first file in the chain of `extends` that has it."""
        base, patterns, pattern_base = None, None, None
        for _ in range(_MAX_EXTENDS):
            if path is None or path not in self.project.known:
                break
            config = _json(self.project.read(path))
            options = config.get("compilerOptions")
            options = options if isinstance(options, dict) else {}
            folder = folder_of(path)
            if base is None and isinstance(options.get("baseUrl"), str):
                base = join(folder, options["baseUrl"])
            if patterns is None and isinstance(options.get("paths"), dict):
                patterns = options["paths"]
                pattern_base = join(folder, options["baseUrl"]) if isinstance(options.get("baseUrl"), str) else folder
            parent = config.get("extends")
            parent = join(folder, parent) if isinstance(parent, str) and _is_relative(parent) else None
            path = parent if parent is None or parent.endswith(".json") else f"{parent}.json"
        return _Paths(base, pattern_base if base is None else base, patterns or {})

    def is_internal(self, spec: str, importing: Importing) -> bool:
        return _is_relative(spec) or _package(spec)[0] in self.packages


class _Paths:
    """`baseUrl` and `paths` of a tsconfig.json: a pattern has at most one `*`, the longest beginning wins."""

    def __init__(self, base: str | None, pattern_base: str | None, patterns: dict[str, Any]):
        self.base = base
        self.folder = pattern_base
        rows = [(name.partition("*"), targets) for name, targets in patterns.items() if isinstance(targets, list)]
        self.patterns = sorted(rows, key=lambda row: (len(row[0][0]), row[0]), reverse=True)[:_MAX_VALUES]

    def of(self, spec: str) -> list[str]:
        """The paths that a specifier may mean, best first."""
        found = []
        for (start, star, end), targets in self.patterns:
            is_long = len(spec) >= len(start) + len(end)
            if spec == start if not star else is_long and spec.startswith(start) and spec.endswith(end):
                middle = spec[len(start) : len(spec) - len(end)]
                said = [target.replace("*", middle, 1) for target in targets[:_MAX_VALUES] if isinstance(target, str)]
                found += [join(self.folder or "", target) for target in said]
                break
        if self.base is not None:
            found.append(join(self.base, spec))
        return [path for path in found if path]


def _is_relative(spec: str) -> bool:
    return spec in (".", "..") or spec.startswith(("./", "../"))


def _package(spec: str) -> tuple[str, str]:
    """`@scope/name/rest` to `@scope/name` and `rest`."""
    parts = spec.split("/")
    length = 2 if spec.startswith("@") else 1
    return "/".join(parts[:length]), "/".join(parts[length:])


def _strings(value: Any) -> list[str]:
    """The strings in a value of package.json, nested ones too, in its order."""
    found: list[str] = []
    pending = [value]
    while pending and len(found) < _MAX_VALUES:
        item = pending.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict | list):
            pending += list(item.values() if isinstance(item, dict) else item)[::-1]
    return found


def _json(data: bytes) -> dict[str, Any]:
    """An object of JSON with comments and commas before brackets; {} for anything else."""
    text = data.decode("utf-8-sig", errors="replace")
    for attempt in (text, _COMMA.sub(r"\1", _NOTE.sub(r"\1", text))):
        try:
            value = orjson.loads(attempt)
        except ValueError:
            continue
        return value if isinstance(value, dict) else {}
    return {}
