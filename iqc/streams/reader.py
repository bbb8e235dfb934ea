"""Inputs in, chunks of whole lines out.

A chunk is the unit of work of a stage: about 8 MiB of lines. What the chunks of an input are depends only on its bytes,
never on the number of workers, so neither does the output. A stream file of ours is cut where its frames end, small
ones (of training rows) taken together, and not read here at all: its chunks are references, and the workers read their
frames themselves. Any other input (a pipe, plain text, gzip, zstd from elsewhere) is read here in order and cut at the
first line end at or after 8 MiB.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TypeVar

import orjson

from iqc.errors import IqcError, UsageError
from iqc.streams import container
from iqc.streams.container import CHUNK, GATHER, GZIP_MAGIC, MAX_RECORD, ZSTD_MAGIC, ByteSource, Piece
from iqc.streams.lineage import Digest, Input, checked_lineage, line_digest

MANIFEST = "manifest.json"
T = TypeVar("T")
LONG = 1 << 10  # bytes of a line that is cut by itself
OVERSIZED = b"\0iqc: oversized"  # stands for a line over MAX_RECORD; NUL never begins a JSON line


@dataclass(slots=True)
class Chunk:
    """Whole lines of one input: text, frames, or a reference to frames in a file."""

    source: int  # number of the input it belongs to
    name: str  # of that input, for errors
    text: bytes | None = None
    frame: bytes | None = None  # or several, back to back
    cuts: list[int] = field(default_factory=list)  # where in these bytes the second frame begins, the third, ...
    offset: int = 0
    compressed: int = 0
    records: int | None = None  # where the file's index tells

    def count_lines(self) -> int:
        return sum(1 for _ in self.lines()) if self.records is None else self.records

    def lines(self) -> Iterator[bytes]:
        """The lines without their ends; blank ones are kept, so that lines can be numbered.

        They are cut as they are asked for: all at once would be a second copy of the text, written to memory and read
        back. Long ones are found, as `split` looks at one byte at a time; short ones are split, many at a time.
        """
        text, start, count = self._text(), 0, 0
        while start < len(text):
            end = text.find(b"\n", start, start + LONG)
            if end < 0:
                end = text.find(b"\n", start + LONG)
                end = len(text) if end < 0 else end
                yield text[start:end]
                count += 1
            else:
                end = text.rfind(b"\n", end, start + 8 * LONG)
                lines = text[start:end].split(b"\n")
                yield from lines
                count += len(lines)
            start = end + 1
        if self.records is not None and count != self.records:
            raise IqcError(f"a frame of {count} records where its lineage has {self.records}", where=self.name)

    def _text(self) -> bytes:
        if self.text is not None:
            return self.text
        frame = self.frame
        if frame is None:
            with open(self.name, "rb") as file:
                file.seek(self.offset)
                frame = file.read(self.compressed)
        edges = [0, *self.cuts, len(frame)]
        return b"".join(container.decompress(frame[start:end], self.name) for start, end in pairwise(edges))


class Source:
    """One input: iterate `chunks()` to the end; then `result()` is what lineage says of it."""

    def __init__(self, name: str, number: int = 0, manifest: Input | None = None, expected: str | None = None):
        self.name = name
        self.number = number
        self.manifest = manifest  # what lineage says of the directory of shards that this file is in
        self.expected = expected  # its digest as that directory's manifest has it
        self.ours = False  # a stream of ours: it knows its own digest, so the workers need not compute it
        self.lineage: dict | None = None
        self.digest = Digest()
        self.records = 0
        self.whole = False
        self.prepared = False  # digest and records are known already

    def known_digest(self) -> str | None:
        """The digest before any work is done: a stream of ours has it, another file is read for it, a pipe has none."""
        if self.name == "-" or not is_regular(self.name):
            return None
        index = container.read_index(self.name)
        if index is not None:
            return index.lineage["output"]["digest"]
        self.digest, self.records = Digest(), 0
        for chunk in self.chunks():
            lines = [line for line in chunk.lines() if line and not line.isspace()]
            self.digest.add(b"".join(line_digest(line) for line in lines))
            self.records += len(lines)
        self.prepared = True
        return self.digest.text()

    def numbered_lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines, numbered from 1, less the blank ones: for a file that is read beside a stage's input."""
        number = 0
        for chunk in self.chunks():
            for line in chunk.lines():
                number += 1
                if line and not line.isspace():
                    yield number, line

    def add(self, records: int, line_digests: bytes) -> None:
        """What a worker found in one of its chunks."""
        if not self.prepared:
            self.records += records
            self.digest.add(line_digests)

    def result(self) -> Input:
        if self.lineage is not None:
            output = self.lineage["output"]
            return Input(output["digest"], output["records"], self.lineage)
        return Input(self.digest.text() if self.whole and not self.ours else None, self.records)

    def chunks(self) -> Iterator[Chunk]:
        index = container.read_index(self.name) if self.name != "-" and is_regular(self.name) else None
        if self.expected and (index is None or index.lineage["output"]["digest"] != self.expected):
            raise IqcError(
                f"not the shard that {MANIFEST} lists", where=self.name, remedy="make the directory of shards again"
            )
        if index is not None:
            self.ours, self.lineage = True, index.lineage
            for refs in gathered((ref.size, ref) for ref in index.frames if ref.size):
                chunk = Chunk(self.number, self.name, offset=refs[0].offset)
                *chunk.cuts, chunk.compressed = accumulate(ref.compressed for ref in refs)
                chunk.records = sum(ref.records for ref in refs)
                yield chunk
            self.whole = True
            return
        with open_binary(self.name) as file:
            yield from self._in_order(ByteSource(file, shown(self.name)))
        self.whole = True

    def _in_order(self, source: ByteSource) -> Iterator[Chunk]:
        magic = source.peek(4)
        if magic == ZSTD_MAGIC or container.is_skippable(magic):
            yield from self._zstd(source)
        elif magic[:2] == GZIP_MAGIC:
            yield from self._cut(container.gzip_text(source), source.name)
        elif not magic and stat.S_ISFIFO(os.fstat(source.file.fileno()).st_mode):
            raise IqcError(
                "empty: not even the mark of an empty stream",
                where=source.name,
                remedy="the command before it failed; if nothing is what you mean, give an empty file as INPUT",
            )
        elif not magic and self.name.endswith(".zst"):
            raise source.truncated()
        else:
            yield from self._cut(container.plain_text(source), source.name)

    def _zstd(self, source: ByteSource) -> Iterator[Chunk]:
        """Ours by the mark of the first frame: then frame by frame. Else text."""
        pieces = container.zstd_pieces(source)
        first = next(pieces)
        if not container.is_marked(first.data):
            yield from self._cut(container.zstd_text(chain([first], pieces), source.name), source.name)
            return
        self.ours = True
        for frames in gathered(self._frames(whole_frames(chain([first], pieces), source.name), source)):
            *cuts, _ = accumulate(map(len, frames))
            yield Chunk(self.number, source.name, frame=b"".join(frames), cuts=cuts)

    def _frames(self, frames: Iterator[bytes], source: ByteSource) -> Iterator[tuple[int, bytes]]:
        """The data frames of a stream of ours with the size of their text; its end is checked."""
        lineage = None
        entries: list[tuple[int, int]] = []  # what the seek table must say
        for frame in frames:
            size = 0
            if int.from_bytes(frame[:4], "little") == container.LINEAGE_MAGIC:
                lineage = container.parse_lineage(frame, source.name)
            elif not container.is_skippable(frame[:4]):
                size = container.content_size(frame, source.name)
                if size:
                    yield size, frame
            elif lineage is not None and frame == container.seek_table(entries):
                break
            entries.append((len(frame), size))
        else:
            raise IqcError(
                "the stream ends without its lineage and seek table",
                where=source.name,
                remedy="it was cut or its writer died: run the command that makes it again",
            )
        container.check_frames(lineage, entries[:-1], source.name)
        if source.read(1):
            raise IqcError("more data after the end of the stream", where=source.name, remedy=container.NOT_JOINED)
        self.lineage = lineage

    def _cut(self, texts: Iterator[bytes], name: str) -> Iterator[Chunk]:
        """Text in any pieces to chunks that end at the first line end at or after CHUNK bytes."""
        parts: list[bytes] = []  # of the chunk, before `tail`
        size = 0  # bytes in parts
        since_newline = 0  # bytes of the line that is not complete yet
        skipping = False  # inside a line over MAX_RECORD, whose bytes are thrown away
        for text in texts:
            start = 0
            while start < len(text):
                if skipping:
                    end = text.find(b"\n", start)
                    if end < 0:
                        break
                    skipping, start = False, end
                end = text.find(b"\n", max(start, start + CHUNK - size - 1))
                cut = len(text) if end < 0 else end + 1
                parts.append(text[start:cut])
                size += cut - start
                newline = text.rfind(b"\n", start, cut)
                since_newline = since_newline + cut - start if newline < 0 else cut - newline - 1
                start = cut
                if since_newline > MAX_RECORD:
                    whole = b"".join(parts)
                    parts = [whole[: size - since_newline], OVERSIZED]
                    size, since_newline, skipping = len(parts[0]) + len(OVERSIZED), 0, True
                elif end >= 0 and size >= CHUNK:
                    yield Chunk(self.number, name, text=b"".join(parts))
                    parts, size, since_newline = [], 0, 0
        if parts:
            yield Chunk(self.number, name, text=b"".join(parts))


