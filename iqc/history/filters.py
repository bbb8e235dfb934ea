"""Filters of repositories by a metadata file: stars, forks, commits, age.

The file is JSONL, plain, gzip or zstd, one repository a line, with the names of GitHub's REST API or the plain ones:

    full_name, name or repo     owner/name, compared in any case
    stargazers_count or stars;  forks_count or forks;  commits or commits_count;  age_days
    created_at, pushed_at       ISO 8601: without `age_days`, the age is the days between them

The rules are `metadata.stars`, `metadata.forks`, `metadata.commits` and `metadata.age_days`, a number below its limit
being dropped. Commits and age that the file does not have are those of the history itself: the commits of its first-
parent line, the days from its first to its last. Stars and forks are nowhere in a history: a repository of which they
are not known while they are asked for is dropped as `metadata.missing`. To keep it would let in whatever the file
forgot, and nobody would see it; a limit of 0 asks for nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from typing import Any

from iqc.errors import BadRecord
from iqc.history.git import Repository
from iqc.history.inputs import Asked
from iqc.streams.reader import open_inputs
from iqc.streams.stage import Dropped, Record
from iqc.streams.worker import parse

_NAMES = {
    "stars": ("stars", "stargazers_count"),
    "forks": ("forks", "forks_count"),
    "commits": ("commits", "commits_count"),
    "age_days": ("age_days",),
}
_DAY = 86_400  # seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """The least that a repository has to have; 0 asks for nothing. The defaults are those of Seed-Coder's commit data
    (arXiv 2506.03524, section 2.2.2)."""

    stars: int = 100
    forks: int = 10
    commits: int = 100
    age_days: int = 100


Metadata = dict[str, dict[str, float]]  # name in lower case -> rule -> number


def read_metadata(path: str, names: Iterable[str]) -> Metadata:
    """What the file says of these repositories, by the names given; of two lines about one, the last.

    A name without owner is the only repository of that name in the file. BadRecord names file and line.
    """
    asked = Asked(names)
    found: Metadata = {}
    (source,) = open_inputs([path])
    for number, line in source.numbered_lines():
        try:
            full_name, numbers = _row(parse(line))
        except BadRecord as error:
            raise BadRecord(error.what, where=f"{path}:{number}", remedy=error.remedy) from None
        if name := asked.find(full_name, path):
            found[name.lower()] = numbers
    return found


def _row(record: Record) -> tuple[str, dict[str, float]]:
    name = next((record[key] for key in ("full_name", "repo", "name") if isinstance(record.get(key), str)), None)
    if name is None:
        raise BadRecord("a repository without a name", remedy="give it as full_name, repo or name: owner/name")
    numbers: dict[str, float] = {}
    for rule, keys in _NAMES.items():
        value = next((record[key] for key in keys if record.get(key) is not None), None)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise BadRecord(f"{rule} of {name} is {value!r}", remedy="give numbers, or null for what is not known")
        if value is not None:
            numbers[rule] = value
    created, pushed = _seconds(record, "created_at"), _seconds(record, "pushed_at")
    if "age_days" not in numbers and created is not None and pushed is not None:
        numbers["age_days"] = round((pushed - created) / _DAY, 1)
    return name.lower(), numbers


def _seconds(record: Record, name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    try:
        when = datetime.fromisoformat(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        raise BadRecord(f"{name} is {value!r}", remedy="give a date as 2024-01-31T12:00:00Z") from None


def _of_history(path: str | PathLike[str]) -> dict[str, float]:
    with Repository(path) as repository:
        (_, first), (_, last) = next(repository.line()), next(repository.line(newest_first=True))
        return {"commits": repository.count(), "age_days": round((last - first) / _DAY, 1)}


def judge(path: str | PathLike[str], name: str, metadata: Metadata, limits: Limits) -> Dropped | None:
    """The rule that drops a repository, or None. IqcError by name when its history has to be read and cannot be."""
    known: dict[str, Any] = dict(metadata.get(name.lower(), {}))
    asked: dict[str, int] = {rule: limit for rule in _NAMES if (limit := getattr(limits, rule)) > 0}
    if any(rule not in known for rule in asked.keys() & {"commits", "age_days"}):
        known = _of_history(path) | known
    for rule, limit in asked.items():
        if rule not in known:
            return Dropped({"id": name, "repo": name}, "metadata.missing", rule, limit)
        if known[rule] < limit:
            return Dropped({"id": name, "repo": name}, f"metadata.{rule}", known[rule], limit)
    return None
