"""kill -9 of ranks at random moments, also while they write: the run goes on bit for bit.

The kills of a single process are in tests/commands/test_kills.py; tests/bench/resume.py has twenty of either.
"""

import os
import random
import signal
import socket
import time

import pytest

from iqc.train.run import damage, find_checkpoint, read_metrics

STEPS = 8


class World:
    """`iqc train` on two ranks that are forks of this process, so that nothing is imported anew."""

    def __init__(self, room, run, **asked):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids = []
        for rank in range(2):
            pid = os.fork()
            if pid == 0:
                where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
                os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in where.items()}
                status = 1
                try:
                    room.train(run, steps=STEPS, save_every=1, **asked)
                    status = 0
                finally:
                    os._exit(status)
            self.pids.append(pid)

    def wait(self) -> list[int]:
        """Exit statuses, -9 of a killed one. What still runs after a minute is killed, and that is a failure."""
        found: dict[int, int] = {}
        until = time.monotonic() + 60
        while len(found) < len(self.pids):
            for pid in self.pids:
                if pid not in found:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        found[pid] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                for pid in self.pids:
                    if pid not in found:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                pytest.fail("a rank outlived another")
            time.sleep(0.005)
        return [found[pid] for pid in self.pids]


def test_ranks_are_killed_and_the_run_goes_on(room, tmp_path):
    """One, the other, both; at once, and when a checkpoint is under way."""
    draw = random.Random(3)
    whole, run = tmp_path / "whole", tmp_path / "run"
    started = time.monotonic()
    assert World(room, whole).wait() == [0, 0]
    duration = time.monotonic() - started
    killed = 0
    for number, chosen in enumerate(([0], [1], [0, 1])):
        world = World(room, run)
        time.sleep(draw.uniform(0.2, 0.5) * duration)
        until = time.monotonic() + duration
        while number % 2 and not list(run.glob(".step-*")) and time.monotonic() < until:
            time.sleep(0.0005)
        for rank in chosen:
            os.kill(world.pids[rank], signal.SIGKILL)
        statuses = world.wait()
        if statuses == [0, 0]:
            break
        killed += 1
        assert all(status for status in statuses), statuses  # a rank alone does not go on
        assert all(damage(path) is None for path in run.glob("step-*"))
        lines = read_metrics(run)
        assert lines == read_metrics(whole)[: len(lines)]
    assert killed
    assert World(room, run).wait() == [0, 0]
    assert read_metrics(run) == read_metrics(whole) and len(read_metrics(run)) == STEPS
    ends = [{path.name: path.read_bytes() for path in find_checkpoint(place).iterdir()} for place in (whole, run)]
    assert ends[0] == ends[1]
    assert not list(run.glob(".step-*"))
