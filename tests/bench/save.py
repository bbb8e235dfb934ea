"""What a checkpoint costs the training: `python tests/bench/save.py [--sizes nano,100m,1b] [--output FILE]`.

The state is weights and both moments of AdamW. `iqc` is Run.save while updates go on: SHA-256s, fsync and the renames
are part of it. `torch` is torch.save of the same tensors, `safetensors` is save_file, each with an fsync and no more,
while the training waits; they take turns with ours. `stall` is the time for which the training thread stood still, in
`save` and in front of the update that follows. `slower` is what all updates until the checkpoint was published took
longer than others, the stall included: the writer's thread takes part of the machine, which on a CPU is the one that
trains. Both as shares of one update. Nothing is printed for a size unless the files of all three hold the same tensors.

A CPU trains one row of --tokens, 1b in pure bfloat16 with recompute, the others in float32; a GPU 16 rows of 4,096 in
bfloat16 with float32 masters.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import REPO, save
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(REPO))

from iqc.model.compiled import compile_blocks
from iqc.model.config import ModelConfig, preset
from iqc.model.decoder import Decoder, Recompute
from iqc.tokens.loader import Batch
from iqc.train.checkpoints import pieces_of
from iqc.train.engines.engine import CLIP
from iqc.train.engines.local import Local
from iqc.train.losses import NextToken
from iqc.train.optimizer import make_optimizer
from iqc.train.ranks import Ranks
from iqc.train.run import Run
from iqc.train.step import update

GOAL = 0.05  # of an update at 1 B parameters
MIB = 1 << 20
SIZES = {
    "nano": preset("nano"),
    "100m": preset("100m"),
    "1b": ModelConfig(32_768, 2_048, 6_144, 18, 16, 8, 4_096),  # 1.04 B parameters
}


class Training:
    """A model and its optimiser on random rows."""

    def __init__(self, size: str, device: str, tokens: int):
        config = SIZES[size]
        self.device = torch.device(device)
        large = size == "1b"
        self.dtype = torch.bfloat16 if large and device == "cpu" else torch.float32
        products = torch.bfloat16 if device == "cuda" else None
        rows, length = (16, 4_096) if device == "cuda" else (1, tokens)
        length = min(length, config.max_position_embeddings)
        self.model = Decoder(config, seed=0).to(self.device, self.dtype).train()
        if device == "cuda":
            compile_blocks(self.model)
        elif large:
            self.model.model.recompute = Recompute.parse("block")
        self.optimizer = make_optimizer(self.model, 1e-4, "adamw")
        self.engine = Local(self.model, self.optimizer, Ranks(device=self.device), CLIP, products)
        draw = np.random.default_rng(0)
        lengths = [np.array([length])] * rows
        self.batch = Batch(
            draw.integers(0, config.vocab_size, (rows, length)), np.ones((rows, length), np.float32), lengths
        )

    def update(self) -> None:
        rows = len(self.batch.tokens)
        update(self.engine, NextToken(), self.batch, 1e-4, micro_rows=min(rows, 4), batch_rows=rows)

    def state(self) -> dict[str, torch.Tensor]:
        """As the peers take it: by the names of our files."""
        return {f"{p.file}/{p.name}": p.values.view(p.shape) for p in pieces_of(self.model, self.optimizer)}


def clocked(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def synced(path: Path, write: Callable[[Path], object]) -> float:
    """Seconds to write a file and have it on the disk."""

    def action() -> None:
        write(path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    return clocked(action)


def same(directory: Path, state: dict[str, torch.Tensor], torch_file: Path, file: Path) -> bool:
    """Whether our files hold these tensors, bit for bit, and those of the peers too."""
    ours = {
        f"{name}/{key}": tensor
        for name in ("model", "optimizer")
        for path in sorted(directory.glob(f"{name}*.safetensors"))
        for key, tensor in load_file(path).items()
    }
    theirs = torch.load(torch_file, mmap=True), load_file(file)
    return all(
        found.keys() == state.keys() and all(torch.equal(found[key], value.cpu()) for key, value in state.items())
        for found in (ours, *theirs)
    )


def torch_save(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)


def safetensors_save(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


PEERS = {"torch": torch_save, "safetensors": safetensors_save}


def measure_size(size: str, device: str, tokens: int, place: Path, rounds: int, plain: int) -> dict[str, Any]:
    training = Training(size, device, tokens)
    training.update()  # makes the moments
    state = training.state()  # the tensors themselves, which updates change
    total = sum(tensor.nbytes for tensor in state.values())
    times: list[float] = []
    rows: list[dict[str, float]] = []
    peers: dict[str, list[float]] = {name: [] for name in PEERS}

    def begin(run: Run, step: int) -> None:
        pieces = pieces_of(training.model, training.optimizer)
        run.save(step, training.model, pieces, lambda digest: {"digest": digest}, done=False)

    with Run(place / "run", {}, None, training.engine.ranks) as run:
        run.resume()
        run.need(total, 3)
        for number in range(rounds + 1):
            alone = [clocked(training.update) for _ in range(plain)]
            started = time.perf_counter()
            begin(run, number + 1)
            copy = time.perf_counter() - started
            waits, updates = [], []
            while run.saver.busy or not updates:
                waits.append(clocked(run.copied))
                updates.append(clocked(training.update))
            published = time.perf_counter() - started
            synchronous = {name: synced(place / name, partial(write, state)) for name, write in PEERS.items()}
            if number:  # in the first, memory is touched for the first time
                times += alone
                rows.append({"copy": copy, "wait": sum(waits), "meanwhile": sum(updates), "updates": len(updates)})
                rows[-1] |= {"published": published}
                for name, seconds in synchronous.items():
                    peers[name].append(seconds)
        begin(run, rounds + 2)  # the state that the peers have written last
        run.settle()
        right = same(place / f"run/step-{rounds + 2:08d}", state, *(place / name for name in PEERS))
    if not right:
        return {"refused": "the files hold different tensors"}
    step = median(times)
    stall = median(row["copy"] + row["wait"] for row in rows)
    slower = median(row["copy"] + row["wait"] + row["meanwhile"] - step * row["updates"] for row in rows)
    found = {
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "bytes": total,
        "tokens": int(training.batch.tokens.size),
        "update_s": step,
        "stall_s": stall,
        "stall_share": stall / step,
        "slower_s": slower,
        "slower_share": slower / step,
        "updates_until_published": median(row["updates"] for row in rows),
        "published_s": median(row["published"] for row in rows),
    }
    for name, seconds in peers.items():
        found |= {f"{name}_s": median(seconds), f"{name}_share": median(seconds) / step}
    return found


def alone(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """A size in a process of its own, whose memory is gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="save-", dir=options.directory))
    command = [sys.executable, __file__, "--one", size, "--device", options.device, "--directory", place]
    command += ["--tokens", options.tokens, "--rounds", options.rounds, "--plain", options.plain]
    try:
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return {"failed": f"exit status {done.returncode}"}
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="nano,100m,1b", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=512, help="a row on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", type=int, default=3, help="updates before each checkpoint, for comparison")
    parser.add_argument("--directory", type=Path, help="where to write: the disk that is measured")
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        place = options.directory
        print(
            json.dumps(measure_size(options.one, options.device, options.tokens, place, options.rounds, options.plain))
        )
        return
    found = {}
    print(f"{'size':>6} {'update':>9} {'stall':>9} {'share':>7} {'slower':>7} {'torch':>7} {'safetensors':>11}")
    for size in options.sizes.split(","):
        row = found[size] = alone(size, options)
        if "update_s" in row:
            print(
                f"{size:>6} {row['update_s']:8.3f}s {row['stall_s'] * 1e3:7.1f}ms {row['stall_share']:7.1%} "
                f"{row['slower_share']:7.1%} {row['torch_share']:7.1%} {row['safetensors_share']:11.1%}"
            )
        else:
            print(f"{size:>6} {row}")
    goals = {}
    if "stall_share" in found.get("1b", {}):
        goals[f"stall at 1 B parameters under {GOAL:.0%} of an update"] = found["1b"]["stall_share"] < GOAL
    result = {"device": options.device, "sizes": found, "goals": goals, "threads": torch.get_num_threads()}
    save("save", result, ("torch", "safetensors"), options.print_only, options.output)


if __name__ == "__main__":
    main()
