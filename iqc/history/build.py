"""Making a Git repository from given versions of files, and a plausible life from finished source files.

`build_history` writes commits with `git fast-import`: author, dates and branch are fixed, so the same versions have the
same commit ids everywhere. `life` takes source files as they are today and derives versions that lead to them: a module
appears with its imports, then gains its functions and classes one at a time, then their documentation; tests come
later; some files move. Every line of it is the source's own; only the order is made up, and the messages say what the
commit does.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from random import Random

from tree_sitter import Node

from iqc.errors import IqcError
from iqc.history.git import environment
from iqc.streams.stage import rng
from iqc.syntax.languages import language_of
from iqc.syntax.parse import parse

EPOCH = 1_600_000_000  # seconds since 1970 of the first commit
INTERVAL = 86_400  # seconds between commits

# Top-level definitions, by language; a language that is not here has files that come whole.
_DEFINITIONS = {
    "python": {"function_definition", "class_definition", "decorated_definition"},
    "c": {"function_definition"},
    "go": {"function_declaration", "method_declaration"},
    "rust": {"function_item", "impl_item"},
    "javascript": {"function_declaration", "class_declaration"},
}
_TEST = re.compile(r"(?:^|/)tests?/|(?:^|/)test_[^/]*$|_test\.\w+$")


@dataclass(frozen=True, slots=True)
class Version:
    """One commit: its message and what it changes. A file is its bytes or text, or None when it is deleted."""

    message: str
    files: Mapping[str, str | bytes | None]
    modes: Mapping[str, str] = field(default_factory=dict)  # 100644 for a path that is not named


def build_history(
    target: str | os.PathLike[str],
    versions: Iterable[Version],
    author: str = "iqc <iqc@example.org>",
    branch: str = "main",
) -> str:
    """Write a bare repository at `target`, one commit a version, and return the id of the last commit.

    IqcError when the directory exists and is not empty, when there is no version, or when Git refuses the input.
    """
    place = Path(target)
    if place.exists() and any(place.iterdir()):
        raise IqcError(f"{place} is not empty", remedy="give a directory that does not exist yet")
    stream = b"".join(_commit(k, version, author, branch) for k, version in enumerate(versions))
    if not stream:
        raise IqcError("a history needs at least one version", remedy="give more source files")
    with tempfile.TemporaryDirectory(prefix="iqc-git-") as home:
        env = environment(Path(home))
        _git(env, "init", "--quiet", "--bare", "--template=", f"--initial-branch={branch}", str(place))
        _git(env, f"--git-dir={place}", "fast-import", "--quiet", "--done", stdin=stream + b"done\n")
        return _git(env, f"--git-dir={place}", "rev-parse", f"refs/heads/{branch}").decode().strip()


def _git(env: dict[str, str], *arguments: str, stdin: bytes = b"") -> bytes:
    try:
        done = subprocess.run(["git", *arguments], env=env, input=stdin, capture_output=True)
    except FileNotFoundError:
        raise IqcError("git is not installed", remedy="install git 2.36 or later") from None
    if done.returncode:
        raise IqcError(f"git {arguments[-1]}: {done.stderr.decode(errors='replace').strip()[:500]}")
    return done.stdout


def _commit(k: int, version: Version, author: str, branch: str) -> bytes:
    """One commit in the language of fast-import; without `from`, it follows the last one of its branch."""
    when = f"{author} {EPOCH + k * INTERVAL} +0000"
    parts = [f"commit refs/heads/{branch}\nauthor {when}\ncommitter {when}\n".encode(), _data(version.message.encode())]
    # Deletions first: a path may become a directory.
    for path in sorted(path for path, content in version.files.items() if content is None):
        parts.append(f"D {_quote(path)}\n".encode())
    for path, content in sorted((path, content) for path, content in version.files.items() if content is not None):
        data = content.encode() if isinstance(content, str) else content
        parts += [f"M {version.modes.get(path, '100644')} inline {_quote(path)}\n".encode(), _data(data)]
    return b"".join(parts)


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def _quote(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@dataclass(frozen=True, slots=True)
class _Step:
    """What happens to a file: `verb` is create, add, document or move; `spans` are the bytes that come with it."""

    verb: str
    name: str
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class _Growing:
    """One file on its way: where it is now, its last bytes, and the steps that are still to come."""

    path: str
    now: str
    data: bytes
    steps: list[_Step]

    def text(self) -> bytes:
        """The last bytes less the spans that are still to come; a span may lie inside another."""
        out, at = [], 0
        for start, end in sorted(span for step in self.steps for span in step.spans):
            if end > at:
                out.append(self.data[at : max(at, start)])
                at = end
        return b"".join([*out, self.data[at:]])


def life(files: Sequence[tuple[str, str]], commits: int = 100, seed: int = 0) -> list[Version]:
    """Versions that lead to `files` exactly: about `commits` of them, fewer when the files give no more.

    A commit brings steps of one file, drawn in proportion to the steps that it still has. Tests start when two thirds
    of the code are there. One file in eight starts under another name and is moved later.
    """
    taken = {path for path, _ in files}
    if len(taken) != len(files):
        raise IqcError("a path is given twice", remedy="give every file once")
    random = rng(seed, "life", "\0".join(path for path, _ in files))
    growing = [_growing(path, text, taken if k % 8 == 7 else None, random) for k, (path, text) in enumerate(files)]
    tests = [file for file in growing if _TEST.search(file.path)]
    active = [file for file in growing if not _TEST.search(file.path)]
    late = sum(len(file.steps) for file in active) / 3
    group = max(1, -(-sum(len(file.steps) for file in growing) // max(1, commits)))
    versions = []
    while active or tests:
        if tests and sum(len(file.steps) for file in active) <= late:
            active, tests = active + tests, []
        file = random.choices(active, [len(file.steps) for file in active])[0]
        versions.append(_next(file, group))
        if not file.steps:
            active.remove(file)
    return versions


def _next(file: _Growing, group: int) -> Version:
    """The next commit of a file: its next step, with those behind it that do the same, `group` at most."""
    verb = file.steps[0].verb
    count = 1
    while count < group and verb != "move" and len(file.steps) > count and file.steps[count].verb == verb:
        count += 1
    done, file.steps = file.steps[:count], file.steps[count:]
    if verb == "move":
        before, file.now = file.now, file.path
        return Version(f"Move {before} to {file.path}\n", {before: None, file.path: file.text()})
    module = _module(file.now)
    if verb == "create":
        subject = f"Add tests in {module}" if _TEST.search(file.path) else f"Add the module {module}"
    else:
        names = list(dict.fromkeys(step.name for step in done))
        shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
        listed = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
        subject = f"{verb.capitalize()} {listed} {'to' if verb == 'add' else 'in'} {module}"
    return Version(subject + "\n", {file.now: file.text()})


def _module(path: str) -> str:
    return path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") if path.endswith(".py") else path


def _growing(path: str, text: str, taken: set[str] | None, random: Random) -> _Growing:
    """The steps of a file; with `taken`, it starts under a name that is not in it and is moved at a drawn step."""
    data = text.encode()
    lang = language_of(path, text)
    steps = [_Step("create", path)]
    if lang in _DEFINITIONS:
        steps += _additions(data, lang)
    now = path
    if taken is not None:
        place = PurePosixPath(path)
        while now in taken:
            now = str(place.with_name(f"old_{PurePosixPath(now).name}"))
        steps.insert(random.randint(1, len(steps)), _Step("move", path))
    return _Growing(path, now, data, steps)


def _additions(data: bytes, lang: str) -> list[_Step]:
    """Each top-level definition, each method of a Python class but the first, then the docstrings by definition."""
    added, documented = [], []
    for node in parse(data, lang).root_node.named_children:
        if node.type not in _DEFINITIONS[lang] or node.has_error:
            continue
        definition = node.child_by_field_name("definition") or node
        name = _name(definition)
        added.append(_Step("add", name, (_span(node),)))
        if lang == "python":
            block = definition.child_by_field_name("body")
            inner = block.named_children if block and definition.type == "class_definition" else []
            methods = [child for child in inner if child.type in _DEFINITIONS[lang]]
            for method in methods[1:]:
                method_name = _name(method.child_by_field_name("definition") or method)
                added.append(_Step("add", f"{name}.{method_name}", (_span(method),)))
            spans = tuple(span for item in (node, *methods) if (span := _docstring(item)))
            if spans:
                documented.append(_Step("document", name, spans))
    return added + documented


def _name(node: Node) -> str:
    """The name of a definition; in C it is inside the declarator, a Rust impl has its type."""
    while (inner := node.child_by_field_name("name") or node.child_by_field_name("declarator")) is not None:
        node = inner
    named = node.child_by_field_name("type") or node
    return (named.text or b"").decode(errors="replace").split("(")[0].split("\n")[0].strip()


def _span(node: Node) -> tuple[int, int]:
    """A definition with the blank lines before it."""
    before = node.prev_sibling
    return (before.end_byte if before else node.start_byte), node.end_byte


def _docstring(node: Node) -> tuple[int, int] | None:
    """The docstring of a function or class up to the next statement; None when there is none, or nothing else."""
    block = (node.child_by_field_name("definition") or node).child_by_field_name("body")
    if block is None:
        return None
    if not block.named_children:
        return None
    first, *others = block.named_children
    if all(other.type == "comment" for other in others):
        return None
    inner = first.named_children[0] if first.type == "expression_statement" and first.named_children else first
    return (first.start_byte, others[0].start_byte) if inner.type == "string" else None
