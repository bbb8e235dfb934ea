"""Tens of single-bit faults on one rank and on two, on the local engine and under ZeRO, held against the matrix."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from iqc.train.ranks import Ranks

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_faults", BENCH / "faults.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def held_to_the_matrix(bench, found, layouts):
    lines, wrong = bench.table(found)
    assert wrong == [] and {line["layout"] for line in lines} == set(layouts)
    audited = [line for line in lines if line["audited"]]
    assert audited and all(line["seen on audited"] for line in audited)
    assert any(line["seen on others"] < line["others"] for line in lines)  # which is what auditing is for


def test_faults_of_one_rank(bench):
    held_to_the_matrix(bench, bench.trials("local-1", Ranks(), 2, 0), ["local-1"])


def test_faults_of_two_ranks(bench, torchrun, tmp_path):
    pytest.importorskip("deepspeed")
    layouts, out = ["zero-1", "zero-3"], tmp_path / "found.json"
    world = ["--world", "--layouts", ",".join(layouts), "--each", 1, "--output", out]
    done = torchrun(2, BENCH / "faults.py", *world, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    held_to_the_matrix(bench, json.loads(out.read_text()), layouts)
