"""Checkpoints do not know how many ranks wrote them, nor under which engine: one process, 2 ranks, 4 ranks, one."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from iqc.train.ranks import Ranks
from iqc.train.run import Run

FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "lineage.json")


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def test_one_two_four_one(torchrun, world, tmp_path):
    """What is taken and written again is the same bytes, and the losses are those of one process."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is absent")
    sys.path.insert(0, str(Path(__file__).parent))
    import parity
    import reshard

    engine = parity.local(Ranks(), **parity.LOOP)
    losses = []
    for step in range(5):
        if step == 2:
            with Run(tmp_path / "one", {}, None) as run:
                run.resume()
                reshard.save(run, 2, engine)
        made = parity.update(engine, parity.NextToken(), parity.rows(step), parity.RATE, batch_rows=parity.ROWS)
        losses.append(pytest.approx(made["loss"], abs=1e-5))
    assert world(2, lambda: reshard.main(tmp_path / "one", tmp_path / "two", ("local",))).wait() == [0, 0]
    assert json.loads((tmp_path / "two/losses").read_text()) == {"local": losses[2]}
    assert same(tmp_path / "one/step-00000002", tmp_path / "two/local/again/step-00000002")
    worker = Path(__file__).with_name("reshard.py")
    ended = torchrun(4, worker, tmp_path / "two/local", tmp_path / "four")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "four/losses").read_text()) == dict.fromkeys(reshard.NAMES, losses[3])
    for name in reshard.NAMES:
        assert same(tmp_path / "two/local/step-00000003", tmp_path / "four" / name / "again/step-00000003")
        alone = parity.local(Ranks(), **parity.LOOP)
        assert reshard.go_on(alone, tmp_path / "four" / name, tmp_path / "end" / name) == losses[4]