def gathered(frames: Iterable[tuple[int, T]]) -> Iterator[list[T]]:
    """(Bytes of text, frame) to the frames of a chunk: one of GATHER or more, or smaller ones of CHUNK at most."""
    group: list[T] = []
    total = 0
    for size, frame in frames:
        if group and (total >= GATHER or total + size > CHUNK):
            yield group
            group, total = [], 0
        group.append(frame)
        total += size
    if group:
        yield group


def whole_frames(pieces: Iterable[Piece], name: str) -> Iterator[bytes]:
    """Join pieces to frames, none over the cap."""
    frame = bytearray()
    for piece in pieces:
        frame += piece.data
        if len(frame) > container.MAX_FRAME:
            raise IqcError(f"a frame over the cap of {container.MAX_FRAME} bytes", where=name)
        if piece.last:
            yield bytes(frame)
            frame.clear()


def is_regular(name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name).st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def shown(name: str) -> str:
    return "standard input" if name == "-" else name


def open_binary(name: str):
    """A buffered binary file; the standard input for `-`."""
    try:
        if name == "-":
            if sys.stdin is None:
                raise IqcError("closed", where="standard input", remedy="name a file, or pipe records in")
            return os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=1 << 20)
        return open(name, "rb", buffering=1 << 20)
    except OSError as error:
        raise IqcError(f"cannot be read: {error.strerror}", where=shown(name)) from None


