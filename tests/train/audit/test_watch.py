"""What is called unusual, what is then done, and that a run which is started again does the same."""

import math
import time

import pytest

from iqc.errors import IqcError
from iqc.train.audit.stalls import Stalls
from iqc.train.audit.watch import EVENTS, RollBack, Watch, read_events, thresholds
from iqc.train.ranks import Ranks

LEAST = int(thresholds()["least"])


def watch(directory, newest=None, **policy):
    wanted = {"mismatch": "repeat", "spike": "note", "nan": "stop"} | policy
    return Watch(wanted, directory, Ranks(), lambda: newest)


def line(step, loss=None, norm=None):
    return {"step": step, "loss": 3 + 0.01 * (step % 7) if loss is None else loss, "grad_norm": norm or 0.5}


def quiet(watching, steps):
    for step in steps:
        assert watching.judge(step, line(step)) == "apply"


def test_a_spike_an_explosion_and_no_number_are_seen_and_ordinary_noise_is_not(tmp_path):
    watching = watch(tmp_path, spike="skip", nan="skip")
    quiet(watching, range(60))
    assert watching.judge(60, line(60, loss=3.06)) == "apply"
    assert watching.judge(61, line(61, loss=2.0)) == "apply"  # falling is no spike
    for step, bad in enumerate(
        [line(62, loss=4.0), line(63, norm=50.0), line(64, loss=math.nan), line(65, norm=math.inf)]
    ):
        assert watching.judge(62 + step, bad) == "skip"
    events = read_events(tmp_path)
    assert [(e["step"], e["kind"], e.get("rule")) for e in events] == [
        (62, "spike", "loss"), (63, "spike", "grad_norm"), (64, "nan", None), (65, "nan", None),
    ]  # fmt: skip
    assert all(e["measure"] > e["threshold"] for e in events[:2])
    assert not watching.unusual(line(66))  # what was skipped is not in the window


def test_a_young_run_has_no_spikes_and_a_flat_one_none_by_rounding(tmp_path):
    watching = watch(tmp_path, spike="stop")
    for step in range(LEAST):
        assert watching.judge(step, line(step, loss=10.0 * (step + 1))) == "apply"
    flat = watch(tmp_path, spike="stop")
    flat.resume(line(step, loss=2.0) for step in range(50))
    assert flat.judge(50, line(50, loss=2.001)) == "apply"
    with pytest.raises(IqcError, match="update 51: loss 3 is unusual"):
        flat.judge(51, line(51, loss=3.0))


@pytest.mark.parametrize("kind", ["spike", "nan"])
def test_policies(tmp_path, kind):
    bad = line(40, loss=9.0 if kind == "spike" else math.nan)

    def judged(policy, newest=None):
        watching = watch(tmp_path / policy, newest, **{kind: policy})
        (tmp_path / policy).mkdir(exist_ok=True)
        quiet(watching, range(40))
        return watching, lambda: watching.judge(40, bad)

    watching, judge = judged("skip")
    assert judge() == "skip" and watching.passed_over(40) == kind and not watching.passed_over(39)
    with pytest.raises(IqcError, match="update 40"):
        judged("stop")[1]()
    watching, judge = judged("rollback", newest=37)
    with pytest.raises(RollBack):
        judge()
    assert [step for step in range(50) if watching.passed_over(step)] == [37, 38, 39, 40]
    with pytest.raises(IqcError):  # there is nothing to go back to
        (tmp_path / "rollback" / EVENTS).unlink()
        judged("rollback")[1]()
    assert read_events(tmp_path / "rollback")[-1]["decision"] == "stop"


def test_a_restarted_run_passes_over_the_same_batches_and_has_the_same_window(tmp_path):
    first = watch(tmp_path, newest=30, spike="rollback", nan="skip")
    lines = []
    for step in range(40):
        metrics = line(step, loss=math.nan if step == 20 else None)
        lines.append({"step": step, "skipped": "nan"} if first.judge(step, metrics) == "skip" else metrics)
    with pytest.raises(RollBack):
        first.judge(40, line(40, norm=100.0))
    with open(tmp_path / EVENTS, "ab") as file:
        file.write(b'{"step": 41, "kind"')  # a kill while writing
    again = watch(tmp_path, spike="note")
    assert again.passed == first.passed == {20: "nan"} | dict.fromkeys(range(30, 41), "spike")
    again.resume(lines[:30])
    assert list(again.losses) == [entry["loss"] for entry in lines[:30] if "loss" in entry]
    again.judge(41, line(41, norm=100.0))
    again.judge(41, line(41, norm=100.0))
    assert [event["step"] for event in read_events(tmp_path)] == [20, 40, 41]  # said once


def test_a_mismatch_is_computed_again_once(tmp_path):
    watching = watch(tmp_path)
    assert watching.judge(5, line(5), ["update 5, rank 1: gradient of w differs"]) == "repeat"
    assert watching.judge(5, line(5), [], [1]) == "apply"
    assert watching.judge(6, line(6), ["other"]) == "repeat"
    with pytest.raises(IqcError, match="silent error: gradient, also when computed again"):
        watching.judge(6, line(6), ["gradient"])
    assert [(e["kind"], e["decision"]) for e in read_events(tmp_path)] == [
        ("mismatch", "repeat"), ("repeated", "apply"), ("mismatch", "repeat"), ("mismatch", "stop"),
    ]  # fmt: skip
    assert read_events(tmp_path)[1]["ranks"] == [1]
    with pytest.raises(IqcError, match="silent error"):
        watch(tmp_path, mismatch="stop").judge(7, line(7), ["gradient"])


def test_a_stall_is_said_once_with_its_place():
    told = []

    def hang_here(seconds):
        time.sleep(seconds)

    with Stalls(3.0, 0.05, 5.0, lambda *what: told.append(what)) as stalls:
        for _ in range(4):
            stalls.at("data")
            hang_here(0.01)
            stalls.at("update")
            hang_here(0.01)
        stalls.at("data")
        hang_here(0.4)
        stalls.at("")
        hang_here(0.1)
        assert stalls.limit("checkpoint") == 5.0  # nothing is known of it
    ((phase, seconds, where),) = told
    assert (
        phase == "data" and seconds > 0.05 and "hang_here" in where and where.rstrip().endswith("time.sleep(seconds)")
    )
