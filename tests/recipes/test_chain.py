"""A link of the chain by its recipes, on a few sources: what is there is not made again, what is missing is
said, and the checkpoint's lineage names every step. All stages in one process: tests/train/test_chain.py."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iqc.model.checkpoint import save_model
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.streams.lineage import checked_lineage
from iqc.tokens import tokenizer
from iqc.train.run import TOKENIZER, find_checkpoint, read_metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory, environment, repo):
    """Run a recipe in a directory with files as a source, a tokenizer, and what `pretrain` and its mixture left."""
    place = tmp_path_factory.mktemp("chain")
    for part in ("data", "out"):
        (place / part).mkdir()
    texts = Path(argparse.__file__).read_text().split("\n\n")
    for path, part in (("data/file.jsonl", texts[::2]), ("out/pretrain.mixed.jsonl.zst", texts[1::2])):
        lines = [json.dumps({"id": f"{number}", "text": text[:1500]}) for number, text in enumerate(part) if text]
        (place / path).write_text("\n".join(lines) + "\n")  # plain text is read by any name
    tokenizer.train(iter(texts), 400).save(place / "out" / "tokenizer", context=128)
    files = [place / "out" / "tokenizer" / name for name in TOKENIZER]
    save_model(place / "out" / "pretrain", Decoder(ModelConfig(400, 32, 64, 2, 4, 2, 128)), files=files)
    (place / "bin").mkdir()
    for name, command in (("iqc", f'"{sys.executable}" -m iqc'), ("python", f'"{sys.executable}"')):
        (place / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (place / "bin" / name).chmod(0o755)
    env = environment | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def call(recipe: str, *args: object, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", repo / "recipes" / recipe, *map(str, args)]
        return subprocess.run(command, cwd=place, env=env | variables, capture_output=True, text=True, timeout=300)

    return call, place


def test_a_link_of_the_chain(run):
    call, place = run
    asked = {"STAGES": "anneal", "TOTAL": "3k", "EPOCHS": "9", "CONTEXT": "128"}
    command = ("chain.sh", "out", "data", "nano", "--steps", "1", "--batch-rows", "1", "-q")
    done = call(*command, **asked)
    assert done.returncode == 0, done.stderr
    assert "--- anneal: without repository" in done.stderr and "--- anneal: out/anneal/Annealed" in done.stderr
    lineage = checked_lineage(json.loads((place / "out/anneal/Annealed/lineage.json").read_text()))
    nodes = {node["command"]: node for node in lineage["stages"].values()}
    assert sorted(nodes) == ["fim", "mix", "pack", "train"] and len(lineage["stages"]) == 4
    assert nodes["fim"]["options"]["rate"] == 0.1 and len(nodes["mix"]["inputs"]) == 2  # files, and stage1
    assert nodes["train"]["inputs"][-1]["label"] == "checkpoint"
    assert len(read_metrics(place / "out/anneal")) == 1
    before = find_checkpoint(place / "out/anneal").stat().st_mtime_ns
    again = call(*command, **asked)
    assert again.returncode == 0 and "iqc mix" not in again.stderr, again.stderr
    assert find_checkpoint(place / "out/anneal").stat().st_mtime_ns == before


def test_a_stage_without_what_it_starts_from_and_one_that_does_not_exist(run):
    call, _ = run
    done = call("stage.sh", "sft", "elsewhere", "data")
    assert done.returncode == 2 and "no such stage" in done.stderr
