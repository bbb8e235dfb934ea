"""Whole runs that are audited and watched: nothing changes while all is well, and what is decided stays decided."""

import math
import random
import shutil

import pytest

from iqc.errors import IqcError
from iqc.model.config import PRESETS, ModelConfig
from iqc.train.audit import faults
from iqc.train.audit.guard import Guard
from iqc.train.audit.watch import read_events
from iqc.train.run import find_checkpoint, read_metrics


def weights(run):
    return (find_checkpoint(run) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plain(room, tmp_path_factory):
    PRESETS["tiny"] = ModelConfig(400, 32, 64, 2, 4, 2, 64, loop_num=2, loop_window_size=16)
    try:
        return room.train(tmp_path_factory.mktemp("plain") / "run", steps=6, save_every=2)
    finally:
        del PRESETS["tiny"]


@pytest.fixture
def spoilt(monkeypatch):
    """Makes the numbers of some updates what they should not be, `times` each."""

    def spoil(steps, times=1, **numbers):
        left = dict.fromkeys(steps, times)
        judge = Guard.judge

        def judged(self, step, metrics):
            if left.get(step, 0) > 0:
                left[step] -= 1
                metrics |= numbers
            return judge(self, step, metrics)

        monkeypatch.setattr(Guard, "judge", judged)

    return spoil


def test_an_audited_run_is_the_run(room, plain, tmp_path):
    run = room.train(tmp_path / "run", steps=6, save_every=2, audit_every=2, micro_rows=2)
    whole = room.train(tmp_path / "whole", steps=6, save_every=2, micro_rows=2)
    assert read_metrics(run) == read_metrics(whole) and weights(run) == weights(whole) and read_events(run) == []
    assert read_metrics(room.train(plain, steps=6, audit_every=3, on_spike="skip")) == read_metrics(plain)  # goes on


def test_a_fault_is_not_applied(room, plain, tmp_path, monkeypatch, capsys):
    """One that passes leaves no trace in the weights; one that stays stops the run."""
    gradients, done = Guard.gradients, []

    def spoilt(self, step, batch, accumulate):
        if step == 3 and (stays or not done):
            done.append(step)
            with faults.activation(self.audit.engine, random.Random(1)):
                return gradients(self, step, batch, accumulate)
        return gradients(self, step, batch, accumulate)

    monkeypatch.setattr(Guard, "gradients", spoilt)
    stays = False
    run = room.train(tmp_path / "run", steps=6, save_every=2, audit_every=2)
    assert read_metrics(run) == read_metrics(plain) and weights(run) == weights(plain)
    mismatch, repeated = read_events(run)
    assert (mismatch["step"], mismatch["decision"], repeated["decision"]) == (3, "repeat", "apply")
    assert "update 3, rank 0: gradient of " in mismatch["found"][0] and repeated["ranks"] == [0]
    assert "silent error" in capsys.readouterr().err
    stays = True
    with pytest.raises(IqcError, match="also when computed again"):
        room.train(tmp_path / "other", steps=6, save_every=2, audit_every=2)
    assert len(read_metrics(tmp_path / "other")) == 3
    monkeypatch.setattr(Guard, "gradients", gradients)
    room.train(tmp_path / "other", steps=6, save_every=2, audit_every=2)
    assert read_metrics(tmp_path / "other") == read_metrics(plain) and weights(tmp_path / "other") == weights(plain)


def test_a_skipped_batch_stays_skipped(room, plain, tmp_path, spoilt):
    spoilt([2, 5], loss=math.nan)
    run = room.train(tmp_path / "run", steps=6, save_every=2, on_nan="skip")
    lines, bytes_of = read_metrics(run), weights(run)
    assert [line.get("skipped") for line in lines] == [None, None, "nan", None, None, "nan"]
    assert lines[:2] == read_metrics(plain)[:2] and lines[3] != read_metrics(plain)[3]
    shutil.rmtree(run / "step-00000006")
    shutil.rmtree(run / "step-00000004")
    room.train(run, steps=6, save_every=2, on_nan="stop")  # from the start: no number is spoilt any more
    assert read_metrics(run) == lines and weights(run) == bytes_of


def test_a_roll_back_is_the_start_from_the_checkpoint_without_the_batches_since(room, plain, tmp_path, spoilt):
    spoilt([3], loss=math.nan)
    run = room.train(tmp_path / "run", steps=6, save_every=2, on_nan="rollback")
    (event,) = read_events(run)
    assert (event["step"], event["to"], event["decision"]) == (3, 2, "rollback")
    lines, bytes_of = read_metrics(run), weights(run)
    assert lines[:2] == read_metrics(plain)[:2] and [line.get("skipped") for line in lines[2:4]] == ["nan", "nan"]
    assert [line["step"] for line in lines] == list(range(6)) and lines[4] != read_metrics(plain)[4]
    shutil.rmtree(run / "step-00000006")
    room.train(run, steps=6, save_every=2)
    assert read_metrics(run) == lines and weights(run) == bytes_of


def test_without_a_checkpoint_there_is_no_way_back(room, tmp_path, spoilt):
    spoilt([1], grad_norm=math.inf)
    with pytest.raises(IqcError, match="gradient norm inf"):
        room.train(tmp_path / "run", on_nan="rollback")
    assert read_events(tmp_path / "run")[0]["decision"] == "stop"
