"""Lineage: a DAG that depends on the work alone, survives every stage, and is checked when it is read."""

import copy

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.streams.inspect import lineage_text
from iqc.streams.lineage import Digest, Input, Stage, checked_lineage, differences, line_digest, lineage_of

OUTPUT = {"digest": "sha256:" + "1" * 64, "records": 3, "bytes": 9}
COUNTS = {"read": 5, "kept": 3, "dropped": {"short": 2}}


def chain(length):
    lineage = None
    for number in range(length):
        inputs = [Input(OUTPUT["digest"], 3, lineage), Input(None, label="WARC")]
        lineage = lineage_of(Stage("clean", "1", {"n": number}, number), inputs, COUNTS, OUTPUT)
    return lineage


@given(st.lists(st.binary(max_size=20)), st.integers(0, 20))
def test_a_digest_does_not_depend_on_the_cuts(lines, cut):
    whole, parts = Digest(), Digest()
    whole.add(b"".join(map(line_digest, lines)))
    parts.add(b"".join(map(line_digest, lines[:cut])))
    parts.add(b"".join(map(line_digest, lines[cut:])))
    assert whole.text() == parts.text()


def test_what_is_made_is_taken_back_and_shown():
    lineage = chain(4)
    assert checked_lineage(orjson.loads(orjson.dumps(lineage))) == lineage and len(lineage["stages"]) == 4
    text = lineage_text(lineage)
    assert text.count("clean 1 [") == 4 and "dropped 2" in text and "WARC: an input that was not read" in text


def test_a_stage_that_feeds_two_others_is_shown_once():
    lineage = chain(1)
    for _ in range(40):  # shown in full each time, this would be 2^40 lines
        both = [Input("sha256:a", 1, lineage), Input("sha256:b", 1, lineage)]
        lineage = lineage_of(Stage("mix", "1"), both, COUNTS, OUTPUT)
    assert len(lineage_text(lineage).splitlines()) < 400 and "as above" in lineage_text(lineage)


def leaves(value, path=()):
    if isinstance(value, dict):
        for key in value:
            yield path, key
            yield from leaves(value[key], (*path, key))


def test_any_missing_or_altered_part_of_a_node_is_noticed():
    lineage = chain(2)
    for path, key in leaves(lineage):
        if path[:1] != ("stages",) and key not in ("stage", "stages", "output", "digest"):
            continue
        for change in ("remove", "null"):
            broken = copy.deepcopy(lineage)
            place = broken
            for name in path:
                place = place[name]
            if change == "remove":
                del place[key]
            else:
                place[key] = None
            with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
                checked_lineage(broken)


def test_differences_are_named():
    old = {"command": "a", "options": {"x": 1, "y": 2}, "seed": 1}
    new = {"command": "a", "options": {"x": 1, "y": 3, "z": None}}
    assert differences(old, new) == ["options.y: 2, now 3", "seed: 1, now None"]
    assert differences(old, old) == []


def test_every_stage_is_in_the_lineage_and_no_path_time_or_job_count(iqc, samples, tmp_path):
    first, second = tmp_path / "first.zst", tmp_path / "second.zst"
    assert iqc("head", "-n", 5, samples / "sample.zst", samples / "sample.jsonl", "-o", first).returncode == 0
    assert iqc("head", "-n", "all", first, "-o", second).returncode == 0
    lineage = orjson.loads(iqc("lineage", "--json", second).stdout)
    assert [node["command"] for node in lineage["stages"].values()] == ["head"] * 3
    assert str(tmp_path).encode() not in second.read_bytes() and b"jobs" not in orjson.dumps(lineage)
    text = iqc("lineage", second).stdout.decode()
    assert "count=5" in text and text.index("count=all") < text.index("count=5")


def test_verify(iqc, samples, tmp_path):
    assert b"45000 records" in iqc("lineage", "--verify", samples / "sample.zst").stdout
    assert iqc("lineage", "--verify", samples / "sample.jsonl").returncode == 1
    for name in ("lineage.json", "manifest.json"):
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        for text in (b"{", b"[]", b"{}", b'{"stage": 1, "stages": {}, "output": {}}'):
            (place / name).write_bytes(text)
            assert iqc("lineage", place).returncode == 1
        (place / name).write_bytes(orjson.dumps(chain(3)))
        assert iqc("lineage", place).returncode == 0
