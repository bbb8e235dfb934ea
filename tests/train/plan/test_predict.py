"""Predictions against what was measured, and against what cannot be otherwise."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from iqc.model.config import preset
from iqc.model.decoder import Recompute
from iqc.model.describe import flops
from iqc.train.plan.layout import Layout
from iqc.train.plan.predict import attention_rate, measured, predict, product_rate, tokens_per_second, traffic

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"


def cases() -> dict[str, dict]:
    """Every case of train_step.json, by its name."""
    runs = json.loads((RESULTS / "train_step.json").read_text())["runs"]
    return {name: found for run in runs for name, found in run["result"]["cases"].items()}


def shape(case: dict):
    config = replace(preset(case["preset"]), loop_num=case["loops"])
    return replace(config, num_hidden_layers=case["layers"] or config.num_hidden_layers)


def of_case(found: dict):
    case, recompute = found["case"], Recompute.parse(found["recompute"])
    layout = Layout(1, precision="bf16-pure", micro_rows=case["batch"], blocks=recompute.blocks, mlps=recompute.mlps)
    return shape(case), case["length"], layout


def test_the_table_of_attention_is_what_was_measured():
    found = json.loads((RESULTS / "loop_attention.json").read_text())["result"]["cases"]
    table = measured()["attention"]
    for at, tokens in enumerate(table["tokens"]):
        rows = found[str(tokens)]["shape"][0]
        forward = rows * 2 * tokens**2 * 40 * 128  # half of the square
        for name, times in (("first", found[str(tokens)]["floor"]["cuDNN"]),
                            ("later", found[str(tokens)]["attention"]["ours"])):  # fmt: skip
            assert table[f"{name}_forward"][at] == pytest.approx(forward / times["forward"] / 1e9, rel=2e-3)
            assert table[f"{name}_backward"][at] == pytest.approx(2.5 * forward / times["backward"] / 1e9, rel=2e-3)


@pytest.mark.parametrize(("name", "hidden"), [("7b-4k", 5120), ("100m", 768)])
def test_the_table_of_products_is_a_step_without_its_attention(name, hidden):
    found = cases()[name]
    config, length, layout = of_case(found)
    seconds = found["ours"]["ms"] / 1e3 - predict(config, length, layout).attention
    blocks, _, head = flops(config, length)
    work = layout.tokens(length) * (blocks.value + head.value)
    assert product_rate(hidden) == pytest.approx(work / seconds, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in cases() if "masters" not in name])
def test_steps_that_were_measured_are_predicted(name):
    found = cases()[name]
    assert predict(*of_case(found)).total == pytest.approx(found["ours"]["ms"] / 1e3, rel=0.08)


def test_attention_between_measured_lengths():
    rates = [attention_rate("later_forward", tokens) for tokens in (1024, 2048, 3000, 4096, 10**6)]
    assert rates[0] == rates[1] < rates[2] < rates[3] and rates[4] == attention_rate("later_forward", 131_072)


def test_small_models_are_not_predicted():
    assert predict(preset("nano"), 512, Layout()) is None
    assert tokens_per_second(preset("nano"), 512, Layout()) is None
    assert predict(preset("7b"), 512, Layout()) and predict(preset("7b"), 512, Layout(offload="optimizer")) is None


def test_recompute_is_forward_again():
    config = preset("40b-loop")
    none = predict(config, 131_072, Layout(8, 8, 3))
    all_of_it = predict(config, 131_072, Layout(8, 8, 3, blocks=160))
    half = predict(config, 131_072, Layout(8, 8, 3, blocks=80))
    assert none.recompute == 0 < half.recompute < all_of_it.recompute
    assert all_of_it.total == none.total + all_of_it.recompute
    head = flops(config, 1)[2].value / sum(a.value for a in flops(config, 1)[::2])
    assert all_of_it.recompute < (none.products * (1 - head) + none.attention) / 3


def test_more_gpus_are_never_worse_for_each_update_nor_better_than_in_proportion():
    config = preset("40b-loop")
    speeds = [tokens_per_second(config, 131_072, Layout(n, 8, 3, blocks=160)) for n in (8, 16, 32, 64, 128, 512)]
    for fewer, more in pairwise(speeds[:-1]):
        assert fewer < more <= 2.0001 * fewer
    assert speeds[-2] < speeds[-1] <= 4.0001 * speeds[-2]
    shared = [tokens_per_second(config, 131_072, Layout(64, c, 3, blocks=160)) for c in (8, 16, 32, 64)]
    assert shared == sorted(shared, reverse=True)


def test_traffic_of_zero():
    """239 GB for the dense 40b with stage 3 on many GPUs: weights forward and backward, gradients."""
    config = preset("40b")
    assert traffic(config, Layout(512, zero=3)) == pytest.approx(239e9, rel=4e-3)
    assert (
        traffic(config, Layout(1, zero=3))
        == 0
        < traffic(config, Layout(2, zero=1))
        < traffic(config, Layout(2, zero=3))
    )
    assert traffic(preset("40b-loop"), Layout(512, zero=3)) == pytest.approx(239e9 * 5 / 3, rel=4e-3)
