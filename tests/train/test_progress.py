"""What is shown and written while a run goes on: rates are work over time, and the same work whoever counts it."""

import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iqc.errors import UsageError
from iqc.model.config import ModelConfig, preset
from iqc.model.describe import flops
from iqc.tokens.loader import Batch
from iqc.train import progress
from iqc.train.progress import Meter, clock, peak_flops, work_of
from iqc.train.ranks import Ranks
from iqc.train.run import read_metrics

ALONE = Ranks()
METRICS = {"rate": 1e-3, "loss": 2.5, "tokens": 30.0, "grad_norm": 0.75}


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    at = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: at.seconds)
    return at


def batch(*rows: list[int], width: int = 20) -> Batch:
    weights = np.zeros((len(rows), width), np.float32)
    for row, lengths in enumerate(rows):
        weights[row, 1 : sum(lengths)] = 0.5
    return Batch(np.zeros((len(rows), width), np.int64), weights, [np.array(lengths) for lengths in rows])


def lines(path) -> list[dict]:
    return [json.loads(line) for line in (path / "timings.jsonl").read_bytes().splitlines()]


def test_work_adds_up_over_rows_and_is_that_of_the_sums():
    whole = work_of(batch([20], [5, 7]))
    assert whole.tolist() == [32, 400 + 25 + 49, 19 + 11]
    assert torch.equal(work_of(batch([20])) + work_of(batch([5, 7])), whole)
    config = preset("nano-loop")
    costs = torch.tensor([addend.value for addend in flops(config, 1)], dtype=torch.float64)
    one = work_of(batch([20]))
    one[2] += 1  # the sums have every token predicted, the first too
    assert float(costs @ one) == 20 * sum(addend.value for addend in flops(config, 20))


def test_rates_are_work_over_time(tmp_path, now, monkeypatch):
    monkeypatch.setattr(progress, "peak_flops", lambda device: 1e9)
    config, rows = ModelConfig(50, 24, 40, 2, 6, 2, 32), batch([20], [5, 7])
    with Meter(config, "pretrain", 10, 4, ALONE, "bf16", tmp_path, quiet=True) as meter:
        for step in (4, 5):
            with meter.waiting("data"):
                now.seconds += 0.5
            now.seconds += 1.5
            with meter.waiting("data"):
                now.seconds += 0.5
            meter.update(step, METRICS, rows)
            with meter.waiting("checkpoint"):
                now.seconds += 1.5
        assert meter.seconds_left(5) == 4 * 3.25  # the mean of 2.5 and 4
    first, second = lines(tmp_path)
    operations = sum(a.value * n for a, n in zip(flops(config, 1), work_of(rows).tolist()))
    assert (first["step"], first["seconds"], first["tokens_per_second"]) == (4, 2.5, 32 / 2.5)
    assert first["flops_per_second"] == operations / 2.5 and first["flops_share"] == operations / 2.5 / 1e9
    assert first["waiting"] == {"data": 0.4}
    assert second["seconds"] == 4 and second["waiting"] == {"data": 0.25, "checkpoint": 0.375}
    assert first["memory_peak"] > 2**20 and first["memory"] > 2**20


def test_more_ranks_have_more_peak_and_the_main_one_writes(tmp_path, monkeypatch):
    """Four ranks, two of which share their rows: the work is that of two."""
    monkeypatch.setattr(progress, "peak_flops", lambda device: 1e9)
    config, rows = ModelConfig(50, 24, 40, 2, 6, 2, 32), batch([20])
    for main in (False, True):
        ranks = SimpleNamespace(main=main, size=4, context=2, device=torch.device("cpu"), sum=lambda tensor: 4 * tensor)
        with Meter(config, "pretrain", 1, 0, ranks, "bf16", tmp_path, quiet=True) as meter:
            meter.update(0, METRICS, rows)
    (line,) = lines(tmp_path)
    assert line["flops_share"] == pytest.approx(line["flops_per_second"] / 4e9)
    assert line["tokens_per_second"] * line["seconds"] == pytest.approx(2 * 20)
    with Meter(config, "pretrain", 1, 0, ALONE, "fp32", tmp_path, quiet=True) as meter:
        meter.update(0, METRICS, rows)
    assert "flops_share" not in lines(tmp_path)[1]  # float32 has another peak


