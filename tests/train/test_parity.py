"""Every engine and number of ranks trains alike, and a run goes on under any of them: losses within 1e-5 in float32."""

import json
from pathlib import Path

import pytest

from iqc.errors import UsageError
from iqc.model.config import PRESETS, ModelConfig
from iqc.train.engines.engine import check_engine
from iqc.train.run import find_checkpoint, read_metrics
from iqc.train.settings import TrainSettings

pytest.importorskip("deepspeed")
WORKER = Path(__file__).with_name("parity.py")


def test_ranks_and_stages_train_alike_and_a_run_goes_on_under_any(torchrun, room, tmp_path, monkeypatch, capsys):
    """2 ranks at ZeRO-2, then 4 at ZeRO-3, then one process, against one process from the start."""
    monkeypatch.setitem(PRESETS, "tiny", ModelConfig(400, 32, 64, 2, 4, 2, 64, loop_num=2, loop_window_size=8))
    asked = {"stage": "pretrain", "model": "tiny", "start": None, "steps": 8, "batch_rows": 6, "save_every": 2}
    asked |= {"rate": 3e-4, "micro_rows": 2}
    run = tmp_path / "run"
    own = {"tokenizer": str(room.place / "tokenizer"), "inputs": [str(room.place / "sequences.zst")], "run": str(run)}
    deep = {"engine": "deepspeed"}
    for ranks, how, part in (
        (2, "full", deep | {"zero": 2, "until": 2}),
        (4, "quick", deep | {"zero": 3, "recompute": "block", "until": 4}),
    ):
        made = torchrun(ranks, WORKER, how, json.dumps(asked | own | part), timeout=500)
        assert made.returncode == 0, made.stderr
        found = json.loads(made.stdout.splitlines()[-1])
        assert found.pop("gradients") <= 1e-12
        assert len(found) == (12 if how == "full" else 5)
        assert all(loss <= 1e-5 and norm <= 1e-5 for loss, norm in found.values()), found
        assert len(read_metrics(run)) == part["until"]
    room.train(run, **asked)
    assert "going on, but" in capsys.readouterr().err
    whole = room.train(tmp_path / "whole", **asked)
    for line, expected in zip(read_metrics(run), read_metrics(whole), strict=True):
        assert line == pytest.approx(expected, rel=0, abs=1e-5)
    names = [sorted(path.name for path in find_checkpoint(made).iterdir()) for made in (run, whole)]
    assert names[0] == names[1]


def test_what_engines_refuse():
    def asked(**fields):
        return TrainSettings("pretrain", "nano", None, **fields)

    for match, precision, fields in (
        ("--zero is DeepSpeed's", "fp32", {"zero": 1}),
        ("--offload is DeepSpeed's", "fp32", {"offload": "all"}),
        ("Muon with DeepSpeed", "fp32", {"engine": "deepspeed", "optimizer": "muon"}),
        ("float32 masters", "bf16-pure", {"engine": "deepspeed"}),
        ("ZeRO-0", "bf16", {"engine": "deepspeed", "zero": 0}),
        ("--offload optimizer at ZeRO-0", "fp32", {"engine": "deepspeed", "zero": 0, "offload": "optimizer"}),
        ("--offload all at ZeRO-2", "fp32", {"engine": "deepspeed", "zero": 2, "offload": "all"}),
    ):
        with pytest.raises(UsageError, match=match) as caught:
            check_engine(asked(**fields), precision)
        assert caught.value.remedy
    check_engine(asked(optimizer="muon"), "bf16-pure")
    check_engine(asked(engine="deepspeed", zero=3, offload="all"), "bf16")
