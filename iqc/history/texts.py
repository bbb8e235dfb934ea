"""File entries of a repository's blobs, and patches that are known to turn one set of entries into another.

An entry is {path, text, lang, mode, encoding}. A binary file (a NUL among its first 8000 bytes, Git's own rule) has
text and encoding null and no part in a patch. What cannot be an entry or a patch is `Rejected` by rule: `file_bytes`,
`encoding`, `missing_object`; `encodings` (the texts of one patch agree on none), `patch`.
"""

import codecs
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cache

from iqc.history.git import MissingObject, Repository
from iqc.history.patch import PatchError, apply_patch, without
from iqc.streams.stage import Record
from iqc.syntax.languages import language_of

_BINARY_PREFIX = 8000  # bytes that Git looks at for a NUL (xdiff-interface.c, FIRST_FEW_BYTES)
# PEP 263, and the same in the modelines of Emacs and Vim; the encoding of an XML declaration
_DECLARED = re.compile(rb"coding[:=][ \t]*([-\w.]+)|<\?xml[^>]*encoding=[\"']([-\w.]+)[\"']")
# Characters of texts that are kept, because the new side of a commit is an old side of a later one.
_CACHED = 16_000_000

_Text = tuple[str | None, str | None]


def is_binary(data: bytes) -> bool:
    """By Git's own rule: a NUL near the beginning."""
    return b"\0" in data[:_BINARY_PREFIX]


class Rejected(Exception):
    """A rule drops what was asked for, with the value that it measured and its threshold."""

    def __init__(self, rule: str, value: object = None, threshold: object = None):
        super().__init__(rule)
        self.rule, self.value, self.threshold = rule, value, threshold


class Texts:
    """The files of one repository as entries. What was read last is kept, `_CACHED` characters of it.

    max_bytes   size of a file; a larger one is `file_bytes`, and is not read
    encodings   tried in order, strictly, on a file that declares none
    """

    def __init__(self, repository: Repository, max_bytes: int, encodings: Sequence[str] = ("utf-8",)):
        self.repository, self.max_bytes, self.encodings = repository, max_bytes, tuple(encodings)
        self._cache: OrderedDict[str, _Text | Rejected] = OrderedDict()
        self._cached = 0

    def entry(self, path: str, mode: str, oid: str) -> Record:
        """The entry of a blob; Rejected by `file_bytes`, `encoding` or `missing_object`."""
        text, encoding = self.read(oid)
        return {"path": path, "text": text, "lang": language_of(path, text), "mode": mode, "encoding": encoding}

    def read(self, oid: str) -> _Text:
        """Text and encoding of a blob, both None when it is binary; Rejected as `entry`."""
        if oid not in self._cache:
            self.prefetch([oid])
        found = self._cache[oid]
        if isinstance(found, Rejected):
            raise found.with_traceback(None)
        self._cache.move_to_end(oid)
        return found

    def prefetch(self, oids: Iterable[str]) -> None:
        """Read the blobs that are soon asked for in one go: much faster than one at a time."""
        wanted = [oid for oid in dict.fromkeys(oids) if oid not in self._cache]
        for oid, data in zip(wanted, self.repository.blobs(wanted, self.max_bytes)):
            found = self._cache[oid] = self._text(oid, data)
            self._cached += _size(found)
            while self._cached > _CACHED and len(self._cache) > 1:
                self._cached -= _size(self._cache.popitem(last=False)[1])

    def _text(self, oid: str, data: bytes | int | MissingObject) -> _Text | Rejected:
        if isinstance(data, MissingObject):
            return Rejected("missing_object", data.what)
        if isinstance(data, int):
            return Rejected("file_bytes", data, self.max_bytes)
        if is_binary(data):
            return None, None
        return self._decode(oid, data)

    def _decode(self, oid: str, data: bytes) -> _Text | Rejected:
        """Text and encoding: what the file declares in its first two lines, else the first that is wholly right."""
        declared = _DECLARED.search(b"\n".join(data[:1000].split(b"\n", 2)[:2]))
        said = [next(filter(None, declared.groups())).decode()] if declared else []
        for name in [*said, *self.encodings]:
            try:
                encoding = codecs.lookup(name).name
                if not superset_of_ascii(encoding):  # asked first: some of the others decode in quadratic time
                    continue
                text = data.decode(encoding)
                # UTF-8 is strict: no two texts have the same bytes.
                if encoding == "utf-8" or (text.encode(encoding) == data and text.encode()):
                    return text, encoding
            except (LookupError, ValueError):
                continue
        return Rejected("encoding", oid, ", ".join([*said, *self.encodings]))


