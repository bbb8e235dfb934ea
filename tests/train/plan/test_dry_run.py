"""The plan of a run: sums against measured peaks, layouts that cannot be, and what is said to make one fit."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iqc.errors import IqcError, UsageError
from iqc.model.config import PRESETS, ModelConfig, preset
from iqc.model.decoder import Recompute
from iqc.train.data.curriculum import MixtureSettings
from iqc.train.plan.dry_run import numbers_of, picture, run_plan
from iqc.train.plan.layout import GIB, ROOM, Layout, check_layout, fits, memory, remedy
from iqc.train.plan.predict import predict
from iqc.train.settings import TrainSettings
from iqc.train.stages import stages

torch.set_num_threads(1)
RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
CONTEXT = 131_072
LENGTHS = {name: config.max_position_embeddings for name, config in PRESETS.items()}


SHARED = {"engine": "deepspeed", "zero": 3, "context_ranks": 8, "micro_rows": 1, "recompute": "block"}


def plan(*inputs, gpus="", gib=0.0, stage="pretrain", model="40b-loop", start=None, **asked) -> str:
    settings = TrainSettings(stage, model, start, **asked)
    return run_plan(settings, [str(path) for path in inputs], numbers_of(gpus), gib)


def addends(text: str) -> dict[str, tuple[int, str]]:
    found = re.findall(r"^  (\S.*?) {2,}(-?[\d,]+)  = (.+)$", text, re.MULTILINE)
    return {name: (int(value.replace(",", "")), formula) for name, value, formula in found}


def measured_cases():
    runs = json.loads((RESULTS / "train_step.json").read_text())["runs"]
    return [(name, found) for run in runs for name, found in run["result"]["cases"].items()]


@pytest.mark.parametrize(("name", "found"), measured_cases(), ids=[name for name, _ in measured_cases()])
def test_sums_are_a_little_over_the_peaks_that_were_measured(name, found):
    case, recompute = found["case"], Recompute.parse(found["recompute"])
    config = replace(preset(case["preset"]), loop_num=case["loops"])
    config = replace(config, num_hidden_layers=case["layers"] or config.num_hidden_layers)
    precision = found.get("precision", "bf16-pure")
    layout = Layout(1, precision=precision, micro_rows=case["batch"], blocks=recompute.blocks, mlps=recompute.mlps)
    assert 0.75 < found["ours"]["peak_gib"] * GIB / memory(config, case["length"], layout).total < 1.04


def test_the_sums_of_the_anchors_at_128k_on_eight_gpus():
    """97 GiB for the dense 40b, 120 for the loop: with sums of gradients in bfloat16, and without those of pass 2."""
    shared = Layout(8, 8, 3, "bf16", blocks=160, accumulates=True)
    for name, gib in (("40b", 97), ("40b-loop", 120)):
        found = memory(preset(name), CONTEXT, shared)
        values = {addend.name: addend.value for addend in found.device}
        over = values["gradients"] // 2 + values.get("gradients of pass 2", 0)
        assert (found.total - over) / GIB == pytest.approx(gib, rel=0.05)


def test_an_average_is_divided_and_a_reference_is_whole():
    text = plan(gpus="8", stage="dpo", ema=0.999, **SHARED)
    values = addends(text)
    assert values["moving average"] == (19_897_348_160, "4 x 39794696320 / 8")
    assert values["reference model"] == (79_589_392_640, "2 x 39794696320")
    assert "moving average" not in addends(plan(gpus="8", **SHARED))


def test_tiles_leave_of_the_widest_a_part():
    config, layout = preset("40b-loop"), Layout(8, 8, 3, blocks=160, accumulates=True)
    whole, tiled = (memory(config, CONTEXT, replace(layout, tile=tile)) for tile in (0, 2048))
    sizes = [{a.name: a.value for a in found.activations} for found in (whole, tiled)]
    assert sizes[0]["inside of an MLP"] == 8 * sizes[1]["inside of an MLP"]
    assert sizes[0]["inputs of blocks"] == sizes[1]["inputs of blocks"] and tiled.total < whole.total
    once, more = (predict(config, CONTEXT, replace(layout, tile=tile)) for tile in (0, 2048))
    assert once.recompute < more.recompute and once.attention == more.attention


def test_what_is_offloaded_lies_on_the_host():
    config, none = preset("40b"), Layout(8, 8, 3)
    plain = memory(config, CONTEXT, none)
    for offload, gone in (("optimizer", set()), ("all", {"weights"})):
        found = memory(config, CONTEXT, replace(none, offload=offload))
        assert {addend.name for addend in found.host} == {"optimiser", "gradients"} | gone
        assert found.total + sum(addend.value for addend in found.host) == plain.total


def test_less_is_held_with_more_ranks_stages_and_recompute():
    config, base = preset("40b-loop"), Layout(8, 4, 3, mlps=160, accumulates=True)
    for more in ({"gpus": 16}, {"context_ranks": 8}, {"blocks": 160}, {"zero": 2, "gpus": 64, "blocks": 160}):
        assert memory(config, CONTEXT, replace(base, **more)).total < memory(config, CONTEXT, base).total
    assert memory(config, CONTEXT, replace(base, zero=2)).total > memory(config, CONTEXT, base).total
    alone = Layout(micro_rows=2)
    once, added = (memory(config, CONTEXT, replace(alone, accumulates=several)).total for several in (False, True))
    assert once < added  # an update's gradients wait while the next micro-batch goes forward


def too_large() -> list[tuple[str, Layout]]:
    layouts = Layout(8), Layout(1, micro_rows=4), Layout(2, zero=1), Layout(8, 4, 3)
    pairs = [(name, layout) for name in ("7b", "40b", "40b-loop", "ling-coder-lite") for layout in layouts]
    return [(name, layout) for name, layout in pairs if not fits(preset(name), LENGTHS[name], layout, 139.0)]


@pytest.mark.parametrize(("name", "layout"), too_large())
def test_what_is_said_to_make_it_fit_does(name, layout):
    config, context = preset(name), LENGTHS[name]
    said = remedy(config, context, layout, 139.0)
    assert said.startswith("it would fit with")
    given = dict(re.findall(r"--(\S+) ([a-z]*\d*)", said))
    passes = config.loop_num * config.num_hidden_layers
    changed = {"blocks": passes} if given.get("recompute") == "block" else {}
    changed |= {"mlps": passes} if given.get("recompute") == "mlp" else {}
    changed |= {
        key.replace("-", "_"): int(given[key]) for key in ("zero", "context-ranks", "micro-rows") if key in given
    }
    changed |= {"offload": given["offload"]} if "offload" in given else {}
    if more := re.search(r"(\d+) GPUs", said):
        changed["gpus"] = int(more[1])
    assert fits(config, context, replace(layout, **changed), 139.0)


def test_layouts_that_cannot_be():
    check_layout(64, 4, 4, 2)
    for match, remedied, asked in (
        ("4 context ranks for 6 GPUs", "--context-ranks 1 or 2 or 3 or 6", (64, 16, 6, 4)),
        ("8 context ranks for 4 GPUs", "a multiple of 8", (64, 16, 4, 8)),
        ("rows of 64 tokens over 64 context ranks", "--context 128", (64, 16, 64, 64)),
        ("updates of 2 rows for 4 ranks", "--batch-rows 4", (64, 2, 8, 2)),
    ):
        with pytest.raises(IqcError, match=match) as error:
            check_layout(*asked)
        assert remedied in error.value.remedy


@pytest.mark.parametrize(
    ("error", "match", "asked"),
    [
        (IqcError, "for 6 GPUs", {"gpus": "6", "context_ranks": 4}),
        (IqcError, "a context of 262144", {"context": 262_144}),
        (IqcError, "for 32 ranks", {"gpus": "32"}),
        (UsageError, "--zero is DeepSpeed's", {"gpus": "8", "zero": 3}),
        (UsageError, "recompute 'x'", {"recompute": "x"}),
        (UsageError, "--epochs -1", {"epochs": -1.0}),
        (UsageError, "--gpus 8,x", {"gpus": "8,x"}),
        (UsageError, "--gpus 0", {"gpus": "0"}),
        (UsageError, "--gpu-gib nan", {"gib": math.nan}),
        (UsageError, "no stage", {"stage": "x"}),
        (UsageError, "no model", {"model": None}),
        (UsageError, "starts from a checkpoint", {"model": None, "stage": "mid-32k"}),
        (IqcError, "no preset", {"model": "x"}),
    ],
)
def test_refusals(error, match, asked):
    with pytest.raises(error, match=match):
        plan(**asked)


def test_one_layout():
    text = plan(gpus="8", steps=100, context=CONTEXT, **SHARED)
    found = addends(text)
    assert found["weights"] == (9_948_674_080, "2 x 39794696320 / 8")
    assert found["inputs of blocks"] == (32768 * 160 * 5120, "32768 x 160 x 5120")
    total = int(re.findall(r"^  sum +([\d,]+)$", text, re.MULTILINE)[-1].replace(",", ""))
    memories = text[text.index("Bytes on each of 8 GPUs") :]
    assert total == sum(value for value, _ in addends(memories).values())
    left = total / GIB + ROOM - 139
    assert f"{left:.1f} GiB too much" in text and "it would fit with --offload optimizer" in text
    assert "Updates     100 of 16 rows, 2,097,152 tokens, 209,715,200 in all" in text
    assert re.search(r"Predicted on H200s: [\d,]+ tokens/s, \d+ a GPU\.", text) and "Assumed:" in text


def test_a_table_of_layouts():
    text = plan(gpus="8,16,512", stage="mid-128k")
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d+ +\d+ +\d+ +(block|mlp|none) ", line)]
    assert [row[0] for row in rows] == ["8"] * 4 + ["16"] * 5 + ["512"] * 7
    for row in rows:
        states, kept, other, total = map(float, row[4:8])
        assert states + kept + other == pytest.approx(total, abs=0.2) and (total <= 135) == (row[8] == "yes")
    assert "planned as 40b-loop" in text


def test_a_run_on_this_machine(room, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", ModelConfig(400, 32, 64, 2, 4, 2, 64))
    text = plan(room.place / "sequences.zst", model="tiny", epochs=2.0, batch_rows=4)
    rows = int(re.search(r"Rows +([\d,]+)", text)[1].replace(",", ""))
    assert f"Updates     {-(-2 * rows // 4):,} of 4 rows, 256 tokens" in text
    assert "Bytes on the CPU: fp32, 4 rows at a time, no recompute" in text
    assert "It fits in the" in text and "only a GPU's was measured" in text


def test_a_machine_that_is_too_small_is_not_told_of_gpus():
    text = plan(model="40b")
    assert "Bytes on the CPU" in text and "It does not fit in" in text
    assert re.search(r"it would not fit with --micro-rows 1, --recompute block either: .* --gpus", text)


def test_sources_and_their_shares(room):
    rows = room.place / "sequences.zst"
    asked = {"model": "nano", "steps": 100, "mixture": MixtureSettings({"code": 3.0, "chat": 1.0})}
    text = plan(f"code={rows}", f"chat={rows}", **asked)
    assert "Mixture     chat 25.0%, code 75.0%, from update 0" in text
    assert "Updates     none: the starting weights are written" in plan(rows, model="nano", epochs=0.0)


def test_a_gpu_of_another_size_and_of_none():
    assert "It fits in the 200 GiB of --gpu-gib" in plan(model="40b", gpus="8", gib=200, context=CONTEXT, **SHARED)
    text = plan(model="nano", gib=8)
    assert "Bytes on the GPU: bf16" in text and "nothing of this hidden size was measured" in text


def test_a_later_stage_from_a_run(made):
    text = plan(stage="anneal", model=None, start=str(made), steps=10)
    assert re.search(r"Start +\S+step-0000", text) and "Parameters" in text


@pytest.mark.parametrize("steps", [1, 2, 7, 60, 1000])
@pytest.mark.parametrize("name", stages())
def test_the_picture_is_of_every_stage(name, steps):
    *rows, axis = picture(stages()[name], 1e-3, steps)
    assert len(rows) == 6 and all(len(row) <= 72 for row in rows)
    assert "#" in rows[0] and re.search(rf" 0 +{steps - 1} ", axis)
    heights = [sum(row[12 + at : 13 + at] == "#" for row in rows) for at in range(min(60, steps))]
    assert max(heights) == 6 and min(heights) >= 0


def test_the_command(iqc, tmp_path):
    done = iqc("train", "--dry-run", "--model", "nano-loop", "--steps", 20, "-o", tmp_path / "run")
    assert done.returncode == 0 and b"Bytes on the CPU" in done.stdout and not (tmp_path / "run").exists()
