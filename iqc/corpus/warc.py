"""WARC 1.0 and 1.1 in, documents out: plain, gzip (one member a record, or one for all) or zstd, read as a stream.

`read_records` knows the container only. `documents` takes the records that can hold text: HTTP responses and resources
(HTML goes through `iqc.corpus.html`), and WET conversion records, whose text is used as it is. Damage inside one record
costs that record, which comes back as Dropped. Damage of the container (cut or corrupt) ends the file with an error
that names the byte. Not read: ARC, lz4, brotli; each is refused by name.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from iqc.corpus.html import decode, html_to_text
from iqc.errors import IqcError
from iqc.streams.stage import Dropped, Record

MAX_BODY = 32 << 20  # bytes of one record, packed or unpacked: a page is smaller, a film or a bomb is not
_MAX_LINE = 64 << 10  # bytes of one header line
_MAX_HEADERS = 1000  # lines of one header
_CHUNK = 64 << 10
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_TEXT = frozenset({"text/plain"})

Headers = dict[str, str]


def read_records(path: str | Path) -> Iterator[tuple[int, Headers, bytes | None]]:
    """(offset, headers, payload) of every record, in file order, one in memory at a time.

    `offset`: bytes into the file as it is stored; for gzip, of the member that holds the record's first byte; for zstd,
    into the unpacked data. Header names are in lower case; of a repeated name the last value counts. `payload` is None
    for a record longer than MAX_BODY (its bytes are skipped). IqcError: the container is cut, corrupt or not WARC.
    """
    where = str(path)
    with open(path, "rb") as raw:
        source = _open(raw, where)
        while True:
            line = source.line()
            while line and not line.strip():  # the two CRLFs after a record, and whatever more a writer put there
                line = source.line()
            if not line:
                return
            offset = source.line_offset
            if not line.startswith(b"WARC/"):
                kind = "an ARC file" if line.startswith(b"filedesc:") else f"not a WARC record: {line[:40]!r}"
                raise IqcError(f"byte {offset}: {kind}", where=where, remedy="convert or repair it, or leave it out")
            headers = _headers(source)
            length = headers.get("content-length", "")
            if not re.fullmatch(r"[0-9]{1,18}", length):
                raise IqcError(
                    f"byte {offset}: record without a usable Content-Length ({length!r})",
                    where=where,
                    remedy="repair the file, or leave it out",
                )
            yield offset, headers, source.payload(int(length), offset)


def documents(path: str | Path, source: str | None = None) -> Iterator[Record | Dropped]:
    """The documents of one file in file order; `source` is the name they carry (default: the file's name).

    Record types that never hold a page (warcinfo, request, metadata, revisit...) are passed over. Every other record
    gives one record or one Dropped, whose rule is one of: payload_bytes, record_type, http, http_status, media_type,
    content_encoding, empty.
    """
    source = source or Path(path).name
    for offset, headers, payload in read_records(path):
        kind = headers.get("warc-type", "").lower()
        if kind not in ("response", "resource", "conversion"):
            continue
        yield _document(source, offset, kind, headers, payload)


def _document(source: str, offset: int, kind: str, headers: Headers, payload: bytes | None) -> Record | Dropped:
    url = headers.get("warc-target-uri", "").strip("<>")
    record_id = headers.get("warc-record-id", "").strip("<>").removeprefix("urn:uuid:")
    if not record_id:
        record_id = hashlib.sha256(f"{source}\0{offset}\0{url}".encode()).hexdigest()[:32]
    metadata = {"url": url, "date": headers.get("warc-date", ""), "offset": offset, "warc_type": kind}
    record: Record = {"id": record_id, "text": "", "source": source, "metadata": metadata}
    if payload is None:
        return Dropped(record, "payload_bytes", int(headers["content-length"]), MAX_BODY)

    content_type = headers.get("content-type", "")
    if kind == "response" and content_type.lower().startswith("application/http"):
        try:
            status, http, body = parse_http(payload)
        except ValueError as error:
            return Dropped(record, "http", str(error))
        if status != 200:
            return Dropped(record, "http_status", status, 200)
        try:
            body = _decode_content(body, http.get("content-encoding", ""))
        except ValueError as error:
            return Dropped(record, "content_encoding", str(error))
        content_type = http.get("content-type", "")
    elif kind == "response":  # dns: and other schemes
        return Dropped(record, "record_type", content_type, "application/http")
    else:
        body = payload

    media_type, declared = _media_type(content_type)
    metadata["media_type"] = media_type
    if media_type not in _HTML and media_type not in _TEXT:
        return Dropped(record, "media_type", media_type, "text/html, text/plain")
    if kind == "conversion" and not declared:
        declared = "utf-8"  # WET files are UTF-8 and do not say so
    text, metadata["charset"] = decode(body, declared, html=media_type in _HTML)
    record["text"] = html_to_text(text) if media_type in _HTML else text
    return record if record["text"].strip() else Dropped(record, "empty", 0, 1)


# HTTP ----------------------------------------------------------------------------------------------------------------


def parse_http(payload: bytes) -> tuple[int, Headers, bytes]:
    """(status, headers, body) of an HTTP/1 response as it was on the wire (RFC 9112); chunks are joined.

    Many crawlers store the joined body and keep the `Transfer-Encoding: chunked` header: a body that does not parse as
    chunks is taken as it is. ValueError: no status line.
    """
    head, separator, body = payload.partition(b"\r\n\r\n")
    if not separator or (b"\n\n" in head):
        head, separator, body = payload.partition(b"\n\n")
    lines = head.decode("latin-1").splitlines()
    status = re.match(r"HTTP/\d(?:\.\d)?\s+(\d{3})(?:\s|$)", lines[0]) if lines else None
    if not status:
        raise ValueError(f"no HTTP status line: {payload[:40]!r}")
    headers = _fold(lines[1:])
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _join_chunks(body)
    return int(status.group(1)), headers, body


def _join_chunks(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\n", at)
        size = re.fullmatch(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?\r?", body[at:end]) if end >= 0 else None
        if not size:
            return body
        length = int(size.group(1), 16)
        if length == 0:
            return b"".join(parts)
        chunk = body[end + 1 : end + 1 + length]
        parts.append(chunk)
        at = end + 1 + length
        if len(chunk) < length or at >= len(body):  # the fetch was cut inside or after a chunk: what came is the body
            return b"".join(parts)
        at += 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] == b"\n" else 0


def _decode_content(body: bytes, codings: str) -> bytes:
    """Undo Content-Encoding, last one first. A body stored unpacked under a gzip header is taken as it is."""
    for coding in reversed([c.strip().lower() for c in codings.split(",") if c.strip()]):
        if coding in ("gzip", "x-gzip"):
            body = _inflate(body, 31) if body.startswith(b"\x1f\x8b") else body
        elif coding == "deflate":  # zlib by the RFC, raw deflate by a famous mistake
            try:
                body = _inflate(body, 15)
            except ValueError:
                body = _inflate(body, -15)
        elif coding not in ("identity", "none", "utf-8"):
            raise ValueError(coding)
    return body


def _inflate(body: bytes, wbits: int) -> bytes:
    engine = zlib.decompressobj(wbits)
    try:
        out = engine.decompress(body, MAX_BODY)
    except zlib.error as error:
        raise ValueError(f"corrupt: {error}") from None
    if engine.unconsumed_tail:
        raise ValueError(f"unpacks to more than {MAX_BODY} bytes")
    return out


def _media_type(value: str) -> tuple[str, str | None]:
    """("text/html", "utf-8") of `text/html; charset="UTF-8"`."""
    charset = re.search(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]+)", value, re.IGNORECASE)
    return value.partition(";")[0].strip().lower(), charset.group(1) if charset else None


def _fold(lines: list[str]) -> Headers:
    headers: Headers = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t") and name:  # a continuation line (obs-fold)
            headers[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower() if colon else ""
        if name:
            headers[name] = value.strip()
    return headers


# The container -------------------------------------------------------------------------------------------------------


def _open(raw: BinaryIO, where: str) -> "_Source":
    magic = raw.read(4)
    raw.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return _Gzip(raw, where)
    if magic == b"\x28\xb5\x2f\xfd":
        return _Zstd(raw, where)
    for bad, name in ((b"\x04\x22\x4d\x18", "lz4"), (b"\x5d\x2a\x4d\x18", "zstd with a dictionary"), (b"BZh", "bzip2")):
        if magic.startswith(bad):
            raise IqcError(
                f"byte 0: WARC packed with {name}", where=where, remedy="repack it with gzip, a member a record"
            )
    return _Source(raw, where)


def _headers(source: "_Source") -> Headers:
    lines = []
    while (line := source.line()).strip():
        lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))
        if len(lines) > _MAX_HEADERS:
            raise source.broken(f"more than {_MAX_HEADERS} header lines")
    if not line:
        raise source.broken("ends inside a record's header")
    return _fold(lines)


class _Source:
    """A plain file as a stream of bytes that knows where in the file each line began."""

    def __init__(self, raw: BinaryIO, where: str):
        self.raw = raw
        self.where = where
        self.buffer = b""
        self.at = 0  # the buffer's first byte that was not taken yet
        self.offset = 0  # of that byte in the file; for a gzip source, of its member
        self.line_offset = 0

    def pull(self) -> bytes:
        """Some more bytes, b"" at the end."""
        return self.raw.read(_CHUNK)

    def fill(self) -> bool:
        """Have at least one byte to take; False at the end of the data."""
        if self.at == len(self.buffer):
            self.buffer, self.at = b"", 0
            self.buffer = self.pull()
        return bool(self.buffer)

    def line(self) -> bytes:
        """One line with its end; b"" at the end of the data."""
        self.fill()
        self.line_offset = self.offset
        while (end := self.buffer.find(b"\n", self.at)) < 0:
            if len(self.buffer) - self.at > _MAX_LINE:
                raise self.broken(f"a header line of more than {_MAX_LINE} bytes")
            more = self.pull()
            if not more:
                return self.take(len(self.buffer) - self.at)
            self.buffer, self.at = self.buffer[self.at :] + more, 0
        return self.take(end + 1 - self.at)

    def payload(self, length: int, record: int) -> bytes | None:
        """`length` bytes, or None for more than MAX_BODY, which are passed over; `record` is for the error."""
        parts, left = [], length
        while left:
            if not self.fill():
                raise self.broken(f"ends {left} bytes before the end of the record that begins at byte {record}")
            part = self.take(min(left, len(self.buffer) - self.at))
            left -= len(part)
            if length <= MAX_BODY:
                parts.append(part)
        return b"".join(parts) if length <= MAX_BODY else None

    def take(self, count: int) -> bytes:
        taken = self.buffer[self.at : self.at + count]
        self.at += count
        self.advance(count)
        return taken

    def advance(self, count: int) -> None:
        self.offset += count

    def broken(self, what: str) -> IqcError:
        return IqcError(
            f"byte {self.raw.tell()}: {what}", where=self.where, remedy="the file was cut or damaged: fetch it again"
        )


class _Gzip(_Source):
    """Gzip members one after the other. `offset` is the compressed position of the member being read."""

    def __init__(self, raw: BinaryIO, where: str):
        super().__init__(raw, where)
        self.engine: Any = None  # zlib does not name its type
        self.packed = b""

    def pull(self) -> bytes:
        while True:
            if not self.packed:
                self.packed = self.raw.read(_CHUNK)
            if self.engine is None:
                if not self.packed.strip(b"\0"):  # the end, or padding, which gzip allows
                    if not self.packed:
                        return b""
                    self.packed = b""
                    continue
                if self.at == len(self.buffer):  # not in the middle of a line
                    self.offset = self.raw.tell() - len(self.packed)
                self.engine = zlib.decompressobj(31)
            elif not self.packed:
                raise self.broken("ends inside a gzip member")
            try:
                out = self.engine.decompress(self.packed, 4 * _CHUNK)
            except zlib.error as error:
                raise self.broken(f"corrupt gzip member ({error})") from None
            self.packed = self.engine.unconsumed_tail or self.engine.unused_data
            if self.engine.eof:
                self.engine = None
            if out:
                return out

    def advance(self, count: int) -> None:
        pass  # `offset` moves from member to member


class _Zstd(_Source):
    """zstd frames. python-zstandard takes a cut frame for the end of the data, so the frame's end is checked here."""

    def __init__(self, raw: BinaryIO, where: str):
        super().__init__(raw, where)
        self.engine: zstandard.ZstdDecompressionObj | None = None
        self.packed = b""

    def pull(self) -> bytes:
        while True:
            if not self.packed:
                self.packed = self.raw.read(4096)  # a block of 4 bytes can unpack to 128 KiB: 128 MiB at the worst
            if not self.packed:
                if self.engine is not None:
                    raise self.broken("ends inside a zstd frame")
                return b""
            self.engine = self.engine or zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            try:
                out = self.engine.decompress(self.packed)
            except zstandard.ZstdError as error:
                raise self.broken(f"corrupt zstd frame ({error})") from None
            self.packed = self.engine.unused_data if self.engine.eof else b""
            if self.engine.eof:
                self.engine = None
            if out:
                return out
