"""Sums over ranks, and that the failure or the silence of one ends all."""

import signal
import socket
import subprocess
import sys

import pytest
import torch

from iqc.errors import UsageError
from iqc.train.ranks import Ranks

WORKER = """
import os, signal, sys, time
import torch
import iqc.train.ranks as module
from iqc.errors import IqcError
from iqc.train.ranks import Ranks

module.SILENCE = 3.0
with Ranks.start(context=2) as ranks:
    r, n = ranks.rank, ranks.size
    assert (ranks.data_rank, ranks.context_rank, ranks.data_ranks) == (r // 2, r % 2, n // 2)
    total = ranks.sum(torch.tensor([0.1, r], dtype=torch.float32))
    assert total.dtype == torch.float64 and ranks.same(total.view(torch.int64)) and total[1] == n * (n - 1) / 2
    assert ranks.gather(torch.tensor([r, 1])).tolist() == [[k, 1] for k in range(n)]
    assert not ranks.same(torch.tensor([r])) and ranks.once(lambda: os.getpid()) != (os.getpid() if r else 0)
    shared = torch.tensor([r])
    torch.distributed.all_reduce(shared, group=ranks.context_group)
    assert shared.item() == (1 if r < 2 else 5)
    ranks.barrier()
    if sys.argv[1] == "fails" and r == n - 1:
        raise IqcError("the last has no data")
    if sys.argv[1] == "hangs" and r == n - 1:
        ranks._watch.done.set()  # what a machine that went away looks like to the others
        time.sleep(60)
    if sys.argv[1] == "dies" and r == n - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "ends" and r == n - 1:
        time.sleep(4)  # longer than SILENCE, and watched all the time
    else:
        sys.argv[1] == "ends" or ranks.barrier()
print(f"{r} done\\n", end="", flush=True)
"""


def test_one_process_needs_no_others(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with Ranks.start() as ranks:
        assert ranks.main and ranks.data_ranks == 1 and not torch.distributed.is_initialized()
        value = torch.tensor([3], dtype=torch.int64)
        assert ranks.sum(value).item() == 3.0 and ranks.same(value) and ranks.once(lambda: 7) == 7
        assert ranks.gather(value).shape == (1, 1)
        ranks.barrier()
    with pytest.raises(UsageError, match="2 context ranks for 1 rank"):
        Ranks.start(context=2)


def test_ranks_end_together(torchrun, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    ended = torchrun(4, worker, "ends")
    assert ended.returncode == 0 and sorted(ended.stdout.split()) == ["0", "1", "2", "3", *["done"] * 4], ended.stderr
    failed = torchrun(2, worker, "fails")
    assert failed.returncode and not failed.stdout and "the last has no data" in failed.stderr
    assert "rank 1 failed" in failed.stderr
    hung = torchrun(2, worker, "hangs")
    assert hung.returncode and not hung.stdout and "rank 1 has said nothing for 3 s" in hung.stderr


def test_a_rank_that_is_killed_is_missed_without_a_launcher(environment, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(worker), "dies"]
    ranks = [
        subprocess.Popen(command, env=environment | place | {"RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    told, _ = [process.communicate(timeout=60)[1] for process in ranks]
    assert ranks[0].returncode == 1 and ranks[1].returncode == -signal.SIGKILL
    assert "another rank of the run ended" in told and "goes on from the newest checkpoint" in told
