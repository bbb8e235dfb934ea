"""The bytes of a stream file: zstd's seekable format, with a mark and a lineage.

    marked data frame | data frame ... | lineage | seek table

Each data frame is an independent zstd frame of whole JSON lines, about 8 MiB of text, with content size and checksum:
any worker can read any frame. The lineage and the seek table are skippable frames, which every zstd reader passes over.
A stream that ends without them was cut or its writer died; to tell such a stream from another zstd file at every byte,
the mark is in the header of the first frame itself: it gives its content size in eight bytes, which is legal for any
size and which no encoder writes below 4 GiB.

Formats: RFC 8878 (zstd frames, blocks, skippable frames; 3.1.1.1.4: any width of the content size is allowed); zstd's
contrib/seekable_format (seek table).
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import orjson
import zstandard

from iqc.errors import IqcError
from iqc.streams.lineage import checked_lineage

CHUNK = 8 << 20  # bytes of text after which a frame ends; at 8 MiB frames cost neither size nor speed
MAX_RECORD = 64 << 20  # bytes of JSON; bounds what one worker holds
MAX_FRAME = CHUNK + MAX_RECORD + 1  # bytes of text in one frame of ours
MAX_WINDOW = 1 << 27  # bytes; what `zstd --long` writes at most unless asked for more
GATHER = CHUNK // 2  # bytes; what is smaller is gathered: outputs to frames, frames to chunks
LEVEL = 3

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
GZIP_MAGIC = b"\x1f\x8b"
LINEAGE_MAGIC = 0x184D2A52
SEEK_TABLE_MAGIC = 0x184D2A5E  # fixed by the seekable format
SEEK_FOOTER_MAGIC = 0x8F92EAB1
ENTRY = 8  # bytes of the seek table a frame
NOT_JOINED = "give several streams as several INPUTs instead of joining them with cat"
BLOCK_MAX = 128 << 10  # RFC 8878, 3.1.1.2: a block regenerates at most this many bytes


def is_skippable(magic: bytes) -> bool:
    return len(magic) == 4 and magic[1:] == b"\x2a\x4d\x18" and 0x50 <= magic[0] <= 0x5F


def skippable(magic: int, payload: bytes) -> bytes:
    return struct.pack("<II", magic, len(payload)) + payload


def mark(frame: bytes, size: int) -> bytes:
    """A frame of `size` bytes of text with its content size written in eight bytes."""
    descriptor = frame[4]
    window = b"" if descriptor & 0x20 else frame[5:6]
    body = frame[zstandard.frame_header_size(frame) :]
    return ZSTD_MAGIC + bytes([descriptor | 0xC0]) + window + struct.pack("<Q", size) + body


def is_marked(header: bytes) -> bool:
    """Whether a data frame that begins with `header` (whole) is the first of a stream of ours."""
    if header[:4] != ZSTD_MAGIC or len(header) < 5 or header[4] & 0xDF != 0xC4:  # checksum, no dictionary
        return False
    start = 5 if header[4] & 0x20 else 6
    return len(header) >= start + 8 and struct.unpack_from("<Q", header, start)[0] <= MAX_FRAME


# -- writing ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Frame:
    """A compressed data frame: `size` bytes of text in `records` lines."""

    data: bytes
    size: int
    records: int


def compress(text: bytes, records: int, level: int = LEVEL) -> Frame:
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    return Frame(compressor.compress(text), len(text), records)


class Writable(Protocol):
    """What frames are written to."""

    def write(self, data: bytes, /) -> object: ...


class FrameWriter:
    """Writes frames to a binary file in order; `finish` adds the lineage and the seek table."""

    def __init__(self, file: Writable):
        self.file = file
        self.entries: list[tuple[int, int]] = []  # (compressed, decompressed) bytes of every frame, skippable ones too
        self.records: list[int] = []

    def write(self, frame: Frame) -> None:
        self._put(frame.data if self.records else mark(frame.data, frame.size), frame.size)
        self.records.append(frame.records)

    def finish(self, lineage: dict) -> None:
        if not self.records:
            self.write(compress(b"", 0))
        self._put(skippable(LINEAGE_MAGIC, orjson.dumps(lineage | {"frames": self.records})), 0)
        self.file.write(seek_table(self.entries))

    def _put(self, data: bytes, decompressed: int) -> None:
        self.file.write(data)
        self.entries.append((len(data), decompressed))


def seek_table(entries: list[tuple[int, int]]) -> bytes:
    """The frame that ends a stream, from the (compressed, decompressed) sizes of all frames before it."""
    table = b"".join(struct.pack("<II", *entry) for entry in entries)
    return skippable(SEEK_TABLE_MAGIC, table + struct.pack("<IBI", len(entries), 0, SEEK_FOOTER_MAGIC))


# -- reading a seekable file ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FrameRef:
    """Where a data frame lies in a file: `size` bytes of text in `records` lines."""

    offset: int
    compressed: int
    size: int
    records: int


@dataclass(slots=True)
class Index:
    """What the end of a stream file tells: its data frames and its lineage."""

    frames: list[FrameRef]
    lineage: dict


@dataclass(slots=True)
class Tail:
    """The end of a stream file: its lineage, and its seek table as it is, for the data frames alone."""

    table: bytes  # ENTRY bytes a frame: its compressed and decompressed size, u32 each
    table_offset: int  # in the file
    data_size: int  # bytes of the data frames, as the rest of the file says
    lineage: dict


def read_tail(path: str) -> Tail | None:
    """The end of a stream file, or None when `path` is not one whole seekable file of ours."""
    with open(path, "rb") as file:
        if not file.seekable():
            return None
        length = file.seek(0, io.SEEK_END)
        if length < 17:
            return None
        file.seek(length - 9)
        count, descriptor, magic = struct.unpack("<IBI", file.read(9))
        table_size = ENTRY * count + 17
        if magic != SEEK_FOOTER_MAGIC or descriptor or table_size > length or count < 2:
            return None
        file.seek(length - table_size)
        table = file.read(table_size)
        lineage_size, nothing = struct.unpack("<II", table[-9 - ENTRY : -9])
        data_size = length - table_size - lineage_size
        if table[:8] != struct.pack("<II", SEEK_TABLE_MAGIC, table_size - 8):
            return None
        file.seek(0)
        if nothing or lineage_size > MAX_FRAME or data_size < 0 or not is_marked(file.read(14)):
            return None  # not ours, or several streams one after the other
        file.seek(data_size)
        head = file.read(lineage_size)
        if head[:4] != struct.pack("<I", LINEAGE_MAGIC):
            return None
        return Tail(table[8 : -9 - ENTRY], length - table_size + 8, data_size, parse_lineage(head, path))


def read_index(path: str) -> Index | None:
    """The index of a stream file, or None when `path` is not one whole seekable file of ours."""
    tail = read_tail(path)
    if tail is None:
        return None
    data = list(struct.iter_unpack("<II", tail.table))
    if sum(size for size, _ in data) != tail.data_size:
        return None
    check_frames(tail.lineage, data, path)
    refs, offset = [], 0
    for (compressed, size), records in zip(data, tail.lineage["frames"]):
        refs.append(FrameRef(offset, compressed, size, records))
        offset += compressed
    return Index(refs, tail.lineage)


def check_frames(lineage: dict, data: list[tuple[int, int]], name: str) -> None:
    """Compare the (compressed, decompressed) sizes of the data frames with what the lineage says of the stream."""
    output = lineage["output"]
    records, size = sum(lineage["frames"]), sum(size for _, size in data)
    if (len(lineage["frames"]), records, size) != (len(data), output["records"], output["bytes"]):
        raise IqcError("its frames are not those that its lineage counts", where=name, remedy="make the file again")


def parse_lineage(frame: bytes, name: str) -> dict:
    """The JSON of a lineage frame; IqcError when it is not one."""
    try:
        if struct.unpack_from("<II", frame) != (LINEAGE_MAGIC, len(frame) - 8):
            raise ValueError("no lineage frame")
        lineage = checked_lineage(orjson.loads(frame[8:]))
        output = lineage["output"]
        if {*map(type, lineage["frames"]), type(output["records"]), type(output["bytes"])} != {int}:
            raise ValueError("counts are no numbers")
        return lineage
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise IqcError(f"its lineage cannot be read ({error})", where=name, remedy="make the file again") from None


def content_size(frame: bytes, where: str) -> int:
    """The bytes of text that a data frame of ours says it has, at most MAX_FRAME."""
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise IqcError(f"damaged zstd frame ({error})", where=where, remedy="fetch or make the file again") from None
    if not 0 <= size <= MAX_FRAME:
        raise IqcError(f"a frame of {size} bytes of text is over the cap of {MAX_FRAME}", where=where)
    return size


def decompress(data: bytes, where: str) -> bytes:
    """The text of one data frame of ours, at most MAX_FRAME bytes."""
    content_size(data, where)
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        return decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IqcError(f"damaged zstd frame ({error})", where=where, remedy="fetch or make the file again") from None


# -- reading any bytes in order ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Piece:
    """A part of a zstd frame that regenerates at most BLOCK_MAX bytes; `first` and `last` of its frame or not."""

    data: bytes
    first: bool
    last: bool
    skippable: bool = False


class ByteSource:
    """Exact reads from a buffered binary file or pipe, with the name that errors show."""

    def __init__(self, file: io.BufferedReader, name: str):
        self.file = file
        self.name = name
        self.pending = b""  # read from the file but not yet given out
        self.offset = 0

    def peek(self, count: int) -> bytes:
        if len(self.pending) < count:
            self.pending += self.file.read(count - len(self.pending))
        return self.pending[:count]

    def read(self, count: int) -> bytes:
        """`count` bytes; fewer only at the end."""
        data, self.pending = self.pending[:count], self.pending[count:]
        if len(data) < count:
            data += self.file.read(count - len(data))
        self.offset += len(data)
        return data

    def some(self, count: int) -> bytes:
        """At least one and at most `count` bytes, as soon as there are any; nothing only at the end."""
        data, self.pending = self.pending[:count], self.pending[count:]
        data = data or self.file.read1(count)
        self.offset += len(data)
        return data

    def exactly(self, count: int) -> bytes:
        data = self.read(count)
        if len(data) < count:
            raise self.truncated()
        return data

    def truncated(self) -> IqcError:
        return IqcError(
            f"truncated: the compressed data end at byte {self.offset}, inside a frame",
            where=self.name,
            remedy="the file was cut or its writer died: fetch or make it again",
        )


def zstd_pieces(source: ByteSource) -> Iterator[Piece]:
    """Walk zstd frames block by block without decompressing: a cut frame is noticed and no block can be a bomb."""
    while magic := source.read(4):
        if is_skippable(magic):
            announced = source.exactly(4)
            (length,) = struct.unpack("<I", announced)
            if length > MAX_FRAME:
                raise IqcError(f"a skippable frame of {length} bytes is over the cap of {MAX_FRAME}", where=source.name)
            yield Piece(magic + announced + source.exactly(length), first=True, last=True, skippable=True)
            continue
        if magic != ZSTD_MAGIC:
            raise IqcError(
                f"neither a zstd frame nor the end at byte {source.offset - len(magic)}",
                where=source.name,
                remedy="the file is damaged or has foreign bytes at its end",
            )
        header = source.exactly(1)
        descriptor = header[0]
        single_segment, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
        content_size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
        header += source.exactly((0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3] + content_size_bytes)
        yield Piece(magic + header, first=True, last=False)
        last = False
        while not last:
            head = source.exactly(3)
            bits = int.from_bytes(head, "little")
            last, kind, size = bool(bits & 1), bits >> 1 & 3, bits >> 3
            if kind == 3 or size > BLOCK_MAX:
                raise IqcError(f"damaged zstd block at byte {source.offset - 3}", where=source.name)
            body = source.exactly(1 if kind == 1 else size)
            tail = source.exactly(4) if last and checksum else b""
            yield Piece(head + body + tail, first=False, last=last)


def zstd_text(pieces: Iterator[Piece], name: str) -> Iterator[bytes]:
    """The text of foreign zstd frames, at most BLOCK_MAX bytes at a time."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame = decompressor.decompressobj()
    for piece in pieces:
        if piece.skippable and not piece.data.startswith(b'{"iqc":', 8):
            continue
        if piece.skippable or (piece.first and is_marked(piece.data)):
            raise IqcError("other zstd data before a stream, or its begin is damaged", where=name, remedy=NOT_JOINED)
        if piece.first:
            frame = decompressor.decompressobj()
        try:
            yield frame.decompress(piece.data)
        except zstandard.ZstdError as error:
            raise IqcError(f"damaged zstd frame ({error})", where=name) from None


def gzip_text(source: ByteSource) -> Iterator[bytes]:
    """The text of gzip members, at most a megabyte at a time."""
    while source.peek(1):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            data = member.unconsumed_tail or source.some(1 << 16)
            try:
                text = member.decompress(data, 1 << 20)
            except zlib.error as error:
                raise IqcError(f"damaged gzip data ({error})", where=source.name) from None
            if not data and not text and not member.eof:
                raise source.truncated()
            yield text
        source.pending = member.unused_data + source.pending


def plain_text(source: ByteSource) -> Iterator[bytes]:
    """The bytes themselves, at most a megabyte at a time."""
    while data := source.some(1 << 20):
        yield data
