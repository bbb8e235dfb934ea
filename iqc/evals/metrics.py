"""pass@k without bias, edit distance, and an interval for a mean."""

from collections.abc import Sequence
from operator import index

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c correct ones.

    1 - C(n-c, k) / C(n, k), as the product of Chen et al. 2021 (arXiv:2107.03374), figure 3. ValueError for k > n.
    """
    n, c, k = index(n), index(c), index(k)  # a float c breaks the product
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples with {c} correct is not defined")
    if n - c < k:
        return 1.0
    miss = 1.0
    for i in range(n - c + 1, n + 1):
        miss *= 1.0 - k / i
    return 1.0 - miss


def bootstrap_interval(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """The percentile interval of the mean of `values` (one a task). ValueError when there are none."""
    if not len(values):
        raise ValueError("no values to resample")
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.Generator(np.random.PCG64(seed))
    means = [data[generator.integers(0, len(data), len(data))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and substitutions between two strings.

    Bit-parallel (Myers 1999, in the form of Hyyrö 2003): a column of the distance matrix is two integers of len(a)
    bits, the rows where it rises and where it falls, so Python's long integers do a column in one step.
    """
    if not a or not b:
        return len(a) or len(b)
    positions: dict[str, int] = {}
    for row, char in enumerate(a):
        positions[char] = positions.get(char, 0) | 1 << row
    full, last, distance = (1 << len(a)) - 1, 1 << (len(a) - 1), len(a)
    rises, falls = full, 0
    for char in b:
        equal = positions.get(char, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right_up = falls | (full & ~(diagonal | rises))
        right_down = rises & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        rises = full & (right_down | ~(equal | falls | right_up))
        falls = full & right_up & (equal | falls)
    return distance
