"""The deterministic mode is on, is recorded, and changes no result where there is nothing to order."""

import json
import os
import shutil

import pytest
import torch
import torch._inductor.config as inductor

from iqc.train.environment import SWITCHES, environment, repeatable
from iqc.train.run import find_checkpoint, read_metrics


@pytest.fixture
def as_before(monkeypatch):
    """What `deterministic` sets is set back."""
    for name in SWITCHES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    inductor.deterministic = False
    torch.use_deterministic_algorithms(False)


def test_the_mode_is_recorded_and_its_absence_said(room, made, tmp_path, as_before, monkeypatch, capfd):
    run = room.train(tmp_path / "run", save_every=1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and inductor.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and os.environ["NCCL_ALGO"] == "Ring"
    assert read_metrics(run) == read_metrics(made)  # it decides no result, so a run may go on without it
    found = json.loads((find_checkpoint(run) / "run.json").read_text())
    assert found["environment"]["deterministic"] is True and "deterministic" not in found["settings"]
    shutil.rmtree(run / "step-00000004")
    torch.use_deterministic_algorithms(False)
    room.train(run, save_every=1)
    said = capfd.readouterr().err
    assert "deterministic: True, now None" in said and "bit for bit" not in said
    assert read_metrics(run) == read_metrics(made)


def test_a_gpu_repeats_itself_only_when_told_to(as_before, monkeypatch):
    assert repeatable()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not repeatable()
    torch.use_deterministic_algorithms(True)
    assert repeatable()


def test_what_is_recorded_is_json_and_names_the_processor(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert (
        found["device"] == "cpu" and found["threads"] == torch.get_num_threads() and found["MKL_CBWR"] == "COMPATIBLE"
    )
    assert torch.backends.cpu.get_cpu_capability() in found["instructions"]
