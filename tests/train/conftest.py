"""A tokenizer of real text, packed sequences with lineage, and a preset small enough to train in a moment."""

import argparse
import json.decoder
import os
import signal
import socket
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from iqc.model.config import PRESETS, ModelConfig
from iqc.streams.runner import Settings, run_stage
from iqc.tokens import tokenizer
from iqc.tokens.pack import Packer
from iqc.tokens.stages import packing, tokenise_stage
from iqc.train.settings import TrainSettings
from iqc.train.trainer import run_train

torch.set_num_threads(1)
SOURCES = [Path(module.__file__).read_text(encoding="utf-8") for module in (json.decoder, textwrap, argparse)]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Trainers take a GPU where there is one; these tests are of what is the same everywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@dataclass(slots=True)
class Room:
    """A directory with what a run needs: tokenizer, another tokenizer of the same size, sequences."""

    place: Path

    def pack(self, name: str, texts: list[str], tokens: str = "tokenizer", context: int = 64, **fields) -> Path:
        records = [{"id": f"{name}{n}", "text": text} | fields for n, text in enumerate(texts)]
        return self.pack_records(name, records, tokens, context)

    def pack_records(self, name: str, records: list[dict], tokens="tokenizer", context=64, **asked) -> Path:
        """`iqc pack`, whose options are `asked`."""
        from functools import partial

        raw, out = self.place / f"{name}.jsonl", self.place / f"{name}.zst"
        raw.write_text("".join(json.dumps(record) + "\n" for record in records))
        reduce, measured = packing(Packer(context))
        options = {"tokenizer": tokenizer.load(self.place / tokens).digest}
        settings = Settings([str(raw)], str(out), jobs=1, quiet=True)
        factory = partial(tokenise_stage, str(self.place / tokens), context=context, **asked)
        run_stage("pack", options, settings, factory, reduce=reduce, measure=measured)
        return out

    def train(
        self, run: Path, data: Path | list[str] | None = None, tokens: str | None = "tokenizer", valid=None, **asked
    ) -> Path:
        """`iqc train` in this process: 4 updates of the tiny model unless asked otherwise."""
        wanted = {"stage": "pretrain", "model": "tiny", "start": None, "steps": 4, "batch_rows": 4} | asked
        if wanted["start"]:
            wanted["model"], wanted["start"] = None, str(wanted["start"])
        inputs = data if isinstance(data, list) else [str(data or self.place / "sequences.zst")]
        held_out = valid if isinstance(valid, list) else [str(valid)] if valid else []
        named = str(self.place / tokens) if tokens and not wanted["start"] else None
        run_train(TrainSettings(**wanted), inputs, str(run), named, held_out, None, True)
        return run


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Room:
    place = tmp_path_factory.mktemp("room")
    tokenizer.train(iter(SOURCES), 400).save(place / "tokenizer", context=64)
    tokenizer.train(iter(SOURCES[2:]), 400).save(place / "other", context=64)
    made = Room(place)
    made.pack("sequences", SOURCES[:2])
    return made


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    sizes = ModelConfig(400, 32, 64, 2, 4, 2, 64, loop_num=2, loop_window_size=16)
    monkeypatch.setitem(PRESETS, "tiny", sizes)


@pytest.fixture(scope="session")
def made(room, tmp_path_factory) -> Path:
    """A finished pretraining run: not to be written to."""
    place = tmp_path_factory.mktemp("made")
    PRESETS["tiny"] = ModelConfig(400, 32, 64, 2, 4, 2, 64, loop_num=2, loop_window_size=16)
    try:
        return room.train(place / "run", save_every=1)
    finally:
        del PRESETS["tiny"]


class World:
    """A function run by several ranks that are forks of this process, so that nothing is imported anew."""

    def __init__(self, ranks: int, function):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
                os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in where.items()}
                status = 1
                try:
                    function()
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


@pytest.fixture(scope="session")
def world() -> type[World]:
    return World
