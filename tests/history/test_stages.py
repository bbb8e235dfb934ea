"""Parts of repositories as the items of a source stage."""

import hashlib

import pytest

from iqc.errors import BadRecord
from iqc.history import stages
from iqc.history.triplets import Options
from iqc.streams.stage import Dropped, Raw


def run(items, options):
    """What the runner does: parts in, records out, what cannot be read set aside."""
    one, found, bad = stages.transform(options), [], []
    for item in items.items:
        try:
            found += [out for out in one(item) if not isinstance(out, Raw | Dropped)]
        except BadRecord as error:
            bad.append(error.what)
    return found, bad


def test_a_repository_that_cannot_be_read_leaves_the_others(started, new_work, tmp_path, body, loose, everything):
    empty = new_work("empty").place
    single = new_work("single")
    single.write("a", "1")
    single.commit("only one")
    lost = new_work("lost")
    for k in range(4):
        lost.write("a", str(k))
        lost.commit("more")
    loose(lost, lost.git("rev-parse", "HEAD~2").decode().strip()).unlink()
    started.write("m2.py", body(2))
    started.commit("Add one more module")
    given = [str(path) for path in (empty, single.place, lost.place, tmp_path / "absent", started.place)]
    found, bad = run(stages.open_repositories(stages.sources(given), Options(**everything)), Options(**everything))
    assert len(found) == 2 and len(bad) == 4
    for what, words in zip(bad, ("no commit", "one commit", "cannot list the commits", "not a Git repository")):
        assert words in what


def test_bad_lines_of_an_export_are_counted(started, tmp_path):
    export = tmp_path / "export.jsonl"
    export.write_text('{"url": "https://api.github.com/repos/o/r/pu\n[]\n')
    options = stages.pulls.Options(export=(str(export),))
    found = stages.sources([f"o/r={started.place}"])
    assert len(run(stages.open_repositories(found, options, skip_bad=True), options)[1]) == 2
    with pytest.raises(BadRecord, match=r"export\.jsonl:1"):
        run(stages.open_repositories(found, options), options)


def test_digest_of_an_item_depends_on_its_part(started, everything):
    options = Options(**everything)
    (item,) = stages.open_repositories(stages.sources([str(started.place)]), options).items
    first = next(iter(stages.transform(options)(item)))
    assert isinstance(first, Raw) and len(first.digest) == hashlib.sha256().digest_size