def _size(found: _Text | Rejected) -> int:
    return 0 if isinstance(found, Rejected) else len(found[0] or "")


@cache
def superset_of_ascii(encoding: str) -> bool:
    """A patch mixes file text with ASCII headers, so only such an encoding can carry it (not UTF-16, not EBCDIC).

    One that reads escapes is none: its text is not what anybody sees, and may be no Unicode.
    """
    samples = (rb"\u0041\x41\N{DIGIT ONE}", bytes(range(128)))
    try:
        return all(sample.decode(encoding, errors="replace") == sample.decode("ascii") for sample in samples)
    except ValueError:
        return False


def verified_patch(
    raw: bytes, old: Sequence[Record], new: Sequence[Record], context: Sequence[Record] = ()
) -> tuple[str, str]:
    """A diff of two commits (`Repository.diff`) as text without its binary files, and the encoding of that text.

    Applied to the entries `old` and `context` it gave `new` and `context`; encoded again, it is what `git apply` takes
    for the files' bytes. `old` and `new` are the files that the diff touches; one that is binary on one side loses its
    text on the other, because it has no part in the patch. Rejected by `encodings` or `patch`.
    """
    binary = {file["path"] for side in (old, new) for file in side if file["text"] is None}
    for file in [*old, *new]:
        if file["path"] in binary:
            file["text"] = file["encoding"] = None
    encoding = _common_encoding([*old, *new])
    try:
        patch = _text_patch(raw, encoding)
        if binary:
            patch = without(patch, binary)
        if apply_patch(_state([*old, *context], binary), patch) != _state([*new, *context], binary):
            raise PatchError("the patch gives another state")
    except UnicodeError:
        raise Rejected("encodings", encoding) from None
    except PatchError as error:
        raise Rejected("patch", error.what) from None
    return patch, encoding


def _common_encoding(files: Iterable[Record]) -> str:
    """ASCII text is the same in every encoding that is let in; the rest must agree, or no patch would apply."""
    used = sorted({file["encoding"] for file in files if file["text"] is not None and not file["text"].isascii()})
    if len(used) > 1:
        raise Rejected("encodings", used, 1)
    return used[0] if used else "utf-8"


def _state(files: Iterable[Record], binary: set[str]) -> dict[str, tuple[str, str]]:
    return {file["path"]: (file["mode"], file["text"]) for file in files if file["path"] not in binary}


def _text_patch(raw: bytes, encoding: str) -> str:
    """The patch as text; encoded again it is what `git apply` takes for the files' bytes. UnicodeError when it is not.

    Git cuts the function name behind `@@` at 80 bytes, which may be inside a character: those bytes are left out.
    """

    def whole(match: re.Match[bytes]) -> bytes:
        return match[1] + match[2].decode(encoding, errors="ignore").encode(encoding)

    if raw.isascii():
        return raw.decode("ascii")
    data = re.sub(rb"^(@@ -\S+ \+\S+ @@)(.*)$", whole, raw, flags=re.MULTILINE)
    patch = data.decode(encoding)
    if patch.encode(encoding) != data:
        raise UnicodeError(f"the patch does not survive {encoding}")
    return patch
