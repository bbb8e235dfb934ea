"""Names of repositories on a command line."""

import pytest

from iqc.errors import UsageError
from iqc.history.inputs import name_repositories


def test_a_name_is_said_or_is_the_directorys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    given = ["owner/name=x.git", "some/where/other.git", "a=b", "more=c=d"]
    assert name_repositories(given) == {
        "owner/name": "x.git",
        "other": "some/where/other.git",
        "a=b": "a=b",
        "more": "c=d",
    }
    assert list(name_repositories(["b", "a"])) == ["b", "a"]
    assert name_repositories(["."]) == {tmp_path.name: "."}


@pytest.mark.parametrize("given", [["=x"], ["/"], ["a\nb=x"], ["x", "y/x.git"], ["n=x", "n=y"], ["pl\udcff"]])
def test_a_name_is_not_empty_nor_odd_nor_taken(given):
    with pytest.raises(UsageError) as error:
        name_repositories(given)
    assert "=" in error.value.remedy
