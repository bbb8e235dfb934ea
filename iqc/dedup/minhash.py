"""Shingles and MinHash signatures of a text, vectorised: no Python loop over characters, tokens or permutations.

A token is a maximal run of word characters (letters, digits, underscore; case kept: in code it means something). A
shingle is `SHINGLE` tokens in a row. MinHash (Broder 1997) turns the set of shingles into a few numbers, of which two
texts share a share equal to the Jaccard similarity J of their sets; banding (Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", 3.4) turns those into keys: texts share one of `bands` keys of `rows` numbers each with probability
1 - (1 - J^rows)^bands. Everything here is a function of the text and the parameters, on every machine.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # tokens, as The Stack, FineWeb and OpenCoder

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0 modulo 2^64
_CODE_POINTS = 0x110000
_BLOCK = 2048  # shingles hashed at once: rows x block x 4 bytes stay in the second-level cache

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Lsh:
    """`bands` x `rows` MinHash values. The default's curve is steepest at J = (1/14)^(1/8) = 0.72, as FineWeb's."""

    bands: int = 14
    rows: int = 8

    @classmethod
    def for_threshold(cls, threshold: float, permutations: int = 112) -> "Lsh":
        """The split of `permutations` values with the least false proposals and misses around `threshold`.

        A false proposal costs one comparison and a miss keeps a duplicate, so misses weigh more: 22 x 5 at 0.7.
        """
        from datasketch import MinHashLSH

        index = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.02, 0.98))
        return cls(index.b, index.r)


def shingles(text: str) -> U64:
    """The set of the text's shingles as sorted 64-bit hashes [n]; empty for a text of fewer than SHINGLE tokens."""
    tokens = _token_hashes(text)
    count = len(tokens) - SHINGLE + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    mixed = tokens[:count].copy()
    for i in range(1, SHINGLE):
        mixed *= _BASE
        mixed += tokens[i : i + count]
    mixed = _mix(mixed)
    mixed.sort()
    first = np.ones(count, np.bool_)  # np.unique is six times slower on these
    np.not_equal(mixed[1:], mixed[:-1], out=first[1:])
    return mixed[first]


def band_keys(shingle_hashes: U64, lsh: Lsh) -> U64:
    """[bands] one key a band: the hash of `rows` MinHash values and the band's number. Needs at least one shingle."""
    slopes, shifts = _permutations(lsh.bands * lsh.rows)
    short = (shingle_hashes >> np.uint64(32)).astype(np.uint32)
    lowest: U32 = np.full(len(slopes), np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(short), _BLOCK):
        block = short[start : start + _BLOCK] * slopes[:, None]  # a x + b modulo 2^32, a odd: a permutation
        block += shifts[:, None]
        np.minimum(lowest, block.min(axis=1), out=lowest)
    keys = np.arange(lsh.bands, dtype=np.uint64)
    for row in lowest.reshape(lsh.bands, lsh.rows).T:
        keys = _mix(keys * _BASE + row)
    return keys


def jaccard(a: U64, b: U64) -> float:
    """|A and B| / |A or B| of two sorted sets without repetition; 0 where one is empty."""
    if not len(a) or not len(b):
        return 0.0
    if len(a) > len(b):
        a, b = b, a
    at = np.searchsorted(b, a)
    at[at == len(b)] = 0
    common = int(np.count_nonzero(b[at] == a))
    return common / (len(a) + len(b) - common)


def _token_hashes(text: str) -> U64:
    """[tokens] a polynomial hash of every token: the sum of c_k B^k over its code points, modulo 2^64, mixed."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    word = np.zeros(len(points) + 2, np.bool_)
    _word_table().take(points, out=word[1:-1])
    edges = np.flatnonzero(word[1:] != word[:-1])
    if not len(edges):
        return np.empty(0, np.uint64)
    lengths = edges[1::2] - edges[::2]
    starts = np.cumsum(lengths) - lengths  # in the text without what stands between the tokens
    letters = points[word[1:-1]].astype(np.uint64)
    places = np.arange(len(letters)) - np.repeat(starts, lengths)
    longest = int(lengths.max())
    letters *= _powers(max(4096, 1 << (longest - 1).bit_length())).take(places)
    return _mix(np.add.reduceat(letters, starts) + lengths.astype(np.uint64))


def _mix(x: U64) -> U64:
    """splitmix64's finaliser: every bit of the output depends on every bit of the input."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=1)
def _word_table() -> NDArray[np.bool_]:
    """[0x110000] True at the code points that are part of a token (`\\w` of the `re` module)."""
    return np.fromiter((c == 0x5F or chr(c).isalnum() for c in range(_CODE_POINTS)), np.bool_, _CODE_POINTS)


@lru_cache(maxsize=2)
def _powers(count: int) -> U64:
    """B^0..B^(count-1) modulo 2^64."""
    powers = np.full(count, _BASE)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


@lru_cache(maxsize=4)
def _permutations(count: int) -> tuple[U32, U32]:
    """Slopes (odd) and shifts of `count` permutations of the 32-bit numbers; the same on every run."""
    noise = _mix(np.arange(1, 2 * count + 1, dtype=np.uint64) * _BASE)
    return (noise[:count] >> np.uint64(32)).astype(np.uint32) | np.uint32(1), (noise[count:] >> np.uint64(32)).astype(
        np.uint32
    )
