"""Records of stream files in any order: a file whose frames hold one record each, read at any of them.

The seek table says where frame k begins only by the sizes of all before it. Held whole that would be 8 bytes a record;
the sum is kept for every STRIDE-th frame alone, and the few sizes after it are read again: half a byte a record.
"""

import os
import struct

import numpy as np

from iqc.errors import IqcError
from iqc.streams.container import ENTRY, Tail, read_tail

STRIDE = 16  # frames
ANEW = "make it again, and start the run again"
OPEN = 256  # files at a time, of the 1024 that a process usually may have


class OpenFiles:
    """Files for reading, the `limit` that were opened last are kept open. For one thread at a time; to be closed.

    Raises IqcError for a file that cannot be read, or is no longer the one that it was when it was opened first.
    """

    def __init__(self, limit: int = OPEN) -> None:
        self.limit = limit
        self._open: dict[str, int] = {}
        self._known: dict[str, tuple[int, int, int]] = {}

    def read(self, path: str, size: int, offset: int) -> bytes:
        """`size` bytes at `offset`."""
        descriptor = self._descriptor(path)
        try:
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise unreadable(error, path) from None
        if len(data) < size:
            raise IqcError("shorter than when it was opened", where=path, remedy=ANEW)
        return data

    def announce(self, path: str, size: int, offset: int) -> None:
        """Tell the system that these bytes will be read, so that many reads are under way at once."""
        os.posix_fadvise(self._descriptor(path), offset, size, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, path: str) -> int:
        if path in self._open:
            return self._open[path]
        try:
            found = self._open[path] = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(error, path) from None
        about = os.fstat(found)
        stamp = (about.st_ino, about.st_size, about.st_mtime_ns)
        if self._known.setdefault(path, stamp) != stamp:
            raise IqcError("was replaced while it was in use", where=path, remedy=ANEW)
        if len(self._open) > self.limit:
            os.close(self._open.pop(next(iter(self._open))))
        return found

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def unreadable(error: OSError, path: str) -> IqcError:
    return IqcError(f"cannot be read: {error.strerror}", where=path)


def one_record_a_frame(tail: Tail) -> bool:
    """Whether that is how the stream was cut; an empty one has one frame without records."""
    counts = tail.lineage["frames"]
    return counts.count(1) == len(counts) or counts == [0]


class FrameFile:
    """A stream file whose frames hold one record each. Raises IqcError where it is not such a one."""

    def __init__(self, path: str, files: OpenFiles, expected: str | None = None) -> None:
        """`expected`: the digest that a directory's manifest has of it."""
        tail = read_tail(path) if os.path.isfile(path) else None
        if tail is None:
            raise IqcError("not a whole stream file", where=path, remedy="it was cut or removed: make it again")
        output, counts = tail.lineage["output"], tail.lineage["frames"]
        if expected is not None and output["digest"] != expected:
            raise IqcError("not the shard that its manifest lists", where=path, remedy="make the directory again")
        compressed = np.frombuffer(tail.table, "<u4")[::2]
        ends = np.cumsum(compressed, dtype=np.int64)
        if len(counts) != len(ends) or ends[-1] != tail.data_size or output["records"] != sum(counts):
            raise IqcError("its frames are not those that its lineage counts", where=path, remedy="make it again")
        if not one_record_a_frame(tail):
            raise IqcError(
                "frames of several records", where=path, remedy="`iqc head -n all` writes sequences one a frame"
            )
        self.path = path
        self.lineage = tail.lineage
        self._files = files
        self._table = tail.table_offset
        self._marks = np.append(0, ends[STRIDE - 1 :: STRIDE])  # where every STRIDE-th frame begins
        self._count: int = output["records"]

    def __len__(self) -> int:
        return self._count

    def place(self, number: int) -> tuple[int, int]:
        """Bytes and offset of a frame."""
        block, rest = divmod(number, STRIDE)
        table = self._files.read(self.path, ENTRY * (rest + 1), self._table + ENTRY * block * STRIDE)
        *before, size = struct.unpack(f"<{2 * rest + 2}I", table)[::2]
        return size, sum(before, start=int(self._marks[block]))
