"""What a check found: bits that should be equal and are not; and which rank is to blame, where that can be told."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CHECKS = ("parameters", "gradients", "messages", "recomputation", "reduction", "memory")


@dataclass(slots=True, frozen=True)
class Finding:
    """`check` is one of CHECKS, `tensor` the name of a parameter or a message, `ranks` the suspects."""

    step: int
    check: str
    tensor: str
    ranks: tuple[int, ...]
    what: str  # after the tensor's name, in a sentence

    def __str__(self) -> str:
        ranks = f"rank{'s' if len(self.ranks) > 1 else ''} {' or '.join(map(str, self.ranks))}"
        return f"update {self.step}, {ranks}: {self.tensor} {self.what}"


def differing(table: Sequence[Sequence[int]]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """table[rank][tensor]: the tensors that are not the same on all ranks, each with the ranks to suspect: those that
    are not with the majority, or all when there is none."""
    for number, column in enumerate(zip(*table)):
        value, votes = Counter(column).most_common(1)[0]
        if votes < len(column):
            majority = 2 * votes > len(column)
            yield number, tuple(rank for rank, own in enumerate(column) if not majority or own != value)
