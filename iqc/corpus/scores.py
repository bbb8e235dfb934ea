"""The quality of repositories: the mean of their files' scores, which another stage measured.

A stream of scores has a record a file: `repo` and `path`, in the record or its metadata, and a number under a name that
the user gives, in either place. A record without one of them counts as a file without a score.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from iqc.streams.runner import StreamInput, read_records
from iqc.streams.stage import Record, metadata_of


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one repository's files, by path."""

    of: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """None when no file has a score."""
        return math.fsum(self.of.values()) / len(self.of) if self.of else None


def read_scores(stream: str, name: str, repositories: Collection[str]) -> tuple[dict[str, Scores], str | None]:
    """The scores of these repositories, the last one of a path, and the digest of the stream for lineage.

    IqcError, BadRecord: the stream is damaged.
    """
    found = {repository: Scores() for repository in repositories}
    source = StreamInput([stream])
    for record in read_records(source):
        repository, path, score = (_value(record, key) for key in ("repo", "path", name))
        if isinstance(repository, str) and repository in found and isinstance(path, str) and _is_number(score):
            found[repository].of[path] = float(score)
    return found, source.results()[0].digest


def _value(record: Record, name: str):
    return record[name] if name in record else metadata_of(record).get(name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