def open_inputs(names: list[str]) -> list[Source]:
    """The sources that INPUT arguments name; a directory of shards is its shards in order."""
    if not names:
        if sys.stdin is not None and sys.stdin.isatty():
            raise UsageError("no INPUT, and standard input is a terminal", remedy="name a file, or pipe records in")
        names = ["-"]
    sources: list[Source] = []
    for name in names:
        if name != "-" and os.path.isdir(name):
            shards, manifest = shards_of(Path(name))
            sources += [Source(path, manifest=manifest, expected=item["digest"]) for path, item in shards.items()]
        elif name != "-" and not os.path.exists(name):
            raise IqcError("no such file", where=name)
        else:
            sources.append(Source(name))
    for number, source in enumerate(sources):
        source.number = number
    return sources


def results(sources: list[Source]) -> list[Input]:
    """What lineage says of the inputs; the shards of one directory are one input."""
    found: list[Input] = []
    for source in sources:
        item = source.manifest or source.result()
        if not any(item is other for other in found):
            found.append(item)
    return found


def shards_of(directory: Path) -> tuple[dict[str, dict], Input]:
    """The files of a finished directory of shards with digest, records and bytes of each, and its lineage."""
    try:
        manifest = checked_lineage(orjson.loads((directory / MANIFEST).read_bytes()))
        output = manifest["output"]
        lineage = {key: manifest[key] for key in ("iqc", "stage", "stages", "output")}
        shards = {str(directory / shard["file"]): shard for shard in manifest["shards"]}
        if any(type(shard["digest"]) is not str or type(shard["records"]) is not int for shard in shards.values()):
            raise ValueError("a shard without digest or records")
        return shards, Input(output["digest"], output["records"], lineage)
    except FileNotFoundError:
        raise IqcError(
            f"a directory without {MANIFEST}",
            where=str(directory),
            remedy="it is not a directory of shards, or the run that makes it is not finished: run it again",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IqcError(f"{MANIFEST} cannot be read ({error})", where=str(directory)) from None


def lineage_at(path: str) -> dict:
    """The lineage of a stream file, a directory of shards, or a checkpoint (`lineage.json`); IqcError without one."""
    place = Path(path)
    for name in ("lineage.json", MANIFEST):
        if (place / name).is_file():
            try:
                return checked_lineage(orjson.loads((place / name).read_bytes()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise IqcError(f"{name} cannot be read ({error})", where=path) from None
    if place.is_dir() or not place.exists():
        raise IqcError(
            "no stream, directory of shards or checkpoint",
            where=path,
            remedy="name a file that a stage wrote, its directory of shards, or a step-* of a run",
        )
    index = container.read_index(path)
    if index is None:
        raise IqcError(
            "no lineage", where=path, remedy="plain, gzip and foreign zstd files have none, and neither has a cut one"
        )
    return index.lineage


def verify_digest(path: str, lineage: dict) -> int:
    """Read a stream or a directory of shards whole and compare with the recorded digest; returns the records."""
    digest, records = Digest(), 0
    if os.path.isdir(path):
        for shard in shards_of(Path(path))[0]:
            found = lineage_at(shard)
            records += verify_digest(shard, found)
            digest.add_digest(found["output"]["digest"])
    else:
        for chunk in Source(path).chunks():
            digests = [line_digest(line) for line in chunk.lines()]
            digest.add(b"".join(digests))
            records += len(digests)
    if digest.text() != lineage["output"]["digest"]:
        raise IqcError(
            f"its digest is {digest.text()}, recorded was {lineage['output']['digest']}",
            where=path,
            remedy="the file was altered: make it again",
        )
    return records
