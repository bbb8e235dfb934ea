"""Percentiles of a life, by rank and by time, and the sections that are mined alone."""

import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.history.triplets import _Miner


def dated_at(place, times):
    subprocess.run(["git", "init", "-q", "-b", "main", place], check=True)
    subprocess.run(["git", "fast-import", "--quiet"], cwd=place, input=dates(times).encode(), check=True)


def dated(work, times):
    """A line of commits with these dates."""
    work.git("fast-import", "--quiet", stdin=dates(times).encode())
    return work.git("rev-list", "--reverse", "HEAD").decode().split()


def dates(times):
    stream = ""
    for k, time in enumerate(times):
        text, message = f"def f{k}(x):\n    return x + {k}\n", f"Change the module for time {k}\n"
        stream += f"commit refs/heads/main\ncommitter a <a@b> {time} +0000\ndata {len(message)}\n{message}"
        stream += f"M 100644 inline a.py\ndata {len(text)}\n{text}\n"
    return stream


def test_percentiles_by_time(work, mine):
    """Half of the commits are in the first tenth of the life; two clocks are wrong, one by far in each direction."""
    times = [1_000_000_000 + (k if k < 10 else 10 + (k - 9) * 9) for k in range(20)]
    times[5], times[7] = 1, 4_300_000_000
    ids = dated(work, times)
    halves = {by: mine(work.place, window=(0.0, 0.5), by=by)[0] for by in ("rank", "time")}
    starts = {by: [record["old"]["commit"] for record in found] for by, found in halves.items()}
    assert starts["rank"] == ids[:10]
    assert starts["time"] == ids[:14]  # the 14th is at 46 of 100 seconds
    late = mine(work.place, window=(0.5, 1.0), by="time")[0]
    assert [record["old"]["commit"] for record in late] == ids[14:19]
    assert all(0.5 <= record["metadata"]["percentile"] <= 1 for record in late)


@given(times=st.lists(st.integers(0, 12), min_size=4, max_size=12))
@settings(max_examples=8, deadline=None)
def test_percentiles_by_time_rise_and_lie_in_the_window(mine, times):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "repo")
        dated_at(place, [1_000_000_000 + 86_400 * time for time in times])
        try:
            kept, _ = mine(place, window=(0.4, 0.8), by="time")
        except IqcError as error:
            assert "percentiles by time" in error.what or "no commit between" in error.what
            return
        found = [record["metadata"]["percentile"] for record in kept]
        assert found == sorted(found) and all(0.4 <= share <= 0.8 for share in found)


def test_equal_dates(work, mine):
    ids = dated(work, [1_000_000_000] * 5)
    assert [record["old"]["commit"] for record in mine(work.place)[0]] == ids[:4]
    with pytest.raises(IqcError, match="no percentiles by time"):
        mine(work.place, by="time")
    with pytest.raises(IqcError, match="no commit between"):
        mine(work.place, window=(0.99, 1.0))


def test_sections_give_what_one_pass_gives(work, monkeypatch, mine):
    """Cut small, sections hold no more and no less, except that no triplet reaches across a cut."""
    ids = dated(work, [1_000_000_000 + k for k in range(60)])
    whole, _ = mine(work.place)
    monkeypatch.setattr("iqc.history.triplets._STRETCHES", 7)
    parts, _ = mine(work.place)
    assert parts == whole and len(whole) == 59
    spans, _ = mine(work.place, horizon=5, density=30.0)
    at = {oid: k for k, oid in enumerate(ids)}
    ends = [(at[record["old"]["commit"]], at[record["new"]["commit"]]) for record in spans]
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends)) and len(spans) > 5


def test_what_is_held_of_a_history_is_a_window(work, mine):
    """Commits are read as they are needed: a start late in the line holds no commit before it."""
    dated(work, [1_000_000_000 + k for k in range(400)])
    held = []
    original = _Miner._fill

    def fill(self, window, commits):
        original(self, window, commits)
        held.append(len(window))

    _Miner._fill = fill
    try:
        mine(work.place, density=5.0, horizon=4)
    finally:
        _Miner._fill = original
    assert held and max(held) == 5
