"""The table of stages is closed, its mixtures are there, and every learning rate is what its schedule says."""

import math
import re
import tomllib
from dataclasses import fields, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import IqcError, UsageError
from iqc.train.stages import (
    SCHEDULES,
    TABLE,
    TrainingStage,
    learning_rate,
    mixture_file,
    mixture_weights,
    peak_rate,
    stage,
    stages,
    table_text,
)

ROWS = stages()
SHARES = st.floats(0, 1)


@st.composite
def rows(draw) -> TrainingStage:
    """A stage of any schedule, of any shape that the table may have."""
    warmup = draw(SHARES)
    kind, rest = draw(st.sampled_from(SCHEDULES)), draw(st.floats(0, 1 - warmup))
    shape = {"wsd": {"decay": rest}, "cosine": {"tail": rest}, "root-steps": {}}[kind]
    given = {"schedule": kind, "warmup": warmup, "floor": draw(st.floats(1e-3, 1)), "decay": 0.0}
    return replace(ROWS["anneal"], **given | shape)


def test_the_chain_is_that_of_the_report():
    names = list(ROWS)
    assert names[:5] == ["pretrain", "pretrain-code", "anneal", "mid-32k", "mid-128k"]
    assert names[5:] == ["sft-instruct", "sft-thinking", "dpo"]
    for number, row in enumerate(ROWS.values()):
        assert set(row.starts_from) <= set(names[:number])
    assert [name for name, row in ROWS.items() if not row.starts_from] == ["pretrain"]
    assert [ROWS[name].context for name in ("mid-32k", "mid-128k")] == [1 << 15, 1 << 17]
    ends = {name: row.checkpoint for name, row in ROWS.items()}
    assert ends["mid-32k"] == "Base-Stage1" and ends["mid-128k"] == "Base" and len(set(ends.values())) == len(ends)


def test_the_mixtures_are_recipes_of_mix_and_those_of_mid_training_the_published_ones(repo):
    for row in ROWS.values():
        assert mixture_file(row) == repo / "recipes" / f"{row.name}.toml"
        assert sum(mixture_weights(row).values()) > 0
    half = {"reasoning": 175, "agent": 10, "commit": 5, "file": 35, "repository": 5, "stage1": 70}
    other = {"reasoning": 65, "agent": 110, "commit": 35, "file": 5, "repository": 35, "stage1": 50}
    assert (mixture_weights(ROWS["mid-32k"]), mixture_weights(ROWS["mid-128k"])) == (half, other)
    assert ROWS["mid-32k"].fim == ROWS["mid-128k"].fim == 0.5


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TABLE.read_text().replace("rate = 0.5", "rate = 0.25").replace("mid-32k.toml", "mine.mix.toml"))
    mine = stages(path)
    assert mine["mid-32k"].rate == 0.25 and mine["mid-128k"] == ROWS["mid-128k"]
    with pytest.raises(IqcError, match=r"mid-32k: no mine\.mix\.toml"):
        mixture_file(mine["mid-32k"], path)
    (tmp_path / "mine.mix.toml").write_text("[source.a]\nweight = 2\n[source.b]\n")
    assert mixture_weights(mine["mid-32k"], path) == {"a": 2, "b": 1}
    assert mixture_weights(replace(mine["mid-32k"], mixture="")) == {}
    assert all(name in table_text(path) for name in (*mine, "mine.mix.toml", "Base-Stage1"))


def test_what_decides_a_result_is_recorded():
    """All of a row but its words, what it starts from, and what a run records anyway."""
    row = ROWS["dpo"]
    assert row.asked()["loss"] == "dpo beta 0.1" and ROWS["mid-32k"].asked()["loss"] is None
    assert ROWS["anneal"].asked()["schedule"] == "wsd rate 1 decay 1 floor 0.1"
    changes = {"schedule": "wsd", "loss": "next-token"} | dict.fromkeys(("rate", "warmup", "decay", "floor"), 0.3)
    changes |= {"tail": 0.3, "beta": 0.3, "sft": 0.3}
    for name, value in changes.items():
        assert replace(row, **{name: value}).asked() != row.asked(), name
    assert replace(ROWS["anneal"], z_loss=0.0).asked() != ROWS["anneal"].asked()
    rest = {"name", "text", "starts_from", "checkpoint", "context", "mixture", "fim", "yarn", "z_loss"}
    assert rest | changes.keys() == {field.name for field in fields(TrainingStage)}


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('schedule = "cosine"', 'schedule = "linear"', "mid-32k: schedule is 'linear'"),
        ('loss = "dpo"', 'loss = "ppo"', "dpo: loss is 'ppo'"),
        ("context = 32768", "context = 1.5", "mid-32k: context is 1.5"),
        ("rate = 0.25", "rate = -1", "mid-128k: rate is -1"),
        ("rate = 0.25", 'rate = "low"', "mid-128k: rate is 'low'"),
        ("beta = 0.1", "betas = 0.1", "dpo: betas is unknown"),
        ('checkpoint = "Base"\n', "", "mid-128k: has no checkpoint"),
        ('checkpoint = "Base"\n', 'checkpoint = "step-1"\n', "mid-128k: checkpoint is 'step-1'"),
        ('from = ["mid-32k"]', 'from = ["dpo"]', r"mid-128k: from is \['dpo'\]"),
        ("tail = 0.2", "tail = 0.99", "sft-instruct: shares above 1"),
        ("[mid-32k]", "[mid-32k", "no table of stages"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_stage_and_field(tmp_path, old, new, what):
    path = tmp_path / "wrong.toml"
    text = TABLE.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=what) as caught:
        stages(path)
    assert caught.value.where == str(path) and caught.value.remedy


