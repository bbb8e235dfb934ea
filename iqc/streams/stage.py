"""What a stage is: it knows records, and nothing of files, processes or progress.

A map is `transform(record) -> Iterable[Record | Dropped]`: one record in, any number out. A record that is not kept
comes back as `Dropped`, so that counts by rule, `--explain` and the summary cost a stage nothing.
"""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from iqc.errors import BadRecord

Record = dict[str, Any]


@dataclass(slots=True)
class Dropped:
    """A record that a rule removed, with the value that the rule measured and the threshold it compared it with."""

    record: Record
    rule: str
    value: Any = None
    threshold: Any = None


@dataclass(slots=True)
class Raw:
    """What a source stage yields beside its records: the SHA-256 and size of one raw thing that it read."""

    digest: bytes
    size: int


@dataclass(slots=True)
class Noted:
    """What a stage yields beside a record that it kept: something to be counted in the summary and in the lineage."""

    what: str


Transform = Callable[[Any], Iterable[Any]]  # of Record, Dropped, Raw and Noted; of any values in the map of a set stage


def rng(seed: int, command: str, record_id: str) -> random.Random:
    """The random choices of one record: they depend on nothing else, so neither on order nor on the number of jobs."""
    digest = hashlib.sha256(f"{seed}\0{command}\0{record_id}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "little"))


def require(record: Record, name: str, kind: type = str) -> Any:
    """The field `name` of a record, or BadRecord when it is absent or of another JSON type."""
    value = record.get(name)
    if not isinstance(value, kind):
        found = "nothing" if name not in record else f"{type(value).__name__}"
        raise BadRecord(
            f'field "{name}": expected {kind.__name__}, found {found}',
            remedy="iqc help stream has the fields of each kind of record; --on-error skip passes over bad ones",
        )
    return value


def metadata_of(record: Record) -> Record:
    """The record's `metadata`, {} where it has none; BadRecord when it is another JSON type."""
    return {} if record.get("metadata") is None else require(record, "metadata", dict)
