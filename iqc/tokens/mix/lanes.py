"""The lanes of a mixture: the records of one source, or of one language or difficulty in it, in the order of an epoch.

The order of an epoch comes from (seed, lane, epoch) alone: its frames are permuted, and the records of as many of them
as make a window are permuted together. Held are the windows, 256 MiB of text together or 8 MiB a lane where that is
more (each line costs 33 bytes beside its text), and 4 bytes for the size of every record where that is in tokens.
"""

import hashlib
import re
import tempfile
from dataclasses import dataclass, field

import numpy as np
import orjson
from numpy.typing import NDArray

from iqc.errors import IqcError
from iqc.streams.container import Frame, compress
from iqc.streams.reader import Chunk
from iqc.streams.writer import dump

REPEAT = re.compile(r"#epoch([1-9][0-9]{0,8})\Z", re.ASCII)
SPILL = 1 << 20  # bytes of text of one lane after which a frame of it is written
WINDOWS = 256 << 20  # bytes of text that all lanes hold together; the records of a window are permuted together
LEAST_WINDOW = 8 << 20  # bytes of text a lane, however many there are


@dataclass(slots=True)
class Block:
    """Lines of one lane: where they lie and what they measure."""

    chunk: Chunk
    text: int  # bytes
    records: int
    amount: int
    sizes: NDArray[np.uint32] | None  # of the records, in tokens; records and bytes are counted when the lines are read


@dataclass(slots=True)
class Lane:
    """The records of one source, language and difficulty."""

    source: str
    language: str = ""
    band: str = ""
    blocks: list[Block] = field(default_factory=list)
    records: int = 0
    amount: int = 0  # the sum of their sizes
    text: int = 0  # bytes
    repeats: int = 1  # the highest number of a repeat in the source, which may be a mixture itself

    def add(self, block: Block) -> None:
        self.blocks.append(block)
        self.records += block.records
        self.amount += block.amount
        self.text += block.text

    @property
    def key(self) -> str:
        return "\0".join((self.source, self.language, self.band))


class Spill:
    """A temporary file of frames that no name leads to, so that nothing stays of it, however the process ends."""

    def __init__(self, directory: str | None):
        self.place = directory or tempfile.gettempdir()
        self.file = tempfile.TemporaryFile(dir=self.place, buffering=0)  # noqa: SIM115
        self.end = 0
        self.pending: dict[str, tuple[Lane, list[bytes], list[int]]] = {}
        self.text: dict[str, int] = {}  # bytes pending

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, lane: Lane, line: bytes, size: int) -> None:
        _, lines, sizes = self.pending.setdefault(lane.key, (lane, [], []))
        lines.append(line)
        sizes.append(size)
        self.text[lane.key] = self.text.get(lane.key, 0) + len(line) + 1
        if self.text[lane.key] >= SPILL:
            self._write(lane.key)

    def finish(self) -> None:
        for key in list(self.pending):
            self._write(key)

    def _write(self, key: str) -> None:
        lane, lines, sizes = self.pending.pop(key)
        text = b"\n".join([*lines, b""])
        frame: Frame = compress(text, len(lines))
        view = memoryview(frame.data)
        try:
            while view:
                view = view[self.file.write(view) :]
        except OSError as error:
            raise IqcError(
                f"the temporary copy of sources cannot be written: {error.strerror}",
                where=self.place,
                remedy="it is as large as they are, compressed: free some space, or name an -o where there is some",
            ) from None
        name = f"/dev/fd/{self.file.fileno()}"
        chunk = Chunk(0, name, offset=self.end, compressed=len(frame.data), records=len(lines))
        self.end += len(frame.data)
        self.text[key] = 0
        lane.add(Block(chunk, len(text), len(lines), sum(sizes), np.array(sizes, np.uint32)))


class Queue:
    """The records of a lane, epoch after epoch: the size of the next one, then its line. It starts at any place."""

    def __init__(self, lane: Lane, by: str, seed: int, shuffle: bool, window: int, limit: int, taken: int = 0):
        """`window`: bytes of text; `limit`: records given at most, over all epochs; `taken`: given already."""
        self.lane, self.by, self.seed, self.shuffle, self.room, self.limit = lane, by, seed, shuffle, window, limit
        self.end = taken  # of the open window, as `taken` counts
        self.epoch = -1
        self.windows: list[list[Block]] = []
        self.lines: list[bytes] = []  # of the open window, the next one last
        self.sizes: list[int] = []

    @property
    def taken(self) -> int:
        """Records that were given, over all epochs."""
        return self.end - len(self.lines)

    def next_size(self) -> int | None:
        """The size of the next record; None when there is none."""
        if not self.sizes:
            self._open()
        return self.sizes[-1] if self.sizes else None

    def take(self) -> bytes:
        """The line of the record whose size was asked for. From the second epoch on its id says which one it is."""
        self.sizes.pop()
        line = self.lines.pop()
        return renamed(line, self.epoch * self.lane.repeats) if self.epoch else line

    def _open(self) -> None:
        """Read the window that holds the next record, less the records before it and those beyond the limit."""
        taken = self.taken
        if taken >= self.limit or not self.lane.records:
            return
        epoch, place = divmod(taken, self.lane.records)
        if epoch != self.epoch:
            blocks = [self.lane.blocks[number] for number in self._order(len(self.lane.blocks), epoch, "frames")]
            self.epoch, self.windows = epoch, windows(blocks, self.room)
        number = 0
        while place >= (records := sum(block.records for block in self.windows[number])):
            number, place = number + 1, place - records
        blocks = self.windows[number]
        lines = [line for block in blocks for line in block.chunk.lines()]
        sizes = [len(line) + 1 for line in lines] if self.by == "bytes" else [1] * len(lines)
        if self.by == "tokens":
            sizes = np.concatenate([block.sizes for block in blocks if block.sizes is not None]).tolist()
        order = self._order(len(lines), epoch, str(number))[place : place + self.limit - taken][::-1]
        self.lines = [lines[at] for at in order]
        self.sizes = [sizes[at] for at in order]
        self.end = taken + len(order)

    def _order(self, count: int, epoch: int, what: str) -> list[int]:
        """A permutation. Sorting raw output of PCG64: NumPy promises that it never changes (NEP 19)."""
        if not self.shuffle:
            return list(range(count))
        name = f"{self.seed}\0mix\0{self.lane.key}\0{epoch}\0{what}"
        digest = hashlib.sha256(name.encode()).digest()
        keys = np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest))).random_raw(count)
        return np.argsort(keys, kind="stable").tolist()


def windows(blocks: list[Block], room: int) -> list[list[Block]]:
    """Neighbouring blocks, as many as reach `room` bytes of text."""
    found: list[list[Block]] = [[]]
    size = 0
    for block in blocks:
        if size >= room:
            found.append([])
            size = 0
        found[-1].append(block)
        size += block.text
    return found


def renamed(line: bytes, before: int) -> bytes:
    """The record with an id of its own where `before` numbers of repeats are used up: ID#epoch2."""
    record = orjson.loads(line)
    stem, number = repeat_of(record["id"])
    return dump(record | {"id": f"{stem}#epoch{before + number}"})


def repeat_of(name: str) -> tuple[str, int]:
    """The id that a record had at first, and which time it is given: (a, 2) of a#epoch2, (a, 1) of a."""
    match = REPEAT.search(name) if "#epoch" in name else None
    return (name[: match.start()], int(match[1])) if match else (name, 1)
