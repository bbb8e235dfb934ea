"""A source tree in, document records out: one record a text file.

`list_files` is cheap and gives the order; `read_file` does the work for one path, so that a runner can share paths out.
`walk` and `decode` are the parts of them that whole repositories (repositories.py) use too.
Left out without a word: version control and caches (SKIPPED), symbolic links (their targets are listed where they are,
or lie outside the tree) and whatever is no regular file. Files that are not kept come back as Dropped: `file_bytes`,
`binary`, `encoding`, `path_encoding`.
"""

import codecs
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from iqc.errors import IqcError
from iqc.streams.stage import Dropped, Record

MAX_BYTES = 3_000_000  # OpenCoder's limit
_SNIFF = 8000  # bytes in which git looks for a NUL
SKIPPED = frozenset(
    (".git", ".hg", ".svn", ".bzr", ".tox", ".nox", ".venv", "node_modules", "__pycache__")
) | frozenset((".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"))


class NotText(Exception):
    """A rule drops a file for its bytes: `binary` or `encoding`, with the value measured and its threshold."""

    def __init__(self, rule: str, value: object, threshold: object):
        super().__init__(rule)
        self.rule, self.value, self.threshold = rule, value, threshold


def list_files(root: str | Path) -> list[str]:
    """Paths relative to `root`, with `/`, sorted by code point: a directory's files and folders by their full paths.

    IqcError: `root` is not a directory, or a folder in it cannot be read.
    """
    return sorted(path for path, status in walk(root) if stat.S_ISREG(status.st_mode))


def walk(root: str | Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in a tree but its folders: relative path and `lstat`, in no order to rely on. Links to folders are
    links. IqcError as `list_files`.
    """
    if not os.path.isdir(root):
        raise IqcError("not a directory", where=str(root), remedy="name the top of a source tree")

    def refuse(error: OSError) -> NoReturn:
        raise IqcError(f"cannot list: {error.strerror}", where=str(error.filename), remedy="make it readable") from None

    for folder, names, files in os.walk(root, onerror=refuse):
        names[:] = [name for name in names if name not in SKIPPED]
        prefix = Path(folder).relative_to(root).as_posix()
        for name in (*files, *(name for name in names if os.path.islink(os.path.join(folder, name)))):
            try:
                status = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:  # removed since the folder was listed
                continue
            except OSError as error:  # a folder that may be listed but not entered
                refuse(error)
            yield name if prefix == "." else f"{prefix}/{name}", status


def read_file(root: str | Path, path: str, source: str, repo: str | None = None) -> Record | Dropped:
    """The document of one file of `list_files`. `id` is a hash of source, path and bytes, the same on every machine.

    Text is UTF-8, with or without a byte order mark (which is removed), decoded strictly; a file in any other encoding
    is Dropped with the encoding it seems to be in, never guessed at. IqcError: the file cannot be read.
    """
    from iqc.syntax.languages import language_of

    full = os.path.join(root, path)
    name = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    metadata: Record = {"path": name, "lang": None, "bytes": 0}
    if repo is not None:
        metadata["repo"] = repo
    record: Record = {"id": "", "text": "", "source": source, "metadata": metadata}
    try:
        with open(full, "rb") as file:
            metadata["bytes"] = os.fstat(file.fileno()).st_size
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise IqcError(
            f"cannot read: {error.strerror}", where=full, remedy="make it readable, or leave it out"
        ) from None
    record["id"] = hashlib.sha256(b"\0".join((source.encode(), name.encode(), data))).hexdigest()[:32]

    if len(data) > MAX_BYTES:
        return Dropped(record, "file_bytes", metadata["bytes"], MAX_BYTES)
    if name != path:
        return Dropped(record, "path_encoding", name, "utf-8")
    try:
        record["text"], _ = decode(data)
    except NotText as error:
        return Dropped(record, error.rule, error.value, error.threshold)
    metadata["lang"] = language_of(path, record["text"])
    return record


def decode(data: bytes) -> tuple[str, str]:
    """Text and encoding, `utf-8` or, of a file that begins with a byte order mark, `utf-8-sig`; NotText."""
    legacy = _utf_16_or_32(data)
    if legacy is None and b"\0" in data[:_SNIFF]:
        raise NotText("binary", data.index(0), "no NUL in the first 8000 bytes")
    encoding = "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        text = data.decode(encoding) if legacy is None else ""
    except UnicodeDecodeError as error:
        legacy = f"not UTF-8 at byte {error.start}: {_single_byte(data)}"
    if legacy is not None:
        raise NotText("encoding", legacy, "utf-8")
    return text, encoding


def _utf_16_or_32(data: bytes) -> str | None:
    """The encoding that a byte order mark names; UTF-32's begins with UTF-16's, so it is asked first."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            return name
    return None


def _single_byte(data: bytes) -> str:
    """A name for the report: several legacy encodings accept any bytes, so this is what the file may be, not is."""
    try:
        data.decode("windows-1252")
    except UnicodeDecodeError:
        return "binary or a multi-byte encoding"
    return "windows-1252, latin-1 or another legacy encoding"
