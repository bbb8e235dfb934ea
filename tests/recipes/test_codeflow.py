"""The recipe of code-flow data, run on a repository made of the standard library's files; `pack` takes its records."""

import email
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iqc.history.build import build_history, life
from iqc.streams.runner import StreamInput, read_records
from iqc.tokens.render import kind_of, render

KINDS = {
    "repositories": {"repository"},
    "fim-files": {"fim", "document"},
    "fim-repositories": {"fim", "document"},
    "triplets": {"triplet"},
    "commits": {"commit"},
    "pulls": {"pull"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, environment, repo):
    """Everything that the recipe writes, for a repository with one pull request."""
    place = tmp_path_factory.mktemp("codeflow")
    sources = sorted(Path(email.__file__).parent.glob("*.py"))
    build_history(place / "email.git", life([(f"email/{path.name}", path.read_text()) for path in sources], commits=60))
    log = ["git", f"--git-dir={place / 'email.git'}", "log", "--first-parent", "--format=%H"]
    commit = subprocess.run(log, capture_output=True, check=True, text=True).stdout.split()[10]
    pull = {
        "url": "https://api.github.com/repos/python/email/pulls/7",
        "number": 7,
        "title": "A change of the email package",
        "body": "What it is for, in a sentence that is long enough.",
        "state": "closed",
        "merged_at": "2020-10-01T00:00:00Z",
        "merge_commit_sha": commit,
        "user": {"login": "someone"},
        "base": {"ref": "main"},
        "head": {"ref": "change", "sha": commit},
    }
    (place / "events.jsonl").write_text(json.dumps(pull) + "\n")
    (place / "bin").mkdir()
    (place / "bin" / "iqc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m iqc "$@"\n')
    (place / "bin" / "iqc").chmod(0o755)
    env = environment | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "EVENTS": str(place / "events.jsonl")}
    command = ["bash", repo / "recipes" / "codeflow.sh", place / "out", f"python/email={place / 'email.git'}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return place / "out"


@pytest.mark.parametrize("name", KINDS)
def test_every_stream_has_records_of_its_kind_that_pack_takes(made, name):
    records = list(read_records(StreamInput([str(made / f"{name}.jsonl.zst")])))
    assert records and {kind_of(record) for record in records} == KINDS[name]
    assert all(render(record).segments for record in records)
    counts = json.loads((made / f"{name}.counts.json").read_text())
    assert counts["kept"] == len(records)


def test_files_of_a_repository_come_behind_what_they_import(made):
    (record,) = read_records(StreamInput([str(made / "repositories.jsonl.zst")]))
    paths = [file["path"] for file in record["files"]]
    assert paths.index("email/charset.py") < paths.index("email/header.py")  # header imports charset


def test_a_second_run_does_not_write_into_the_first(made, repo, environment):
    command = ["bash", repo / "recipes" / "codeflow.sh", made, "x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode and "exist" in done.stderr
