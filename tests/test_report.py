"""The report reads side-cars and nothing else; its page holds every number that the terminal shows."""

import html.parser
from pathlib import Path

import orjson
import pytest

from iqc.errors import IqcError
from iqc.report import figures, find, funnel, page, training
from iqc.streams.runner import Settings, write_records


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What three stages, a training run and an evaluation leave."""
    counts = {"command": "dedup", "read": 1200, "kept": 1000, "dropped": {"exact": 150, "near": 50}, "seconds": 1.5}
    (tmp_path / "01-dedup.json").write_bytes(orjson.dumps(counts))
    scores = {"benchmark": "fim", "tasks": 64, "edit_similarity": {"mean": 17.25, "low": 15.0, "high": 19.5}}
    (tmp_path / "fim-after.json").write_bytes(orjson.dumps(scores))
    run = tmp_path / "pretrain"
    (run / "step-00000040").mkdir(parents=True)
    lines = [orjson.dumps({"step": k, "loss": 8.0 - k / 10, "tokens": 512.0}) for k in range(40)]
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    node = {"command": "train", "version": "0.1.0", "options": {"stage": "pretrain"}, "counts": {}, "inputs": []}
    lineage = {"stage": "abc", "stages": {"abc": node}, "output": {"digest": "sha256:00"}}
    (run / "step-00000040" / "lineage.json").write_bytes(orjson.dumps(lineage))
    sample = {"id": "t#0", "task_id": "t", "text": "def f(x):\n    return x < 3 & True\n"}
    settings = Settings(output=str(tmp_path / "sample.jsonl.zst"), quiet=True)
    write_records("generate", {}, settings, [sample], list)
    return tmp_path


def test_rows(left: Path) -> None:
    found = find(str(left))
    assert funnel(found) == [("01-dedup", "1,200", "1,000", "200", "exact 150, near 50")]
    assert figures(found) == [("fim-after", "edit_similarity", "17.250", "15.000 to 19.500", "64")]
    assert training(found) == [("pretrain", "40", "loss", "7.850", "4.250")]
    assert [sample["task_id"] for sample in found.samples] == ["t"]


def test_page_is_well_formed_and_complete(left: Path) -> None:
    text = page(find(str(left)), "a <title>")
    open_tags: list[str] = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list) -> None:
            pass  # <path .../> opens nothing

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(text)
    assert not open_tags
    for part in ("1,200", "exact 150", "17.250", "7.850", "x &lt; 3 &amp; True", "a &lt;title&gt;", "train 0.1.0"):
        assert part in text
    assert text.count("<polyline") == 1
    assert "http" not in text  # nothing is fetched


def test_what_is_not_ours_is_passed_over(left: Path) -> None:
    before = find(str(left))
    foreign = [
        {"benchmark": 1}, {"benchmark": "x", "tasks": None}, {"command": "x", "read": "many", "kept": 1},
        {"command": "x", "read": 1}, {"command": "x", "read": 1, "kept": 1, "dropped": [1]},
        {"command": "x", "read": 1, "kept": 1, "dropped": {"a": None}},
    ]  # fmt: skip
    for number, data in enumerate(foreign):
        (left / f"{number}.json").write_bytes(orjson.dumps(data))
    (left / "directory.json").mkdir()
    (left / "other").mkdir()
    (left / "other" / "metrics.jsonl").write_text('{"accuracy": 1}\n')
    settings = Settings(output=str(left / "sample-2.jsonl.zst"), quiet=True)
    write_records("generate", {}, settings, [{"id": "a"}, {"id": "b", "task_id": "t", "text": 1}], list)
    assert find(str(left)) == before
    (left / "odd.json").write_bytes(orjson.dumps({"benchmark": "x", "tasks": 1, "a": {"mean": None}, "b": {"mean": 1}}))
    assert figures(find(str(left))) == figures(before)
    page(find(str(left)), "t")


def test_metrics_of_a_run_that_goes_on(left: Path) -> None:
    path = left / "pretrain" / "metrics.jsonl"
    whole = path.read_bytes()
    rows = training(find(str(left)))
    path.write_bytes(whole + b'{"step": 40, "loss": null}\n{"step": 41, "lo')
    (left / "pretrain" / "step-00000040" / "lineage.json").write_text('{"stage": 1}')
    assert training(find(str(left))) == rows
    page(find(str(left)), "t")


@pytest.mark.parametrize("line", [b"{\n", b"[1]\n", b"\xff\n", b"\n"])
def test_damaged_metrics_are_named(left: Path, line: bytes) -> None:
    path = left / "pretrain" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line + b'{"step": 41, "loss": 1.0}\n')
    with pytest.raises(IqcError, match=r"metrics.jsonl:41: not a line of metrics") as error:
        find(str(left))
    assert error.value.remedy


def test_nothing_to_report(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(IqcError, match="nothing to report"):
        find(str(tmp_path))
