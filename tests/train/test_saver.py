"""Writing behind the training: a copy is what is saved, one at a time, and an error keeps the last good checkpoint."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from iqc.errors import IqcError
from iqc.model.checkpoint import load_model
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.tokens.loader import Batch
from iqc.train import saver
from iqc.train.checkpoints import Piece, checkpoint_bytes, load_pieces, pieces_of
from iqc.train.engines.local import Local
from iqc.train.losses import NextToken
from iqc.train.optimizer import make_optimizer
from iqc.train.ranks import Ranks
from iqc.train.run import Run, damage, find_checkpoint, read_metrics, stage_of
from iqc.train.step import update

CONFIG = ModelConfig(60, 16, 24, 2, 4, 2, 32, loop_num=2, loop_window_size=8)


def lineage(digest):
    return {"output": {"digest": digest}}


class Trained:
    """A model, its optimiser and a run of updates on the same few rows."""

    def __init__(self, seed=0):
        self.model = Decoder(CONFIG, seed=seed)
        self.optimizer = make_optimizer(self.model, 1e-3, "adamw")
        tokens = np.arange(40).reshape(2, 20) % 60
        self.batch = Batch(tokens, np.ones((2, 20), np.float32), [np.array([20]), np.array([20])])

    def update(self):
        return update(Local(self.model, self.optimizer, Ranks(), 1.0, None), NextToken(), self.batch, 1e-2)

    def pieces(self):
        return pieces_of(self.model, self.optimizer)

    def save(self, run, step, extra=(), **how):
        run.save(step, self.model, chain(self.pieces(), extra), lineage, done=False, **how)


@pytest.fixture
def held(monkeypatch):
    """Writing waits for `held.set()`."""
    go = threading.Event()
    real = saver.write
    monkeypatch.setattr(saver, "write", lambda *args: (go.wait(20), real(*args)))
    return go


def test_training_goes_on_and_what_was_is_saved(tmp_path, held):
    trained = Trained()
    with Run(tmp_path / "run", {"stage": "x"}, None) as run:
        assert run.resume() is None
        trained.update()
        then = [(piece.entry, piece.values.clone()) for piece in trained.pieces()]
        state = {"mixture": [0.1, 1 / 3, 5e-324], "seen": 2**53 + 1}
        expected = json.loads(json.dumps(state))
        trained.save(run, 1, state=state)
        state["mixture"].clear()
        run.copied()
        trained.update()
        assert not list(run.directory.glob("step-*"))  # and two updates are done
        second = threading.Thread(target=trained.save, args=(run, 2))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # one is under way
        held.set()
        second.join()
        run.settle()
        assert damage(tmp_path / "run/step-00000001") is damage(tmp_path / "run/step-00000002") is None
        shutil.rmtree(tmp_path / "run/step-00000002")
        progress = run.resume()
    assert progress.step == 1 and progress.exact and progress.state == expected
    for entry, values in then:
        assert torch.equal(progress.stored.read(entry.file, entry.name), values), entry.name


def test_the_thread_waits_for_the_copy_however_late_it_starts(tmp_path, monkeypatch):
    """A copy from a GPU is awaited by its event, which the training thread may have done with before."""

    class Event:
        waited = False

        def synchronize(self):
            self.waited = True

    event = Event()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"wait_event": lambda *_: None}))
    trained = Trained()
    with Run(tmp_path / "run", {}, None) as run:
        run.resume()
        copy = run.saver._copy
        monkeypatch.setattr(run.saver, "_copy", lambda pieces: (setattr(run.saver, "_copied", event), copy(pieces))[1])
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: (run.copied(), start(thread))[1])
        trained.save(run, 1)
        run.settle()
    assert event.waited and damage(tmp_path / "run/step-00000001") is None


def test_the_way_back_in_a_running_run(tmp_path):
    """A second `resume` gives the newest good checkpoint and cuts the metrics; from there all is as it was."""
    trained = Trained()
    with Run(tmp_path / "run", {}, None) as run:
        run.resume()
        for step in range(4):
            run.copied()
            run.log({"step": step} | trained.update())
            if step == 1:
                trained.save(run, 2)
        whole = [piece.values.clone() for piece in trained.pieces()]
        lines = read_metrics(run.directory)
        progress = run.resume()
        assert progress.step == 2 and read_metrics(run.directory) == lines[:2]
        load_pieces(trained.model, trained.optimizer, progress.stored)
        for step in (2, 3):
            run.log({"step": step} | trained.update())
    assert read_metrics(tmp_path / "run") == lines
    assert all(torch.equal(piece.values, values) for piece, values in zip(trained.pieces(), whole, strict=True))


def test_other_weights_are_a_model_of_their_own(room, tmp_path):
    trained = Trained()
    trained.update()
    average = {name: parameter.detach().double() / 2 for name, parameter in trained.model.named_parameters()}
    extra = [Piece("ema/model", name, value.shape, value.dtype, 0, value.view(-1)) for name, value in average.items()]
    with Run(tmp_path / "run", {"stage": "pretrain"}, room.place / "tokenizer") as run:
        run.resume()
        trained.save(run, 1, extra)
        run.settle()
        ema = tmp_path / "run/step-00000001/ema"
        assert sorted(path.name for path in ema.iterdir()) == [
            "config.json", "lineage.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
        ]  # fmt: skip
        assert all(torch.equal(p, average[name]) for name, p in load_model(ema).named_parameters())
        assert [json.loads((place / "config.json").read_text())["torch_dtype"] for place in (ema, ema.parent)] == [
            "float64",
            "float32",
        ]
        assert find_checkpoint(ema) == ema and stage_of(ema) == "pretrain"
        own = [json.loads((place / "lineage.json").read_text())["output"]["digest"] for place in (ema, ema.parent)]
        assert own[0] != own[1]
        stored = run.resume().stored
        assert stored.has("ema/model") and torch.equal(
            stored.tensor("ema/model", "lm_head.weight"), average["lm_head.weight"]
        )
    with open(ema / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert "ema/model.safetensors does not match" in damage(ema.parent)
    with pytest.raises(IqcError, match="damaged checkpoint"):
        find_checkpoint(ema)


@pytest.mark.parametrize("at", [0, 3, 60_000])
def test_a_disk_that_fails_while_writing(tmp_path, monkeypatch, at):
    """Said by the next update, with the file; the checkpoint before it is whole, and nothing is left of the new one."""
    trained = Trained()
    written, real = 0, os.pwrite

    def full(file, data, offset):
        nonlocal written
        if written >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(file, data[: max(1, at - written)], offset)
        written += done
        return done

    with Run(tmp_path / "run", {}, None) as run:
        run.resume()
        trained.update()
        trained.save(run, 1)
        run.settle()
        monkeypatch.setattr(os, "pwrite", full)
        trained.save(run, 2)
        run.saver._thread.join()
        with pytest.raises(IqcError, match="No space left on device") as caught:
            run.copied()
        assert caught.value.where.endswith(".safetensors") and "make room" in caught.value.remedy
        run.copied()  # said once
        assert sorted(path.name for path in run.directory.iterdir()) == [".lock", "metrics.jsonl", "step-00000001"]
        monkeypatch.undo()
        trained.save(run, 2)
    assert damage(tmp_path / "run/step-00000001") is damage(tmp_path / "run/step-00000002") is None


def test_an_error_is_not_lost_at_the_end_and_hides_no_other(tmp_path, monkeypatch, capfd):
    trained = Trained()
    monkeypatch.setattr(os, "pwrite", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "run", {}, None) as run:
        trained.save(run, 1)
    with pytest.raises(KeyError), Run(tmp_path / "run", {}, None) as run:
        trained.save(run, 1)
        raise KeyError
    assert "division" in capfd.readouterr().err


def test_too_little_room_is_said_before_the_first_update(tmp_path, room, monkeypatch):
    size = checkpoint_bytes(ModelConfig(400, 32, 64, 2, 4, 2, 64, loop_num=2, loop_window_size=16), torch.float32)
    usage = namedtuple("usage", "total used free")
    free = size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free))
    with pytest.raises(IqcError, match=r"0\.5 MiB of disk are free for 3 checkpoints of 0\.5 MiB, 0\.0 MiB") as caught:
        room.train(tmp_path / "run", save_every=1)
    assert "-o" in caught.value.remedy and read_metrics(tmp_path / "run") == []
    room.train(tmp_path / "run")  # one at the end
    free = size // 2
    room.train(tmp_path / "run")  # which is there
    files = list((tmp_path / "run/step-00000004").iterdir())
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") < 1.05 * size


def test_training_draws_no_random_numbers():
    """So there is no state of a generator that a checkpoint would have to keep."""
    trained = Trained()
    trained.model.model.recompute = type(trained.model.model.recompute).parse("block:1,mlp")
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    trained.update()
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


FULL = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_saver import Trained, IqcError, Run
trained = Trained()
with Run("run", {{}}, None) as run:
    run.resume()
    try:
        for step in range(1, 100):
            run.copied()
            trained.update()
            trained.save(run, step)
    except IqcError as error:
        print(step, error.what, error.where)
"""


