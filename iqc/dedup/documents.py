"""Exact and near-duplicate documents, keep-first, in one pass.

Phase 1, `signature(text)`, is a map for any number of workers. Phase 2, `Deduplicator.add(id, signature)`, runs in one
process in input order. A document is removed if and only if an earlier KEPT document has the same text ("exact") or is
found by MinHash-LSH and has a Jaccard similarity of at least the threshold ("near"), computed on the whole shingle
sets. So nothing is removed without a kept partner at that similarity, and no group of likes disappears, as it can where
clusters are closed over unverified or chained pairs. What LSH does not propose is not found: with the default bands 44
pairs in 100 at J = 0.7, 8 at 0.8, 1 in 2,600 at 0.9; `Lsh(22, 5)` hashes as much and makes that 2, and 1 in 6,000.

Memory: 8 bytes a table entry at a load of 0.3 to 0.6, so 200 to 400 bytes a kept document with 14 bands. The hashes of
the texts and their shingle sets (8 bytes a shingle) wait in an unnamed temporary file. Time is linear but for documents
that share bands with many kept ones without reaching the threshold: each such pair is compared.
"""

import hashlib
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from iqc.dedup.minhash import Lsh, band_keys, jaccard, shingles
from iqc.streams.stage import Dropped, Record, metadata_of

THRESHOLD = 0.7
LSH = Lsh()
_HEAD = 34  # bytes before the id in the spill file: SHA-256, length of the id


@dataclass(frozen=True, slots=True)
class Signature:
    """What phase 2 has to know of a text. `keys` and `shingles` are little-endian u64 arrays, empty under 5 tokens."""

    sha256: bytes
    keys: bytes
    shingles: bytes


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The kept document that a text repeats. `kind`: "exact" or "near"; `jaccard`: 1.0 where exact."""

    of: str
    kind: str
    jaccard: float


def signature(text: str, lsh: Lsh | None = LSH) -> Signature:
    """The signature of one text; `lsh=None` for exact duplicates alone. Under 5 tokens only the hash is left."""
    sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    sets = shingles(text) if lsh else None
    if lsh is None or sets is None or not len(sets):
        return Signature(sha256, b"", b"")
    return Signature(sha256, band_keys(sets, lsh).astype("<u8").tobytes(), sets.astype("<u8").tobytes())


def dropped(record: Record, duplicate: Duplicate, threshold: float = THRESHOLD) -> Dropped:
    """The record as a removed one, with `metadata.duplicate_of`; rule "exact" or "near", value the similarity."""
    record = {**record, "metadata": {**metadata_of(record), "duplicate_of": duplicate.of}}
    return Dropped(record, duplicate.kind, duplicate.jaccard, 1.0 if duplicate.kind == "exact" else threshold)


class Deduplicator:
    """Phase 2: feed it every document in input order. A context manager; it owns one temporary file."""

    def __init__(self, threshold: float = THRESHOLD, directory: str | Path | None = None):
        """`threshold`: least Jaccard similarity of a near duplicate, in (0, 1]. `directory`: for the temporary file."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold} is not in (0, 1]")
        self.threshold = threshold
        self._file = tempfile.TemporaryFile(dir=directory, prefix="iqc-dedup-")  # noqa: SIM115 (closed by close)
        self._ends = array("Q", [0])  # of the kept documents' entries in the file
        self._sizes = array("I")  # shingles of each kept document
        self._exact = _Table()
        self._bands = _Table()

    def add(self, record_id: str, signature: Signature) -> Duplicate | None:
        """None: the document is the first of its kind, and kept. Otherwise the kept one it repeats.

        Of several kept likes it is an exact one, else the earliest.
        """
        exact_key = int.from_bytes(signature.sha256[:8], "little")
        for index in self._exact.find(exact_key):
            sha256, kept_id = self._head(index)
            if sha256 == signature.sha256:
                return Duplicate(kept_id, "exact", 1.0)

        keys: list[int] = np.frombuffer(signature.keys, "<u8").tolist()
        mine = np.frombuffer(signature.shingles, "<u8")
        candidates = {index for key in keys for index in self._bands.find(key)}
        for index in sorted(candidates):
            small, large = sorted((len(mine), self._sizes[index]))
            if small < self.threshold * large:  # J <= |smaller| / |larger|
                continue
            similarity = jaccard(mine, self._shingles(index))
            if similarity >= self.threshold:
                return Duplicate(self._head(index)[1], "near", similarity)

        index = len(self._sizes)
        name = record_id.encode("utf-8", "surrogatepass")[:65535]
        entry = signature.sha256 + len(name).to_bytes(2, "little") + name + signature.shingles
        self._file.seek(self._ends[-1])
        self._file.write(entry)
        self._ends.append(self._ends[-1] + len(entry))
        self._sizes.append(len(mine))
        self._exact.insert(exact_key, index)
        for key in keys:
            self._bands.insert(key, index)
        return None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Deduplicator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, start: int, count: int) -> bytes:
        self._file.seek(start)
        return self._file.read(count)

    def _head(self, index: int) -> tuple[bytes, str]:
        start, end = self._ends[index], self._ends[index + 1]
        head = self._read(start, end - start - 8 * self._sizes[index])
        return head[:32], head[_HEAD:].decode("utf-8", "surrogatepass")

    def _shingles(self, index: int) -> np.ndarray:
        count = 8 * self._sizes[index]
        return np.frombuffer(self._read(self._ends[index + 1] - count, count), "<u8")


class _Table:
    """64-bit key -> the indices inserted under it: open addressing with linear probing, 8 bytes a slot.

    A slot holds the key's high 32 bits and index + 1. Keys that agree in those bits are taken for one another: a caller
    verifies what it finds. At 10^8 entries that is one false find in 43 look-ups.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def find(self, key: int) -> Iterator[int]:
        slots, mask, tag = self._slots, len(self._slots) - 1, key >> 32
        at = tag & mask
        while slot := slots[at]:
            if slot >> 32 == tag:
                yield (slot & 0xFFFFFFFF) - 1
            at = (at + 1) & mask

    def insert(self, key: int, index: int) -> None:
        if 10 * self._count >= 6 * len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for slot in old:
                if slot:
                    self._place(slot)
        self._place(key >> 32 << 32 | (index + 1))
        self._count += 1

    def _place(self, slot: int) -> None:
        slots, mask = self._slots, len(self._slots) - 1
        at = slot >> 32 & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = slot
