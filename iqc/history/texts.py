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
_CACHED = (
    16_000_000  # characters of texts that are kept, because the new side of a commit is an old side of a later one
)


class Rejected(Exception):
    """A rule drops what was asked for, with the value that it measured and its threshold."""

    def __init__(self, rule: str, value: object = None, threshold: object = None):
        super().__init__(rule)
        self.rule, self.value, self.threshold = rule, value, threshold


class Texts:
    """The files of one repository as entries.

    max_bytes   size of a file; a larger one is `file_bytes`, and is not read
    encodings   tried in order, strictly, on a file that declares none
    """

    def __init__(self, repository: Repository, max_bytes: int, encodings: Sequence[str] = ("utf-8",)):
        self.repository, self.max_bytes, self.encodings = repository, max_bytes, tuple(encodings)
        self._cache: OrderedDict[str, tuple[str | None, str | None]] = OrderedDict()
        self._cached = 0

    def entry(self, path: str, mode: str, oid: str) -> Record:
        """The entry of a blob; Rejected by `file_bytes`, `encoding` or `missing_object`."""
        text, encoding = self._read(path, oid)
        return {"path": path, "text": text, "lang": language_of(path, text), "mode": mode, "encoding": encoding}

    def _read(self, path: str, oid: str) -> tuple[str | None, str | None]:
        if oid in self._cache:
            self._cache.move_to_end(oid)
            return self._cache[oid]
        try:
            data = self.repository.blob(oid, self.max_bytes)
        except MissingObject as error:
            raise Rejected("missing_object", error.what) from None
        if isinstance(data, int):
            raise Rejected("file_bytes", data, self.max_bytes)
        found = (None, None) if b"\0" in data[:_BINARY_PREFIX] else self._decode(path, data)
        self._cache[oid] = found
        self._cached += len(found[0] or "")
        while self._cached > _CACHED:
            self._cached -= len(self._cache.popitem(last=False)[1][0] or "")
        return found

    def _decode(self, path: str, data: bytes) -> tuple[str, str]:
        """Text and encoding: what the file declares in its first two lines, else the first that is wholly right."""
        declared = _DECLARED.search(b"\n".join(data[:1000].split(b"\n", 2)[:2]))
        said = [next(filter(None, declared.groups())).decode()] if declared else []
        for name in [*said, *self.encodings]:
            try:
                encoding = codecs.lookup(name).name
                text = data.decode(encoding)
                if text.encode(encoding) == data and _superset_of_ascii(encoding):
                    return text, encoding
            except (LookupError, ValueError):
                continue
        raise Rejected("encoding", path, ", ".join([*said, *self.encodings]))


@cache
def _superset_of_ascii(encoding: str) -> bool:
    """A patch mixes file text with ASCII headers, so only such an encoding can carry it (not UTF-16, not EBCDIC)."""
    plain = bytes(range(128))
    return plain.decode(encoding, errors="replace") == plain.decode("ascii")


def verified_patch(raw: bytes, old: Sequence[Record], new: Sequence[Record]) -> tuple[str, str]:
    """A diff of two commits (`Repository.diff`) as text without its binary files, and the encoding of that text.

    It was applied to the entries `old` and gave `new`; encoded again, it is what `git apply` takes for the files'
    bytes. Both must hold every file that it touches, and may hold others. Rejected by `encodings` or `patch`.
    """
    encoding = _common_encoding([*old, *new])
    binary = {file["path"] for side in (old, new) for file in side if file["text"] is None}
    try:
        patch = without(_text_patch(raw, encoding), binary)
        if apply_patch(_state(old, binary), patch) != _state(new, binary):
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

    data = re.sub(rb"^(@@ -\S+ \+\S+ @@)(.*)$", whole, raw, flags=re.MULTILINE)
    patch = data.decode(encoding)
    if patch.encode(encoding) != data:
        raise UnicodeError(f"the patch does not survive {encoding}")
    return patch
