"""The recipes of a stage and of the chain, run on a few sources: what is there is not made again, what is missing is
said, and the checkpoint's lineage names every step. All stages in one process: tests/train/test_chain.py."""

import argparse
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iqc.streams.lineage import checked_lineage
from iqc.train.run import find_checkpoint, read_metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory, environment, repo):
    """Run a recipe in a directory with sources: general text and files."""
    place = tmp_path_factory.mktemp("chain")
    (place / "data").mkdir()
    texts = [part for module in (argparse, inspect) for part in Path(module.__file__).read_text().split("\n\n")]
    for name, part in (("general", texts[::2]), ("file", texts[1::2])):
        lines = [json.dumps({"id": f"{name}{number}", "text": text[:1500]}) for number, text in enumerate(part) if text]
        (place / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (place / "bin").mkdir()
    for name, command in (("iqc", f'"{sys.executable}" -m iqc'), ("python", f'"{sys.executable}"')):
        (place / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (place / "bin" / name).chmod(0o755)
    env = environment | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def call(recipe: str, *args: object, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", repo / "recipes" / recipe, *map(str, args)]
        return subprocess.run(command, cwd=place, env=env | variables, capture_output=True, text=True, timeout=300)

    return call, place


def test_a_chain_of_two_stages(run):
    call, place = run
    asked = {"STAGES": "pretrain anneal", "TOTAL": "3k", "EPOCHS": "9", "CONTEXT": "128"}
    command = ("chain.sh", "out", "data", "nano-loop", "--steps", "1", "--batch-rows", "1", "-q")
    done = call(*command, **asked)
    assert done.returncode == 0, done.stderr
    assert "--- pretrain: without math" in done.stderr and "--- anneal: out/anneal/Annealed" in done.stderr
    lineage = checked_lineage(json.loads((place / "out/anneal/Annealed/lineage.json").read_text()))
    commands = [node["command"] for node in lineage["stages"].values()]
    assert sorted(commands) == ["fim", "fim", "mix", "mix", "pack", "pack", "train", "train"]
    rates = {node["options"]["rate"] for node in lineage["stages"].values() if node["command"] == "fim"}
    assert rates == {0.5, 0.1}  # of pretrain and of anneal
    assert len(read_metrics(place / "out/anneal")) == 1
    before = find_checkpoint(place / "out/anneal").stat().st_mtime_ns
    again = call(*command, **asked | {"STAGES": "anneal"})
    assert again.returncode == 0 and "iqc mix" not in again.stderr, again.stderr
    assert find_checkpoint(place / "out/anneal").stat().st_mtime_ns == before


def test_a_stage_without_what_it_starts_from_and_one_that_does_not_exist(run):
    call, _ = run
    done = call("stage.sh", "sft", "elsewhere", "data")
    assert done.returncode == 2 and "no such stage" in done.stderr