def test_a_disk_that_is_full(tmp_path, environment):
    """A real one: of 200 KiB, in a namespace of its own."""
    code = FULL.format(tests=str(Path(__file__).parent))
    script = 'mount -t tmpfs -o size=200k none "$1" && cd "$1" && "$2" -c "$3" && ls -a run && cp -r run "$4"'
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path / "disk", sys.executable, code, tmp_path / "out"]
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path / "disk"], capture_output=True
    ).returncode:
        pytest.skip("no mount namespaces")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said, *left = done.stdout.splitlines()
    assert "No space left on device" in said and ".safetensors" in said
    assert left[-2:] == ["step-00000001", "step-00000002"] or left[-1] == "step-00000001", left
    assert damage(tmp_path / "out" / left[-1]) is None


RANKS = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from test_saver import Trained, IqcError, Run, load_pieces, pieces_of, lineage
from iqc.train.ranks import Ranks

def go_on(directory, ranks):
    trained = Trained()
    with Run(directory, {}, None, ranks) as run:
        progress = run.resume()
        if progress is not None:  # of one rank
            load_pieces(trained.model, trained.optimizer, progress.stored)
        for step in range(progress.step if progress else 0, 3):
            run.copied()
            run.log({"step": step} | trained.update())
            held = list(pieces_of(trained.model, trained.optimizer, ranks.rank, ranks.size))
            run.save(step + 1, trained.model, held, lineage, done=step == 2, state={"a": step})
        run.settle()
        real = os.pwrite
        os.pwrite = lambda *how: real(*how) if ranks.rank == 0 else real(10**6, *how[1:])
        run.save(4, trained.model, held, lineage, done=True)
        try:
            run.settle()
        except IqcError as error:
            print(f"{ranks.rank} {error.what}\\n", end="", flush=True)
        ranks.barrier()
        os.pwrite = real
        assert run.resume().step == 3 and not list(run.directory.glob(".step-*"))

