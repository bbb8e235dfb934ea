"""What a file says that it imports, as text, by the tree-sitter queries of `imports.toml`.

- python: a.b of `import a.b` and `from a.b import *`, a.b:c of `from a.b import c`, with the dots of a relative import
- java: a.b.C; a.b.C.member of a static import; a.b.*
- c, cpp: "x.h" and <x.h>, with their quotes
- javascript, typescript, tsx: what stands between the quotes; of a reference comment its path, as a relative one
- go: the path between its quotes
- rust: a::b::c for every path of a `use`; `mod self::a` of `mod a;`; "x.rs" with its quotes of #[path] and include!
- csharp: A.B.C of `using A.B.C`
"""

import re
from collections.abc import Callable
from itertools import islice

from iqc.syntax.paths import MAX_PARTS
from iqc.syntax.queries import MAX_NAME, Match, matches, table
from iqc.syntax.rust import rust_paths

MAX_SPECIFIERS = 10_000  # of a file, which has that many in no hand-written source


def imports(data: bytes, lang: str) -> list[str]:
    """The specifiers of a file, each once, in the order of the file; none for a language that has no query.

    What cannot name a file is passed over: with a NUL, above MAX_NAME, of more than MAX_PARTS parts; and all behind the
    first MAX_SPECIFIERS. TimeoutError as `queries.matches`.
    """
    if lang not in table():
        return []
    if lang == "rust":
        found = rust_paths(list(matches(data, lang, "query")))
    else:
        text = _TEXT.get(lang, _dotted)
        found = [(match.start, text(match)) for match in matches(data, lang, "query") if match.is_short]
    return list(islice(dict.fromkeys(spec for _, spec in sorted(found) if _is_usable(spec)), MAX_SPECIFIERS))


def _is_usable(spec: str) -> bool:
    return 0 < len(spec) <= MAX_NAME and "\0" not in spec and spec.count(".") <= MAX_PARTS


def _dotted(match: Match) -> str:
    """`module` and `name` with a dot between them, without the white space that may stand around dots."""
    module, name = ("".join(match.text(part).split()) for part in ("module", "name"))
    if "wildcard" in match:
        name = "*"
    return f"{module}.{name}" if module and name and not module.endswith(".") else module + name


def _python(match: Match) -> str:
    module, name = ("".join(match.text(part).split()) for part in ("module", "name"))
    return f"{module}:{name}" if module and name else module + name


def _include(match: Match) -> str:
    return match.text("name").replace("\\", "/")  # as compilers for Windows have it


def _quoted(match: Match) -> str:
    return match.text("name").strip("\"'`")


def _script(match: Match) -> str:
    if "reference" in match:
        said = _REFERENCE.search(match.text("reference"))
        return f"./{said[1]}" if said else ""
    return match.text("name")


def _namespace(match: Match) -> str:
    return _dotted(match).removeprefix("global::")


_REFERENCE = re.compile(r"<reference\s+path\s*=\s*[\"']([^\"']+)[\"']")
_TEXT: dict[str, Callable[[Match], str]] = {
    "python": _python,
    "c": _include,
    "cpp": _include,
    "go": _quoted,
    "javascript": _script,
    "typescript": _script,
    "tsx": _script,
    "csharp": _namespace,
}
