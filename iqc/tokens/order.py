"""The order of training rows: a keyed permutation of all rows of a set, computed one place at a time.

Row g of a run is in epoch g // rows, at place g % rows of that epoch's order, and the order comes from (seed, epoch)
alone. So a run starts at any step at once and without memory, however many rows there are; every row comes once an
epoch; any number of ranks compute the same global batches; and how the rows are cut into shards does not matter.

The permutation is a balanced Feistel network (Luby and Rackoff 1988) on the smallest even number of bits that holds all
rows, followed again while its result is no row ("cycle walking", Black and Rogaway 2002): fewer than four times on
average. It is integer arithmetic alone, so a resumed run sees the order that it started with under any version.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8  # 4 suffice against an observer (Luby and Rackoff); small sets have halves of few bits and need more


def row_indices(rows: int, seed: int, first: int, count: int) -> NDArray[np.int64]:
    """Which rows of a set of `rows` are rows `first` ... `first + count - 1` of the run: [count]."""
    found = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, place = divmod(first + done, rows)
        size = min(count - done, rows - place)
        found[done : done + size] = permuted(np.arange(place, place + size), rows, seed, epoch)
        done += size
    return found


def permuted(places: NDArray[np.int64], rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where the order of an epoch has those places: a permutation of 0 ... rows - 1."""
    bits = max(1, ((rows - 1).bit_length() + 1) // 2)  # of each half
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * ROUNDS, person=b"iqc rows").digest()
    keys = np.frombuffer(digest, "<u8")
    found = _feistel(places.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(found >= rows)
    while outside.size:
        found[outside] = _feistel(found[outside], bits, keys)
        outside = outside[found[outside] >= rows]
    return found.astype(np.int64)


def _feistel(values: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of 0 ... 4**bits - 1."""
    half, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """All bits of a 64-bit word into all others: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
