"""The table of stages is closed, and every learning rate is what its schedule says."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import UsageError
from iqc.train.stages import learning_rate, peak_rate, stage, stages

TABLE = stages()


def test_every_from_names_an_earlier_stage():
    names = list(TABLE)
    for number, row in enumerate(TABLE.values()):
        assert set(row.starts_from) <= set(names[:number])
    assert [name for name, row in TABLE.items() if not row.starts_from] == ["pretrain"]
    assert [TABLE[name].context for name in ("mid-32k", "mid-128k")] == [1 << 15, 1 << 17]


def test_an_unknown_stage_is_refused_with_the_list():
    with pytest.raises(UsageError, match="no stage 'finetune'") as caught:
        stage("finetune")
    assert "pretrain, anneal, mid-32k, mid-128k, sft" in caught.value.remedy


@given(st.sampled_from(list(TABLE)), st.integers(1, 400), st.floats(1e-6, 1))
def test_rates_rise_in_the_warmup_and_never_after(name, steps, peak):
    row = TABLE[name]
    rates = [learning_rate(row, peak, step, steps) for step in range(steps)]
    top, warmup = peak * row.rate, round(row.warmup * steps)
    assert all(0 < rate <= top * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    if warmup:
        assert rates[warmup - 1] == pytest.approx(top, rel=1e-12) and rates[0] == pytest.approx(top / warmup)
    if warmup < steps:
        assert rates[warmup] == pytest.approx(top)


@pytest.mark.parametrize("name", TABLE)
def test_end_values(name):
    row, steps = TABLE[name], 1000
    rates = [learning_rate(row, 1.0, step, steps) for step in range(steps)]
    assert rates[-1] == pytest.approx(row.rate * row.floor)
    at_floor = sum(
        rate == pytest.approx(row.rate * row.floor, rel=1e-12) for rate in rates[round(row.warmup * steps) :]
    )
    if row.schedule == "cosine":
        assert at_floor == round(row.tail * steps) + 1
        warmup = round(row.warmup * steps)
        middle = warmup + (steps - warmup - round(row.tail * steps) - 1) / 2
        halves = rates[math.floor(middle)] + rates[math.ceil(middle)]
        assert halves / 2 == pytest.approx(row.rate * (1 + row.floor) / 2, rel=1e-5)
    if row.schedule == "decay":
        quarter = learning_rate(row, 1.0, 25, 101)
        assert quarter == pytest.approx(row.rate * (row.floor + (1 - row.floor) * 0.5))  # 1 - sqrt(1/4)


def test_the_peak_rate_falls_with_the_root_of_the_width():
    assert peak_rate(128) == pytest.approx(3e-3)
    assert peak_rate(4 * 128) == pytest.approx(1.5e-3)
