"""What a stage is: it knows records, and nothing of files, processes or progress.

A map is `transform(record) -> Iterable[Record | Dropped]`: one record in, any number out. A record that is not kept
comes back as `Dropped`, so that counts by rule, `--explain` and the summary cost a stage nothing.
"""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(slots=True)
class Dropped:
    """A record that a rule removed, with the value that the rule measured and the threshold it compared it with."""

    record: Record
    rule: str
    value: Any = None
    threshold: Any = None


Transform = Callable[[Record], Iterable[Record | Dropped]]


def rng(seed: int, command: str, record_id: str) -> random.Random:
    """The random choices of one record: they depend on nothing else, so neither on order nor on the number of jobs."""
    digest = hashlib.sha256(f"{seed}\0{command}\0{record_id}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "little"))