def test_lines_on_standard_error(tmp_path, now, capsys):
    config, rows = ModelConfig(50, 24, 40, 2, 6, 2, 32), batch([20], [20])

    def run(steps, first=0, seconds=2.0, quiet=False):
        with Meter(config, "pretrain", steps, first, ALONE, "fp32", tmp_path, quiet=quiet) as meter:
            for step in range(first, steps):
                with meter.waiting("data"):
                    now.seconds += seconds / 4
                now.seconds += 3 * seconds / 4
                meter.update(step, METRICS, rows)
        return capsys.readouterr().err.splitlines()

    shown = run(40)
    assert len(shown) == 10
    assert re.fullmatch(
        r"iqc train: pretrain: update 4/40, loss 2\.500, gradient norm 0\.750, 20 tokens/s, [\d.]+ GiB, "
        r"at most [\d.]+, 25\.0% waiting for data, 1 min 12 s left",
        shown[0],
    )
    assert shown[-1].endswith(" 0 s left")
    assert len(run(40, first=30)) == 3 and len(run(3)) == 3 and run(40, quiet=True) == []
    assert len(run(100, first=95, seconds=50.0)) == 3  # after 100, 200 and, at the end, 250 seconds


def test_losses_of_sources_are_in_the_line(tmp_path, capsys):
    config, rows = ModelConfig(50, 24, 40, 2, 6, 2, 32), batch([20])
    with Meter(config, "pretrain", 1, 0, ALONE, "fp32", tmp_path) as meter:
        meter.update(0, METRICS | {"domain_loss": {"chat": 2.0, "code": 3.0}}, rows)
    assert "loss 2.500, of chat 2.000, code 3.000, gradient norm 0.750" in capsys.readouterr().err


def test_a_run_is_watched_and_its_metrics_do_not_know(room, tmp_path):
    """A line an update, those that were done again too; what was computed is the same with and without."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched = room.train(tmp_path / "run", save_every=2, tensorboard=str(tmp_path / "tb"))
    shutil.rmtree(watched / "step-00000004")
    room.train(watched, save_every=2)
    metrics = read_metrics(watched)
    assert metrics == read_metrics(room.train(tmp_path / "plain"))
    timings = lines(watched)
    assert [line["step"] for line in timings] == [0, 1, 2, 3, 2, 3]
    assert set(timings[1]["waiting"]) == {"data", "checkpoint"} and set(timings[0]["waiting"]) == {"data"}
    assert all(0 <= share <= 1 for line in timings for share in line["waiting"].values())
    assert timings[0]["tokens_per_second"] * timings[0]["seconds"] <= 4 * 64 + 1e-6  # rows of 64 tokens
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in metrics])


def test_a_slow_first_update_does_not_make_the_rest_look_long(tmp_path, now):
    config, rows = ModelConfig(50, 24, 40, 2, 6, 2, 32), batch([20])
    with Meter(config, "pretrain", 10, 0, ALONE, "fp32", tmp_path, quiet=True) as meter:
        for step, seconds in enumerate((60.0, 2.0, 2.0)):
            now.seconds += seconds
            meter.update(step, METRICS, rows)
        assert meter.seconds_left(2) == 7 * 2.0


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    config, rows = ModelConfig(50, 24, 40, 2, 6, 2, 32), batch([20])
    with Meter(config, "pretrain", 3, 0, ALONE, "fp32", tmp_path) as meter:
        monkeypatch.setattr(meter.bar, "mininterval", 0)
        for step in range(3):
            meter.update(step, METRICS, rows)
    shown = terminal.getvalue()
    assert "iqc train pretrain" in shown and "loss 2.500" in shown and "3/3" in shown and "\n" not in shown


def test_tensorboard_reads_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, rows = ModelConfig(50, 24, 40, 2, 6, 2, 32), batch([20])

    def run(first, steps, loss):
        with Meter(config, "pretrain", steps, first, ALONE, "fp32", tmp_path, str(tmp_path / "tb"), True) as meter:
            for step in range(first, steps):
                line = {"step": step} | METRICS | {"loss": loss - step, "valid_loss": {"code": 1.5}, "said": "text"}
                meter.update(step, line, rows)

    run(0, 6, 10.0)
    run(4, 6, 20.0)  # killed after update 4: what it wrote beyond is written again
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "rate", "grad_norm", "valid_loss/code", "timings/tokens_per_second"} <= set(tags)
    assert not {"step", "said", "timings/step"} & set(tags)
    loss = {event.step: event.value for event in events.Scalars("loss")}
    assert loss == {0: 10, 1: 9, 2: 8, 3: 7, 4: 16, 5: 15}


def test_tensorboard_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="needs TensorBoard"):
        Meter(preset("nano"), "pretrain", 1, 0, ALONE, "fp32", tmp_path, str(tmp_path / "tb"))


def test_peaks():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA GH200 480GB") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None


def test_clock():
    assert [clock(s) for s in (0.4, 59.6, 200, 18421, 273601)] == [
        "0 s", "1 min 00 s", "3 min 20 s", "5 h 07 min", "3 d 4 h"
    ]  # fmt: skip
