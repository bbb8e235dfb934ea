"""Frames in, published files out.

A file appears under its name when it is complete: it is written beside it under a hidden name, locked against a second
writer, synced and renamed. What a killed run leaves under the hidden name, the next run writes over.
"""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import IO, BinaryIO

import orjson

from iqc.errors import BadRecord, ClosedPipe, IqcError
from iqc.streams.container import CHUNK, GATHER, MAX_RECORD, Frame, FrameWriter, compress
from iqc.streams.lineage import Digest, line_digest
from iqc.streams.stage import Record

BLOCK = 256 << 10  # bytes of lines that are digested and joined at a time: they are in the processor's cache
ROW = {"tokens", "lengths", "loss"}  # fields of a sequence of training tokens
PATIENCE = 2.0  # seconds for a dying process to let go of its files
ROW_LEVEL = 1  # of zstd: for frames of one row no larger than level 3, written 1.5 times and read 1.2 times as fast


def lock(file: IO) -> bool:
    """Lock an open file against every other process; False when one holds it and goes on holding it.

    A killed process holds its locks until its last thread has ended, a moment after it is gone for those who wait for
    it: so a run that follows a kill at once has to have some patience.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)


class AtomicFile:
    """A binary file that is published whole by `commit` and not at all otherwise. A context manager."""

    def __init__(self, path: str | Path):
        self.path = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            self.file = self._open_locked()
        except OSError as error:
            raise _write_error(error, self.path) from None

    def _open_locked(self) -> BinaryIO:
        while True:
            file = open(self.partial, "ab")  # noqa: SIM115  (closed by commit or discard)
            if not lock(file):
                file.close()
                raise IqcError(
                    "another process is writing it", where=str(self.path), remedy="wait for it, or name another -o"
                ) from None
            try:
                if os.stat(self.partial).st_ino == os.fstat(file.fileno()).st_ino:
                    file.truncate(0)
                    return file
            except FileNotFoundError:
                pass
            file.close()  # it was published between open and lock: that inode is not ours to write

    def write(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as error:
            raise _write_error(error, self.path) from None

    def commit(self) -> None:
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            os.rename(self.partial, self.path)
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            self.discard()
            raise _write_error(error, self.path) from None
        self.file.close()

    def discard(self) -> None:
        if not self.file.closed:
            try:
                os.unlink(self.partial)
            finally:
                try:
                    self.file.close()
                except OSError:  # a full disk also fails the flush; the file is unlinked already
                    pass

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.discard()  # does nothing after commit


def write_file(path: str | Path, data: bytes) -> None:
    """Publish `data` under `path` at once."""
    file = open_target(path)
    try:
        file.write(data)
        file.commit()
    finally:
        file.discard()


def open_target(path: str | Path) -> "AtomicFile | Direct":
    """The file to be; or what is there already when it is a pipe or a device, which nothing may replace."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            return Direct(os.open(path, os.O_WRONLY), str(path))
    except OSError as error:
        raise _write_error(error, path) from None
    return AtomicFile(path)


class Direct:
    """The standard output, a pipe or a device as a binary file that tells a closed pipe from other failures."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except BrokenPipeError:
            raise ClosedPipe from None
        except OSError as error:
            raise _write_error(error, self.name) from None

    def commit(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def discard(self) -> None:
        if self.fd >= 0:
            self.commit()


def _write_error(error: OSError, path: str | Path) -> IqcError:
    remedy = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space and run the command again: nothing was published"
    return IqcError(f"cannot be written: {error.strerror}", where=str(path), remedy=remedy)


def dump(record: Record) -> bytes:
    """A record as its line, without the line end; BadRecord when no reader would take it."""
    try:
        line = orjson.dumps(record)
    except orjson.JSONEncodeError as error:
        raise BadRecord(
            f"cannot be written as JSON: {error}", remedy="the stage made a value that no reader takes"
        ) from None
    if len(line) > MAX_RECORD:
        raise BadRecord(f"as written, a record over {MAX_RECORD >> 20} MiB", remedy="split the record")
    return line


class StreamWriter:
    """One stream file: frames or lines in, in order; `finish` publishes it.

    Plain output is the same lines without frames and lineage.
    """

    def __init__(self, file: AtomicFile | Direct, plain: bool = False):
        self.file = file
        self.plain = plain
        self.frames = FrameWriter(file)
        self.digest = Digest()
        self.records = 0
        self.bytes = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._pending_records = 0

    def add_frame(self, frame: Frame, line_digests: bytes) -> None:
        """A frame that a worker compressed."""
        self._flush()
        self.frames.write(frame)
        self._count(frame.size, frame.records, line_digests)

    def add_text(self, text: bytes, records: int, line_digests: bytes) -> None:
        """Whole lines, gathered with their neighbours to a frame."""
        if not text:
            return
        if self.plain:
            self.file.write(text)
        else:
            self._pending.append(text)
            self._pending_size += len(text)
            self._pending_records += records
            if self._pending_size >= GATHER:
                self._flush()
        self._count(len(text), records, line_digests)

    def add_record(self, record: Record) -> None:
        """One record. A sequence is a frame of its own: a trainer reads them in random order."""
        line = dump(record)
        if record.keys() >= ROW and not self.plain:
            self.add_frame(compress(line + b"\n", 1, ROW_LEVEL), line_digest(line))
        else:
            self.add_text(line + b"\n", 1, line_digest(line))

    def _count(self, size: int, records: int, line_digests: bytes) -> None:
        self.bytes += size
        self.records += records
        self.digest.add(line_digests)

    def _flush(self) -> None:
        if self._pending:
            self.frames.write(compress(b"".join(self._pending), self._pending_records))
            self._pending, self._pending_size, self._pending_records = [], 0, 0

    def output(self) -> dict:
        """What lineage says of this stream."""
        return {"digest": self.digest.text(), "records": self.records, "bytes": self.bytes}

    def finish(self, lineage: dict) -> None:
        if not self.plain:
            self._flush()
            self.frames.finish(lineage)
        self.file.commit()

    def discard(self) -> None:
        self.file.discard()


class Texts:
    """Lines in; out come texts of whole lines, each ending at the first line end at or after CHUNK bytes.

    Lines are digested and joined a block at a time: kept one by one, millions of pieces would scatter over memory.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[bytes, int, bytes]] = []
        self._blocks: list[bytes] = []
        self._digests: list[bytes] = []
        self._lines: list[bytes] = []
        self._size = 0  # bytes in _lines
        self._room = BLOCK  # bytes that _lines takes

    def add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line) + 1
        if self._size >= self._room:
            self._join_lines()

    def finish(self) -> list[tuple[bytes, int, bytes]]:
        """(text, number of its lines, their digests) of all."""
        self._join_lines()
        self._join_blocks()
        return self._texts

    def _join_lines(self) -> None:
        self._digests += map(line_digest, self._lines)
        self._blocks.append(b"\n".join([*self._lines, b""]))
        self._lines, self._size = [], 0
        missing = CHUNK - sum(map(len, self._blocks))
        self._room = min(BLOCK, missing)
        if missing <= 0:
            self._join_blocks()

    def _join_blocks(self) -> None:
        if self._digests:
            self._texts.append((b"".join(self._blocks), len(self._digests), b"".join(self._digests)))
        self._blocks, self._digests, self._room = [], [], BLOCK