def test_every_field_of_the_table_is_explained_at_its_head():
    head = TABLE.read_text().partition("\n[")[0]
    for name in {key for row in tomllib.loads(TABLE.read_text()).values() for key in row} | {"yarn"}:
        assert re.search(rf"\b{name}\b", head), name


def test_an_unknown_stage_is_refused_with_the_list():
    with pytest.raises(UsageError, match="no stage 'sft'") as caught:
        stage("sft")
    assert "mid-128k, sft-instruct, sft-thinking, dpo" in caught.value.remedy


@given(st.one_of(st.sampled_from(list(ROWS.values())), rows()), st.integers(1, 400), st.floats(1e-6, 1))
def test_rates_rise_in_the_warmup_and_never_after(row, steps, peak):
    rates = [learning_rate(row, peak, step, steps) for step in range(steps)]
    top, warmup = peak * row.rate, round(row.warmup * steps)
    assert all(0 < rate <= top * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    if warmup:
        assert rates[warmup - 1] == pytest.approx(top, rel=1e-12) and rates[0] == pytest.approx(top / warmup)
    assert all(rate >= top * row.floor * (1 - 1e-12) for rate in rates[warmup:])


@pytest.mark.parametrize("name", ROWS)
def test_end_values(name):
    row, steps = ROWS[name], 1000
    rates = [learning_rate(row, 1.0, step, steps) for step in range(steps)]
    warmup = round(row.warmup * steps)
    assert rates[-1] == pytest.approx(row.rate * row.floor) and max(rates) == pytest.approx(row.rate)
    at_floor = sum(rate == pytest.approx(row.rate * row.floor, rel=1e-12) for rate in rates[warmup:])
    if row.schedule == "cosine":
        assert at_floor == round(row.tail * steps) + 1
        middle = warmup + (steps - warmup - round(row.tail * steps) - 1) / 2
        halves = rates[math.floor(middle)] + rates[math.ceil(middle)]
        assert halves / 2 == pytest.approx(row.rate * (1 + row.floor) / 2, rel=1e-5)


def test_warm_up_stable_decay_in_one_stage():
    row = replace(ROWS["anneal"], warmup=0.1, decay=0.2, floor=0.1, rate=2.0)
    rates = [learning_rate(row, 1.0, step, 1005) for step in range(1005)]
    assert all(rate == 2.0 for rate in rates[100:805])  # the last 201 fall
    assert rates[804 + 50] == pytest.approx(2 * (0.1 + 0.9 * 0.5), rel=1e-9)  # 1 - sqrt(1/4)
    assert rates[-1] == pytest.approx(0.2)


def test_root_steps_are_those_of_seed_coder():
    """3e-4, then divided by the root of ten for 400 of 1,000 steps, then 3e-5."""
    row = replace(ROWS["anneal"], schedule="root-steps", decay=0.0, floor=0.1, rate=1.0)
    rates = [learning_rate(row, 3e-4, step, 1000) for step in range(1000)]
    assert rates[:400] == pytest.approx([3e-4 / math.sqrt(10)] * 400)
    assert rates[400:] == pytest.approx([3e-5] * 600)


def test_the_peak_rate_falls_with_the_root_of_the_width():
    assert peak_rate(128) == pytest.approx(3e-3)
    assert peak_rate(4 * 128) == pytest.approx(1.5e-3)
    with pytest.raises(UsageError, match="no optimizer 'sgd'"):
        peak_rate(128, "sgd")
