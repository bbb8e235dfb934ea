import pytest

from iqc.corpus.scores import Scores, read_scores


def test_scores_are_found_in_the_record_or_its_metadata(make_stream, tmp_path):
    rows = [
        {"repo": "a", "path": "x.py", "score": 0.5},
        {"text": "", "metadata": {"repo": "a", "path": "y.py", "score": 1}},
        {"repo": "a", "path": "x.py", "score": 0.25},  # the last one counts
        {"repo": "a", "path": "z.py", "score": None},
        {"repo": "a", "path": "t.py", "score": True},
        {"repo": "a", "path": "w.py"},
        {"repo": "a", "path": 3, "score": 1},
        {"repo": "other", "path": "x.py", "score": 9},
        {"repo": ["a"], "path": "x.py", "score": 9},
    ]
    found, digest = read_scores(str(make_stream(tmp_path / "s.zst", rows)), "score", ["a", "b"])
    assert found == {"a": Scores({"x.py": 0.25, "y.py": 1.0}), "b": Scores({})}
    assert found["a"].mean == 0.625 and found["b"].mean is None
    assert digest.startswith("sha256:")


def test_the_field_has_any_name(make_stream, tmp_path):
    rows = [{"repo": "a", "path": "x", "metadata": {"depth": 3}}]
    assert read_scores(str(make_stream(tmp_path / "s.zst", rows)), "depth", ["a"])[0]["a"].of == {"x": 3.0}


def test_a_damaged_stream_is_an_error(tmp_path):
    from iqc.errors import IqcError

    (tmp_path / "bad").write_text("{")
    with pytest.raises(IqcError, match="not JSON"):
        read_scores(str(tmp_path / "bad"), "score", ["a"])
