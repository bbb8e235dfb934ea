"""kill -9 of ranks at random moments, also while they write: the run goes on bit for bit.

The kills of a single process are in tests/commands/test_kills.py; tests/bench/resume.py has twenty of either.
"""

import os
import random
import signal
import time

from iqc.train.run import damage, find_checkpoint, read_metrics

STEPS = 8


def test_ranks_are_killed_and_the_run_goes_on(room, world, tmp_path):
    """One, the other, both; at once, and when a checkpoint is under way."""

    def start(run):
        return world(2, lambda: room.train(run, steps=STEPS, save_every=1))

    draw = random.Random(3)
    whole, run = tmp_path / "whole", tmp_path / "run"
    started = time.monotonic()
    assert start(whole).wait() == [0, 0]
    duration = time.monotonic() - started
    killed = 0
    for number, chosen in enumerate(([0], [1], [0, 1])):
        ranks = start(run)
        time.sleep(draw.uniform(0.2, 0.5) * duration)
        until = time.monotonic() + duration
        while number % 2 and not list(run.glob(".step-*")) and time.monotonic() < until:
            time.sleep(0.0005)
        for rank in chosen:
            os.kill(ranks.pids[rank], signal.SIGKILL)
        statuses = ranks.wait()
        if statuses == [0, 0]:
            break
        killed += 1
        assert all(status for status in statuses), statuses  # a rank alone does not go on
        assert all(damage(path) is None for path in run.glob("step-*"))
        lines = read_metrics(run)
        assert lines == read_metrics(whole)[: len(lines)]
    assert killed
    assert start(run).wait() == [0, 0]
    assert read_metrics(run) == read_metrics(whole) and len(read_metrics(run)) == STEPS
    ends = [{path.name: path.read_bytes() for path in find_checkpoint(place).iterdir()} for place in (whole, run)]
    assert ends[0] == ends[1]
    assert not list(run.glob(".step-*"))