with Ranks.start() as ranks:
    for directory in sys.argv[2:]:
        go_on(directory, ranks)
"""


def test_several_ranks_write_the_bytes_of_one(torchrun, tmp_path, capfd):
    """From the start, and from a checkpoint of one rank on; a disk that fails one rank is said by all."""
    trained = Trained()
    with Run(tmp_path / "whole", {}, None) as run:
        run.resume()
        for step in range(3):
            run.copied()
            run.log({"step": step} | trained.update())
            trained.save(run, step + 1, state={"a": step})
            if step == 0:
                run.settle()
                shutil.copytree(run.directory, tmp_path / "cut")
    worker = tmp_path / "worker.py"
    worker.write_text(RANKS)
    ended = torchrun(2, worker, Path(__file__).parent, tmp_path / "cut", tmp_path / "new")
    assert ended.returncode == 0, ended.stderr
    said = [f"{rank} cannot be written: Bad file descriptor" for rank in (0, 0, 1, 1)]
    assert sorted(ended.stdout.splitlines()) == said and ended.stderr.count("ranks: 1, now 2") == 1
    for name in ("cut", "new"):
        assert read_metrics(tmp_path / name) == read_metrics(tmp_path / "whole")
        for file in ("model.safetensors", "optimizer.safetensors", "config.json", "lineage.json"):
            whole, found = (tmp_path / run / "step-00000003" / file for run in ("whole", name))
            assert whole.read_bytes() == found.read_bytes(), file
    with Run(tmp_path / "cut", {}, None) as run:
        progress = run.resume()
        assert progress.step == 3 and not progress.exact and progress.state == {"a": 2}
    assert "ranks: 2, now 1" in capfd.readouterr().err
