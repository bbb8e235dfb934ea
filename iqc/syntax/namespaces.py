"""C#'s namespaces: what a file declares in them for those that use them."""

import re
from bisect import bisect
from dataclasses import dataclass, field

from iqc.syntax.paths import MAX_PARTS
from iqc.syntax.queries import matches

# `using` between #if and #else can keep the grammar from seeing the namespace behind it: then its line is believed.
_LINE = re.compile(rb"^[ \t]*namespace[ \t]+([\w.]{1,1000})", re.MULTILINE)


@dataclass(slots=True)
class Declared:
    """What a file gives to others: (namespace, name) of its types and extension methods, and what all files of its
    project import by it."""

    names: list[tuple[str, str]] = field(default_factory=list)
    everywhere: list[str] = field(default_factory=list)


def declared(data: bytes) -> Declared:
    """The namespaces of a file with the names in them; types inside of types are left out."""
    found = Declared()
    rows: list[tuple[int, int, str, str]] = []  # start, end, kind, name
    for match in matches(data, "csharp", "declares"):
        if "everywhere" in match:
            found.everywhere.append(match.text("everywhere").removeprefix("global::"))
            continue
        kind = next(name for name in ("namespace", "file_namespace", "type", "extension") if name in match)
        node = match[kind]
        name = "".join(match.text("name").split())
        rows.append((node.start_byte, node.end_byte, kind, name))
    lines = [(match.start(), match[1].decode(errors="replace")) for match in _LINE.finditer(data)]
    around: list[tuple[int, str, str]] = []  # ends, kinds and names of the declarations around
    for start, end, kind, name in sorted(rows, key=lambda row: (row[0], -row[1])):
        while around and around[-1][0] <= start:
            around.pop()
        if kind == "file_namespace":
            around.append((len(data) + 1, "namespace", name))
            continue
        outer = around[-1] if around else None
        if kind == "namespace":
            if len(around) < MAX_PARTS:
                around.append((end, kind, f"{outer[2]}.{name}" if outer else name))
            continue
        namespace = next((row[2] for row in reversed(around) if row[1] == "namespace"), None)
        if namespace is None:
            before = bisect(lines, (start, ""))
            namespace = lines[before - 1][1] if before else ""
        if kind == "extension" or outer is None or outer[1] == "namespace":
            found.names.append((namespace, name))
        if kind == "type" and (outer is None or outer[1] == "namespace"):
            around.append((end, kind, name))
    return found
