"""`iqc train` on several sources: a run that was stopped goes on bit for bit, also where its weights were adapted."""

import shutil

import orjson
import pytest

from iqc.errors import IqcError
from iqc.train.data.curriculum import MixtureSettings
from iqc.train.run import find_checkpoint, read_metrics


@pytest.fixture(scope="module")
def named(room):
    """Two sources of text that differ in what a model learns of them."""
    code = room.pack("code", [(room.place / "sequences.jsonl").read_text()[:1500]])
    count = room.pack("count", [" ".join(map(str, range(200)))])
    return [f"code={code}", f"count={count}"]


def files(run):
    newest = find_checkpoint(run)
    weights = [(newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]
    return read_metrics(run), (run / "mixture.jsonl").read_bytes(), weights


def test_losses_of_the_sources_make_up_the_loss(room, named, tmp_path):
    run = room.train(
        tmp_path / "run", data=named, mixture=MixtureSettings({"code": 3}), batch_rows=8, micro_rows=3, steps=2
    )
    for line in read_metrics(run):
        assert set(line["domain_loss"]) == {"code", "count"}
        low, high = sorted(line["domain_loss"].values())
        assert low < line["loss"] < high
    assert read_metrics(room.train(tmp_path / "plain"))[0].keys().isdisjoint({"domain_loss", "shares"})


def test_an_adapted_run_goes_on_bit_for_bit(room, named, tmp_path):
    asked = {"data": named, "valid": named, "steps": 9, "save_every": 3, "batch_rows": 2, "rate": 1e-2}
    asked["mixture"] = MixtureSettings(
        {"code": 1}, valid_every=2, adapt=True, reference={"code": 4.0, "count": 3.0}, least=0.1
    )
    whole = room.train(tmp_path / "whole", **asked)
    metrics, events, _ = expected = files(whole)
    shares = [line["shares"]["count"] for line in metrics if "shares" in line]
    assert len(shares) == 4 == len(set(shares)) and len(events.splitlines()) == 5
    assert [line["step"] for line in metrics if "valid_loss" in line] == [1, 3, 5, 7, 8]
    state = orjson.loads((find_checkpoint(whole) / "run.json").read_bytes())["state"]["mixture"]
    assert state["events"] == [orjson.loads(line) for line in events.splitlines()]
    for kept in ("step-00000006", None):
        cut = shutil.copytree(whole, tmp_path / f"cut{kept}")
        for checkpoint in cut.glob("step-*"):
            if checkpoint.name != kept:
                shutil.rmtree(checkpoint)
        (cut / "mixture.jsonl").write_bytes(b"what a killed process left")
        assert files(room.train(cut, **asked)) == expected
    with pytest.raises(IqcError, match=r"mixture\.reference\.code: 4\.0, now 3\.5"):
        asked["mixture"].reference["code"] = 3.5
        room.train(whole, **asked)
    assert files(whole) == expected
    with pytest.raises(IqcError, match=r"data\.count"):
        room.train(whole, **asked | {"data": [named[0], named[0].replace("code=", "count=")]})


def test_held_out_losses_by_name_without_named_sources(room, named, tmp_path):
    asked = {"valid": named, "steps": 3, "mixture": MixtureSettings(valid_every=2)}
    found = [line.get("valid_loss") for line in read_metrics(room.train(tmp_path / "run", **asked))]
    assert found[0] is None and set(found[1]) == set(found[2]) == {"code", "count"}
    assert not (tmp_path / "run/mixture.jsonl").exists()


def test_the_mixture_of_a_stage_is_taken_where_sources_have_its_names(room, named, tmp_path):
    """Pretraining's recipe: 75 general, 20 file, 5 math."""
    sources = [named[0].replace("code=", "file="), named[1].replace("count=", "math=")]
    run = room.train(tmp_path / "run", data=sources, steps=1)
    shares = orjson.loads((run / "mixture.jsonl").read_bytes())["shares"]
    assert shares == {"file": 0.8, "math": 0.2}
    lineage = orjson.loads((find_checkpoint(run) / "lineage.json").read_bytes())
    stage = lineage["stages"][lineage["stage"]]
    assert [source["label"] for source in stage["inputs"]] == ["file", "math"]
    assert stage["options"]["mixture"] == {"weights": {"file": 20, "math": 5}}
    whole = (find_checkpoint(run) / "run.json").read_bytes()
    # What is measured decides nothing, and neither does the order of the sources: it is the same run, and complete.
    room.train(tmp_path / "run", data=sources[::-1], steps=1, valid=named)
    assert (find_checkpoint(run) / "run.json").read_bytes() == whole
