"""kill -9 at random moments, and the run goes on bit for bit: `python tests/bench/resume.py [--kills 20] [--ranks 2]`.

A nano-loop is trained on this checkout's sources, with a checkpoint after every update: once without a disturbance, and
once more while it is killed and started again. Each start is left alone until it has made an update that none before it
had made, and is killed at a moment drawn from the next --updates updates, or when it writes next, in turns;
every fourth start is killed before its first update instead, which does not count. With several ranks it is all of them
or one rank, for which the launcher and the other ranks have to end. After each kill: no checkpoint is damaged, and all
lines of metrics, losses with all their bits, are those of the run that was left alone. In the end every file of the
last checkpoint is the same. On a GPU --deterministic is given to both.

`--arguments` goes to both runs: "--engine deepspeed --zero 2", "--optimizer muon".
"""

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import REPO, save

sys.path.insert(0, str(REPO))

from iqc.train.run import damage, find_checkpoint

LIMIT = 120.0  # seconds without a new update: the run hangs


class Killed:
    """`iqc train` on some ranks, in a session of its own."""

    def __init__(self, command: list[str], ranks: int, log: Path):
        self.ranks, self.log = ranks, log
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, "-m", "iqc", *command],
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONPATH": str(REPO)},
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """The launcher and its children, which have sessions of their own."""
        found = [self.process.pid]
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and fields[0] != "Z":
                found.append(int(entry.parent.name))
        return found

    def kill(self, one: random.Random | None) -> None:
        """All processes, or one rank that is drawn; then until none is left."""
        pids = self.pids()
        ranks = pids[1:] if self.ranks > 1 else pids
        for pid in [one.choice(ranks)] if one and ranks else pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(LIMIT)
        until = time.monotonic() + LIMIT
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            if time.monotonic() > until:
                raise SystemExit(f"processes outlived the kill: {pids}")
            time.sleep(0.02)


def lines(run: Path) -> list[bytes]:
    path = run / "metrics.jsonl"
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def check(run: Path, whole: list[bytes]) -> None:
    """What is there is part of the undisturbed run."""
    for checkpoint in run.glob("step-*"):
        if fault := damage(checkpoint):
            raise SystemExit(f"{checkpoint}: {fault}")
    found = lines(run)
    if found and not found[-1].endswith(b"\n"):
        found.pop()  # cut by the kill
    for number, (line, expected) in enumerate(zip(found, whole)):
        if line != expected:
            raise SystemExit(f"update {number} differs:\n{line.decode()}{expected.decode()}")


def prepare(place: Path) -> tuple[Path, Path]:
    """A tokenizer and packed rows of the checkout's own sources."""
    docs, tokenizer, rows = place / "docs.zst", place / "tokenizer", place / "rows.zst"
    for command in (
        ["crawl-clean", REPO / "iqc", REPO / "commands", REPO / "kernels", "-q", "-o", docs],
        ["tokenizer", "train", docs, "--vocab-size", 4096, "--context", 256, "-o", tokenizer],
        ["pack", docs, "--tokenizer", tokenizer, "--context", 256, "-q", "-o", rows],
    ):
        subprocess.run(
            [sys.executable, "-m", "iqc", *map(str, command)], env=os.environ | {"PYTHONPATH": str(REPO)}, check=True
        )
    return tokenizer, rows


def wait_for(child: Killed, run: Path, count: int) -> None:
    """Until there are more lines of metrics than that, or the run is done."""
    seen, until = -1, 0.0
    while (now := len(lines(run))) <= count and child.process.poll() is None:
        if now != seen:
            seen, until = now, time.monotonic() + LIMIT
        if time.monotonic() > until:
            child.kill(None)
            raise SystemExit(f"no update for {LIMIT} s:\n{child.log.read_text()}")
        time.sleep(0.005)
    if child.process.poll():
        raise SystemExit(child.log.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--updates", type=int, default=4, help="a kill comes at most so many after the one waited for")
    parser.add_argument("--batch-rows", type=int, default=2)
    parser.add_argument("--arguments", default="", help="further ones of iqc train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    steps = options.kills * (options.updates + 3) + 8
    with tempfile.TemporaryDirectory(prefix="resume-") as scratch:
        place = Path(scratch)
        tokenizer, rows = prepare(place)
        command = ["train", str(rows), "--tokenizer", str(tokenizer), "--model", "nano-loop", "--save-every", "1"]
        command += ["--steps", str(steps), "--batch-rows", str(options.batch_rows), *shlex.split(options.arguments)]
        command += ["--deterministic"] if torch.cuda.is_available() else []

        def start(name: str) -> Killed:
            return Killed([*command, "-o", str(place / name)], options.ranks, place / f"{name}.log")

        began = time.monotonic()
        child = start("whole")
        wait_for(child, place / "whole", 0)
        loading = time.monotonic() - began
        wait_for(child, place / "whole", steps)
        update = (time.monotonic() - began - loading) / (steps - 1)
        expected = lines(place / "whole")
        run, kills, early, most = place / "run", [], 0, 0
        while len(kills) < options.kills:
            child = start("run")
            if (len(kills) + early) % 4 == 3:
                time.sleep(draw.uniform(0, 0.8 * loading))
                early += 1
                child.kill(None)
                check(run, expected)
                continue
            wait_for(child, run, most)
            time.sleep(draw.uniform(0, options.updates * update))
            if len(kills) % 2:  # while a checkpoint is being written
                while not any(run.glob(".step-*")) and child.process.poll() is None:
                    time.sleep(0.0005)
                time.sleep(draw.uniform(0, 0.03))
            if child.process.poll() is not None:
                raise SystemExit("the run was done before all kills: raise --updates")
            saving = any(run.glob(".step-*"))
            one = draw if options.ranks > 1 and len(kills) % 4 in (1, 2) else None
            child.kill(one)
            check(run, expected)
            most = max(most, len(lines(run)))
            kills.append({"updates": len(lines(run)), "saving": saving, "ranks": 1 if one else options.ranks})
            print(f"kill {len(kills)}: {kills[-1]}", file=sys.stderr)
        child = start("run")
        wait_for(child, run, steps)
        check(run, expected)
        ends = [
            {path.name: path.read_bytes() for path in find_checkpoint(place / name).iterdir()}
            for name in ("whole", "run")
        ]
        metrics, said = lines(run), (place / "run.log").read_text()
    result = {
        "ranks": options.ranks,
        "arguments": options.arguments,
        "updates": steps,
        "update_s": update,
        "start_s": loading,
        "kills": kills,
        "kills_before_the_first_update": early,
        "kills_while_saving": sum(kill["saving"] for kill in kills),
        "goals": {
            f"{len(kills)} kills, {len(kills)} bitwise continuations": metrics == expected and ends[0] == ends[1],
            "every start said that it went on bit for bit": said.count("bit for bit") >= len(kills),
        },
    }
    save("resume", result, ("torch",), options.print_only, options.output)


main()
