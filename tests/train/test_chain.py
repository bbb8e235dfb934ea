"""The chain of stages at nano size: every stage goes on from the named checkpoint of the one before, and what the last
one is made of leads back to the raw text of each."""

import json
import math
from dataclasses import replace

import pytest

from iqc.errors import IqcError, UsageError
from iqc.model.checkpoint import load_model
from iqc.model.config import PRESETS, ModelConfig
from iqc.streams.lineage import Digest, checked_lineage, line_digest
from iqc.train.run import find_checkpoint, read_metrics
from iqc.train.settings import TrainSettings
from iqc.train.stages import stages
from iqc.train.start import starting_config

CONTEXT = 192
ROWS = stages()
BRANCH = ["pretrain", "pretrain-code", "anneal", "mid-32k", "mid-128k", "sft-instruct", "dpo"]  # sft-thinking: another


def chat(number: int, answer: str) -> list[dict]:
    return [{"role": "user", "content": str(number)}, {"role": "assistant", "content": answer}]


def records(stage: str) -> list[dict]:
    """Some of what the stage is for; no two stages have the same."""
    if stage == "dpo":
        return [{"id": f"d{n}", "prompt": str(n), "chosen": "yes", "rejected": "no"} for n in range(4)]
    if stage.startswith("sft"):
        return [{"id": f"{stage}{n}", "messages": chat(n, f"{stage} {n}")} for n in range(6)]
    if stage.startswith("mid"):
        parts = {"prefix": "def f():\n", "middle": f"    return {stage!r}\n", "suffix": "\n\nf()\n"}
        return [{"id": f"{stage}{n}"} | parts for n in range(6)]
    return [{"id": f"{stage}{n}", "text": f"{stage} {n} " * 20} for n in range(6)]


@pytest.fixture(scope="module")
def chain(room, tmp_path_factory):
    """The runs of all stages by name, two updates each."""
    place = tmp_path_factory.mktemp("chain")
    PRESETS["tiny"] = ModelConfig(400, 32, 64, 2, 4, 2, CONTEXT, loop_num=2, loop_window_size=16)
    try:
        runs = {}
        for name, row in ROWS.items():
            before = [one for one in row.starts_from if one in BRANCH]
            start = runs[before[-1]] / ROWS[before[-1]].checkpoint if before else None
            rows = room.pack_records(name, records(name), context=CONTEXT)
            runs[name] = room.train(place / name, rows, stage=name, start=start, steps=2, batch_rows=1)
    finally:
        del PRESETS["tiny"]
    return runs


def test_every_stage_ends_in_its_named_checkpoint(chain):
    for name, run in chain.items():
        lines = read_metrics(run)
        assert len(lines) == 2 and all(math.isfinite(line["loss"]) for line in lines), name
        link = run / ROWS[name].checkpoint
        assert link.is_symlink() and find_checkpoint(link).resolve() == find_checkpoint(run)
        assert load_model(link).config.max_position_embeddings == CONTEXT


def test_the_losses_are_those_of_the_stages(chain):
    metrics = {name: read_metrics(run) for name, run in chain.items()}
    assert [name for name in ROWS if "z_loss" in metrics[name][0]] == ["pretrain", "pretrain-code", "anneal"]
    first, second = metrics["dpo"]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5) and first["margin"] == 0  # it starts from itself
    assert second["margin"] != 0 and {"accuracy", "chosen", "rejected"} <= second.keys()


def test_lineage_goes_back_to_the_raw_text_of_every_stage(room, chain):
    lineage = checked_lineage(json.loads((find_checkpoint(chain["dpo"]) / "lineage.json").read_text()))
    nodes = lineage["stages"]
    seen, node = [], nodes[lineage["stage"]]
    while True:
        name = node["options"]["stage"]
        (packed,) = [item for item in node["inputs"] if item.get("label") != "checkpoint"]
        (raw,) = nodes[packed["stage"]]["inputs"]
        digest = Digest()
        for line in (room.place / f"{name}.jsonl").read_bytes().splitlines():
            digest.add(line_digest(line))
        assert raw["digest"] == digest.text() and "stage" not in raw, name
        seen.append(name)
        before = [item for item in node["inputs"] if item.get("label") == "checkpoint"]
        if not before:
            break
        node = nodes[before[0]["stage"]]
    assert seen == BRANCH[::-1]


def test_a_stage_may_stretch_the_context_by_yarn(chain):
    row = replace(ROWS["mid-128k"], yarn=2.0)
    settings = TrainSettings("mid-128k", None, str(chain["mid-32k"]))
    for asked, factor in ((settings, 2), (replace(settings, yarn=4.0), 4)):  # --yarn goes before it
        found = starting_config(asked, row)[0]
        assert found.max_position_embeddings == factor * CONTEXT and found.rope_scaling["factor"] == factor
    assert starting_config(settings, ROWS["mid-128k"])[0].rope_scaling is None
    with pytest.raises(UsageError, match="stretches a trained model"):
        starting_config(TrainSettings("pretrain", "tiny", None), replace(ROWS["pretrain"], yarn=2.0))


def test_every_wrong_start_is_refused_by_name(chain):
    refused = 0
    for name, row in ROWS.items():
        for made_by, run in chain.items():
            settings = TrainSettings(name, None, str(run))
            if made_by in (*row.starts_from, name):
                assert starting_config(settings, row)[1] == find_checkpoint(run)
            else:
                with pytest.raises(IqcError, match=f"a checkpoint of stage {made_by}, for stage {name}") as caught:
                    starting_config(settings, row)
                assert " or ".join(row.starts_from) or "fresh weights" in caught.value.remedy
                refused += 1
        if row.starts_from:
            with pytest.raises(UsageError, match=f"{name} starts from a checkpoint"):
                starting_config(TrainSettings(name, "tiny", None), row)
    assert refused == 64 - 8 - sum(len(row.starts_from) for row in ROWS.values())
