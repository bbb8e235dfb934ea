"""Repositories kept or dropped by what a metadata file says, or their history where it says nothing."""

import gzip
import json

import pytest

from iqc.errors import BadRecord, UsageError
from iqc.history.filters import Limits, judge, read_metadata

REST = {
    "full_name": "O/R",
    "name": "R",
    "stargazers_count": 100,
    "forks_count": 10,
    "created_at": "2020-01-01T00:00:00Z",
    "pushed_at": "2020-04-10T00:00:00Z",  # 100 days later
    "commits": 100,
}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_the_limits_are_inclusive_and_each_has_its_rule(tmp_path):
    path = tmp_path / "metadata.jsonl"
    found = read_metadata(write(path, REST), ["o/r"])
    assert found == {"o/r": {"stars": 100, "forks": 10, "commits": 100, "age_days": 100.0}}
    assert judge("/nowhere", "o/R", found, Limits()) is None
    less = [("stargazers_count", "stars", 99), ("forks_count", "forks", 9), ("commits", "commits", 99)]
    for field, rule, value in less:
        dropped = judge("/nowhere", "o/r", read_metadata(write(path, REST | {field: value}), ["o/r"]), Limits())
        assert (dropped.rule, dropped.value, dropped.threshold) == (f"metadata.{rule}", value, value + 1)
        assert dropped.record == {"id": "o/r", "repo": "o/r"}
    young = read_metadata(write(path, REST | {"pushed_at": "2020-04-09T12:00:00Z"}), ["o/r"])
    assert judge("/nowhere", "o/r", young, Limits()).value == 99.5
    assert judge("/nowhere", "o/r", young, Limits(age_days=99)) is None


def test_plain_names_and_compressed_files(tmp_path):
    path = tmp_path / "metadata.jsonl.gz"
    row = {"repo": "o/r", "stars": 5, "forks": 1, "commits": 7, "age_days": 3.5}
    path.write_bytes(gzip.compress("\n".join(json.dumps(r) for r in (REST, {"repo": "a/b"}, row)).encode()))
    assert read_metadata(str(path), ["o/r"]) == {"o/r": {"stars": 5, "forks": 1, "commits": 7, "age_days": 3.5}}


def test_a_name_without_owner_is_the_only_one(tmp_path):
    rows = [REST, {"repo": "a/other", "stars": 1}]
    found = read_metadata(write(tmp_path / "m", *rows), ["r"])
    assert judge("/nowhere", "r", found, Limits()) is None
    with pytest.raises(UsageError, match="a/r"):
        read_metadata(write(tmp_path / "m", *rows, {"repo": "a/r"}), ["r"])
    assert set(read_metadata(write(tmp_path / "m", *rows, {"repo": "a/r"}), ["o/r", "a/r"])) == {"o/r", "a/r"}


def test_what_the_file_lacks_is_asked_of_the_history(work, tmp_path):
    for k in range(3):
        work.write("a", str(k))
        work.count += 1440  # minutes
        work.commit("a")
    metadata = read_metadata(
        write(tmp_path / "m", {"name": "o/r", "stars": 100, "forks": 10, "commits": None}), ["o/r"]
    )
    assert judge(work.place, "o/r", metadata, Limits(commits=3, age_days=2)) is None
    assert judge(work.place, "o/r", metadata, Limits(commits=4, age_days=2)).value == 3
    dropped = judge(work.place, "o/r", metadata, Limits(commits=3, age_days=3))
    assert (dropped.rule, dropped.value, dropped.threshold) == ("metadata.age_days", 2.0, 3)


def test_a_repository_that_the_file_does_not_know(work):
    work.write("a", "1")
    work.commit("a")
    dropped = judge(work.place, "o/r", {}, Limits(commits=1, age_days=0))
    assert (dropped.rule, dropped.value, dropped.threshold) == ("metadata.missing", "stars", 100)
    assert judge(work.place, "o/r", {}, Limits(0, 0, 1, 0)) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"stars": 1}', "without a name"),
        ('{"repo": "a/b", "stars": "many"}', "stars of a/b is 'many'"),
        ('{"repo": "a/b", "stars": true}', "True"),
        ('{"repo": "a/b", "created_at": "yesterday"}', "created_at is 'yesterday'"),
        ('{"repo": "a/b", "pushed_at": 5}', "pushed_at is 5"),
        ('{"repo": ', "not JSON"),
    ],
)
def test_a_bad_line_is_an_error_with_its_place(tmp_path, line, says):
    path = write(tmp_path / "m.jsonl", REST, "", line)
    with pytest.raises(BadRecord, match=says) as caught:
        read_metadata(path, ["o/r"])
    assert caught.value.where == f"{path}:3" and caught.value.remedy
