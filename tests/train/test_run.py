"""A run's directory: damage is said and passed over, another run is refused, a kill between renames loses nothing.

The kills themselves are in tests/commands/test_kills.py, for every command that writes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iqc.errors import IqcError
from iqc.model.config import preset
from iqc.model.decoder import Decoder
from iqc.streams.lineage import identity
from iqc.train import run as runs
from iqc.train.checkpoints import pieces_of
from iqc.train.optimizer import make_optimizer
from iqc.train.run import KEPT, Run, damage, find_checkpoint, read_metrics
from iqc.train.stages import TABLE


def files(run):
    return {path.name: path.read_bytes() for path in find_checkpoint(run).iterdir()}


@pytest.fixture
def run(made, tmp_path):
    """A copy of a finished run: checkpoints after updates 3 and 4."""
    return shutil.copytree(made, tmp_path / "run")


def test_what_a_run_leaves(run):
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "General", "metrics.jsonl", "step-00000003", "step-00000004", "timings.jsonl"
    ]  # fmt: skip
    assert KEPT == 2 and damage(run / "step-00000003") is damage(run / "step-00000004") is None
    assert sorted(files(run)) == [
        "config.json", "lineage.json", "model.safetensors", "optimizer.safetensors", "run.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_a_run_that_is_complete_is_left_as_it_is(room, run):
    before = files(run) | {"metrics": (run / "metrics.jsonl").read_bytes()}
    room.train(run, save_every=1)
    assert files(run) | {"metrics": (run / "metrics.jsonl").read_bytes()} == before


def test_damage_of_any_file_is_said_and_the_checkpoint_before_is_taken(room, run, capfd):
    expected = files(run)
    metrics = (run / "metrics.jsonl").read_bytes()
    newest = run / "step-00000004"
    for name in sorted(expected):
        for place in (0, len(expected[name]) // 2, len(expected[name]) - 2):
            data = bytearray(expected[name])
            data[place] ^= 1
            (newest / name).write_bytes(data)
            assert damage(newest) is not None, (name, place)
            assert find_checkpoint(run).name == "step-00000003"
        capfd.readouterr()
        room.train(run, save_every=1)
        assert f"{newest}: damaged (" in capfd.readouterr().err
        assert files(run) == expected and (run / "metrics.jsonl").read_bytes() == metrics
    (newest / "tokenizer.json").unlink()
    room.train(run, save_every=1)
    assert files(run) == expected
    shutil.rmtree(newest)
    (run / "step-00000003/run.json").write_text("[]")
    with pytest.raises(IqcError, match="no checkpoint"):
        find_checkpoint(run)
    room.train(run, save_every=1)  # from the start
    assert files(run) == expected and (run / "metrics.jsonl").read_bytes() == metrics


def test_a_damaged_checkpoint_ahead_does_not_push_out_a_good_one(room, run):
    (run / "step-00000004/config.json").write_text("{}")
    for number in (1, 2):
        shutil.copytree(run / "step-00000004", run / f"step-{4 + number:08d}")
    (run / "step-00000007").mkdir()
    room.train(run, save_every=1)
    assert damage(run / "step-00000004") is None and damage(run / "step-00000003") is None


def test_changed_settings_are_refused_by_name(room, run):
    before = files(run)
    other = room.pack("elsewhere", ["x = 1\n" * 60] * 9)
    for match, asked in (
        ("steps: 4, now 5", {"steps": 5}),
        ("batch_rows: 4, now 2", {"batch_rows": 2}),
        ("seed: 0, now 1", {"seed": 1}),
        ("rate: .*, now 0.5", {"rate": 0.5}),
        ("data: ", {"data": other}),
    ):
        with pytest.raises(IqcError, match=match) as caught:
            room.train(run, **({"save_every": 1} | asked))
        assert "another run" in caught.value.what and "-o" in caught.value.remedy
    assert files(run) == before
    room.train(run, save_every=3)  # how often it is saved does not decide the result


def test_a_stage_that_was_changed_is_another_run(room, run, tmp_path):
    table = tmp_path / "mine.toml"
    for old, new, what in (
        ("z_loss = 1e-4", "z_loss = 0.0", r"loss: next-token z_loss 0\.0001, now None"),
        ("warmup = 0.05", "warmup = 0.1", "schedule: wsd rate 1 warmup 0.05"),
    ):
        table.write_text(TABLE.read_text().replace(old, new, 1))
        with pytest.raises(IqcError, match=what):
            room.train(run, save_every=1, stages=str(table))
    table.write_text(TABLE.read_text().replace('text = "General', 'text = "Other', 1))
    before = files(run)
    room.train(run, save_every=1, stages=str(table))
    assert files(run) == before


def test_a_run_that_records_no_schedule_goes_on_with_the_loss_that_it_had(room, run, tmp_path):
    """It was made before there was z-loss: with the table of today it is another run, with one without z-loss not."""
    for step in run.glob("step-*"):
        state = json.loads((step / "run.json").read_text())
        del state["settings"]["schedule"], state["settings"]["loss"], state["digest"]
        (step / "run.json").write_text(json.dumps(state | {"digest": identity(state)}))
    with pytest.raises(IqcError, match="another run: loss: None, now next-token z_loss"):
        room.train(run, save_every=1)
    table = tmp_path / "mine.toml"
    table.write_text(TABLE.read_text().replace("z_loss = 1e-4", "z_loss = 0.0", 1))
    before = files(run)
    room.train(run, save_every=1, stages=str(table))
    assert files(run) == before


def test_another_starting_model_is_refused(room, made, tmp_path):
    """One without lineage, too: it is known by its weights."""
    for seed in (1, 2):
        source = find_checkpoint(room.train(tmp_path / f"start{seed}", steps=0, epochs=0.0, seed=seed))
        plain = tmp_path / f"plain{seed}"
        shutil.copytree(source, plain)
        for name in ("lineage.json", "run.json", "optimizer.safetensors"):
            (plain / name).unlink()
    room.train(tmp_path / "run", stage="anneal", start=tmp_path / "plain1", steps=1)
    room.train(tmp_path / "run", stage="anneal", start=tmp_path / "plain1", steps=1)
    with pytest.raises(IqcError, match=r"start: sha256:.*, now sha256:"):
        room.train(tmp_path / "run", stage="anneal", start=tmp_path / "plain2", steps=1)


def test_a_changed_environment_is_announced(room, run, capfd, monkeypatch):
    shutil.rmtree(run / "step-00000004")
    here = runs.environment()
    monkeypatch.setattr(runs, "environment", lambda: here | {"torch": "0.1"})
    room.train(run, save_every=1)
    change = f"torch: {here['torch']}, now 0.1"
    assert f"going on, but losses may differ by rounding: {change}" in capfd.readouterr().err
    assert damage(run / "step-00000004") is None
    assert json.loads((run / "step-00000004/run.json").read_text())["drifts"] == [{"step": 3, "changes": [change]}]
    assert "drifts" not in json.loads((run / "step-00000003/run.json").read_text())


def test_an_older_record_of_the_environment_is_no_change(room, run, capfd):
    """It lacked ranks, which were one, and what the processor can: nothing to say, and no promise."""
    path = run / "step-00000003/run.json"
    state = json.loads(path.read_text())
    for name in ("ranks", "instructions"):
        del state["environment"][name]
    state["digest"] = identity({key: value for key, value in state.items() if key != "digest"})
    path.write_text(json.dumps(state))
    shutil.rmtree(run / "step-00000004")
    with Run(run, state["settings"], None) as opened:
        assert not opened.resume().exact
    assert capfd.readouterr().err == ""
    room.train(run, save_every=1)
    assert "drifts" not in json.loads((run / "step-00000004/run.json").read_text())


def test_a_second_process_is_refused_and_a_dead_one_is_not(room, run, environment):
    code = (
        "import sys; from iqc.train.run import Run; run = Run(sys.argv[1], {}, None); print('in', flush=True);"
        " sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, run], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"in\n"
    try:
        with pytest.raises(IqcError, match="another process is training here"):
            room.train(run, save_every=1)
    finally:
        other.kill()
        other.communicate()
    room.train(run, save_every=1)


def test_metrics_are_those_of_the_checkpoint(room, run):
    metrics = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "step-00000004")
    (run / "metrics.jsonl").write_bytes(metrics + b'{"step":4,"lo')  # an update of which there is no checkpoint
    room.train(run, save_every=1)
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2, 3]


@pytest.mark.parametrize("at", range(2))
def test_killed_between_renames(room, run, monkeypatch, at):
    """Replacing a damaged checkpoint, stopped before each rename: there is always a good one to go on from."""
    expected = files(run)
    metrics = (run / "metrics.jsonl").read_bytes()
    (run / "step-00000004/config.json").write_text("{}")
    rename, count = Path.rename, 0

    def counted(self, target):
        nonlocal count
        if self.name.startswith((".step-", "step-")):
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        return rename(self, target)

    child = os.fork()
    if child == 0:
        Path.rename = counted
        try:
            room.train(run, save_every=1)
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL
    assert find_checkpoint(run).name in ("step-00000003", "step-00000004")
    room.train(run, save_every=1)
    assert files(run) == expected and (run / "metrics.jsonl").read_bytes() == metrics
    assert not list(run.glob(".step-*"))


def test_a_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IqcError, match="is a file"):
        Run(tmp_path / "file", {}, None)


def test_weights_that_are_not_finite_are_not_published(tmp_path):
    model = Decoder(preset("nano"))
    optimizer = make_optimizer(model, 1e-3, "adamw")
    with Run(tmp_path / "run", {"a": 1}, None) as run, torch.no_grad():
        run.resume()
        model.lm_head.weight[0, 0] = float("inf")
        run.save(7, model, pieces_of(model, optimizer), lambda digest: {}, done=True)
        with pytest.raises(IqcError, match=r"lm_head\.weight is not finite after update 7"):
            run.settle()
    assert not list((tmp_path / "run").glob("*step-*"))


def test_a_checkpoint_is_found_by_its_name_also_where_the_run_was_moved(run, tmp_path):
    with Run(run, json.loads((run / "step-00000004" / "run.json").read_text())["settings"], None) as again:
        for step in (3, 4):
            again.name("Base", step)
            again.name("Base", step)
    moved = run.rename(tmp_path / "moved")
    assert find_checkpoint(moved / "Base").resolve() == moved / "step-00000004" and damage(moved / "Base") is None
    assert find_checkpoint(moved) == moved / "step-00000004"
    copy = shutil.copytree(moved, tmp_path / "copy")  # a directory where the link was
    with Run(copy, {}, None) as again:
        again.name("Base", 4)
    assert find_checkpoint(copy / "Base") == copy / "Base"
    (copy / "Base" / "config.json").write_text("{}")
    with pytest.raises(IqcError, match="damaged"):
        find_checkpoint(copy / "Base")
