"""Names of repositories on a command line."""

import pytest

from iqc.errors import UsageError
from iqc.history.inputs import Asked, name_repositories


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


def test_the_repositories_of_a_file_are_found_by_their_full_names():
    asked = Asked(["Owner/One", "two"])
    assert asked.find("owner/one", "F") == "Owner/One" and asked.find("OWNER/ONE", "F") == "Owner/One"
    assert asked.find("other/one", "F") is None and asked.find("one", "F") is None
    assert asked.find("a/Two", "F") == "two" and asked.find("A/two", "F") == "two"
    with pytest.raises(UsageError, match="F has a/two and b/two") as error:
        asked.find("b/two", "F")
    assert "OWNER/NAME=REPO" in error.value.remedy
