"""The rows of a training set, read in any order from where they lie.

What `iqc pack` writes, a file or a directory of shards, is read in place: each row is a zstd frame of its own, found by
the file's seek table, so that memory does not grow with the set. A shard is opened when a row of it is wanted first; it
must be the one that the manifest lists, and every frame has a checksum. Anything else (a pipe, plain text, gzip, frames
of several rows) has no such table: it is read whole and its rows are held in memory, compressed, about 2 bytes a token.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from iqc.errors import BadRecord, IqcError
from iqc.streams.container import MAX_FRAME, MAX_WINDOW, compress, read_tail
from iqc.streams.frames import FrameFile, OpenFiles, one_record_a_frame
from iqc.streams.lineage import Input
from iqc.streams.reader import is_regular, shards_of, shown
from iqc.streams.runner import StreamInput, read_records
from iqc.streams.stage import Record
from iqc.streams.worker import parse
from iqc.streams.writer import ROW_LEVEL, dump
from iqc.tokens.sequence import Row, decode_sequence

TRIE = "pack trajectory trees as paths"
DAMAGED = "fetch or make the file again"
MAX_HELD = 1 << 31  # tokens in memory: about 4 GB


class Held:
    """The rows of an input that cannot be read in any order, compressed in memory: at most MAX_HELD tokens in all."""

    def __init__(self, name: str, source: StreamInput, room: int) -> None:
        """`room`: how many tokens may be held, what other inputs hold taken off."""
        self.name = name
        self.tokens = 0
        self._frames: list[bytes] = []
        for tokens, frame in read_records(source, factory=lambda: held):
            self.tokens += tokens
            if self.tokens > room:
                raise IqcError(
                    f"training rows of more than {MAX_HELD} tokens, which are held in memory",
                    where=name,
                    remedy="give the file or the directory that `iqc pack -o` writes: that is read in place",
                )
            self._frames.append(frame)

    def __len__(self) -> int:
        return len(self._frames)

    def ask(self, number: int) -> Callable[[], bytes]:
        return partial(self._frames.__getitem__, number)


def held(record: Record) -> Iterator[tuple[int, bytes]]:
    """A row's tokens, how many, and its frame."""
    yield row_of(record).tokens.size, compress(dump(record), 1, ROW_LEVEL).data


def row_of(record: Record) -> Row:
    """The arrays of a record. Raises BadRecord when it is no row that can be trained on."""
    if "parents" in record:
        raise BadRecord("a trie (a row with `parents`), which is not trained on", remedy=TRIE)
    return decode_sequence(record)


class Shard:
    """A stream file of one row a frame, opened when it is asked for a row."""

    def __init__(self, name: str, records: int, digest: str, files: OpenFiles) -> None:
        self.name = name
        self.records = records
        self._digest = digest
        self._files = files
        self._opened: FrameFile | None = None

    def __len__(self) -> int:
        return self.records

    def ask(self, number: int) -> Callable[[], bytes]:
        """Have the system fetch the frame of a row; what is returned reads it."""
        if self._opened is None:
            self._opened = FrameFile(self.name, self._files, self._digest)
            if len(self._opened) != self.records:
                raise IqcError(f"{len(self._opened)} rows where its manifest has {self.records}", where=self.name)
        size, offset = self._opened.place(number)
        self._files.announce(self.name, size, offset)
        return partial(self._files.read, self.name, size, offset)


class Dataset:
    """Rows by number, 0 ... len - 1, in the order of the inputs. For one thread at a time; a context manager."""

    def __init__(self, parts: list[Shard | Held], files: OpenFiles, sizes: list[int]) -> None:
        """`sizes`: how many rows each input has. IqcError when there are no rows."""
        self.parts = parts
        self.sizes = sizes
        self._files = files
        self._ends = list(accumulate(map(len, parts)))
        if not len(self):
            raise IqcError("no training rows", remedy="give the output of `iqc pack`")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def rows(self, indices: NDArray[np.int64]) -> Iterator[Row]:
        """Those rows, in that order. Raises BadRecord or IqcError with the file and the row's line in it."""
        frames = [part.ask(number) for part, number in map(self._find, indices.tolist())]
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        for index, frame in zip(indices.tolist(), frames):
            try:
                data = frame()
                if zstandard.frame_content_size(data) > MAX_FRAME:
                    raise zstandard.ZstdError("too large")
                yield row_of(parse(decompressor.decompress(data, allow_extra_data=False)))
            except zstandard.ZstdError as error:
                raise IqcError(f"a damaged frame ({error})", where=self.place(index), remedy=DAMAGED) from None
            except BadRecord as error:
                raise BadRecord(error.what, where=self.place(index), remedy=error.remedy) from None

    def place(self, index: int) -> str:
        """`file:line` of a row."""
        part, number = self._find(index)
        return f"{part.name}:{number + 1}"

    def _find(self, index: int) -> tuple[Shard | Held, int]:
        """The part that has a row, and its number there."""
        at = bisect_right(self._ends, index)
        return self.parts[at], index - (self._ends[at - 1] if at else 0)


def open_dataset(names: list[str], max_held: int = MAX_HELD) -> tuple[Dataset, list[Input]]:
    """The rows of files, directories of shards and pipes (`-`, or no name), and what lineage says of each."""
    files = OpenFiles()
    parts: list[Shard | Held] = []
    inputs: list[Input] = []
    sizes: list[int] = []
    for name in names or [""]:
        found, item = _in_place(name, files)
        if item is None:
            source = StreamInput([name] if name else [])
            rows = Held(shown(name or "-"), source, max_held)
            max_held -= rows.tokens
            found, (item,) = [rows], source.results()
        parts += found
        inputs.append(item)
        sizes.append(sum(map(len, found)))
    return Dataset(parts, files, sizes), inputs


def _in_place(name: str, files: OpenFiles) -> tuple[list[Shard | Held], Input | None]:
    """The shards of an input, or None when its rows are not to be found by number.

    Of a directory the first shard tells: one command wrote them all, and the others are checked when they are opened.
    """
    if os.path.isdir(name):
        shards, item = shards_of(Path(name))
    elif is_regular(name) and (tail := read_tail(name)):
        output = tail.lineage["output"]
        shards, item = {name: output}, Input(output["digest"], output["records"], tail.lineage)
    else:
        return [], None
    first = read_tail(next(iter(shards))) if shards else None
    if first is None or not one_record_a_frame(first):
        return [], None
    return [Shard(path, shard["records"], shard["digest"], files) for path, shard in shards.items()], item
