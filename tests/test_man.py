"""The manual pages: options as the parser has them, sections in order, no warnings, and examples that run.

Every line in EXAMPLES that begins with `$ ` is run, `> ` lines continue it, in the order of the page and in one
directory that holds small inputs under the names that the pages use. Lines below a command are its standard output. A
block under the comment `parsed, not run` would only load a model again: its commands get --print-config.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iqc import cli

MAN = Path(__file__).resolve().parents[1] / "man"
PAGES = sorted(MAN.glob("*.1"))
ORDER = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO"]
EXTRA = {"iqc-stream": ["STANDARDS"]}
REQUIRED = {"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"}
SANDBOXED = {"iqc-eval", "iqc-rl"}  # their examples run programs
BLOCK = r'^(\.\\" parsed, not run\n)?\.Bd -literal.*?\n(.*?)^\.Ed'
ESCAPES = {"\\e": "\\", "\\&": "", "\\-": "-"}


def page_id(path: Path) -> str:
    return path.stem


def test_every_command_has_a_page_and_every_page_a_command():
    assert {page.stem for page in PAGES} == {"iqc", "iqc-stream", *(f"iqc-{name}" for name in cli.COMMANDS)}


def test_options_are_those_of_the_parser(repo, environment):
    command = [sys.executable, repo / "man" / "options.py", "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stale_page_is_noticed(repo):
    spec = importlib.util.spec_from_file_location("man_options", repo / "man" / "options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (MAN / "iqc-head.1").read_text()
    assert module.filled("iqc-head", text) == text
    assert module.filled("iqc-head", text.replace("How many records.", "How many?")) == text
    with pytest.raises(ValueError, match="marks"):
        module.filled("iqc-head", text.replace('.\\" end options\n', ""))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_sections_are_in_order(page):
    found = re.findall(r"^\.Sh (.+)$", page.read_text(), re.MULTILINE)
    allowed = ORDER + EXTRA.get(page.stem, [])
    assert found == [name for name in allowed if name in found], "unknown sections, or another order"
    assert page.stem == "iqc-stream" or set(found) >= REQUIRED


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_has_its_own_name_and_sees_pages_that_exist(page):
    text = page.read_text()
    assert f".Dt {page.stem.upper()} 1\n" in text and f".Nm {page.stem}\n" in text
    seen = set(re.findall(r"^(?:\.|\.It )Xr (iqc\S*) 1", text, re.MULTILINE))
    assert seen - {page.stem} <= {other.stem for other in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_mandoc_has_nothing_to_say(page):
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "style", page], capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert not said, "\n".join(said)


def examples(page: Path) -> list[tuple[str, list[str]]]:
    """(command, lines of output shown) of a page."""
    found: list[tuple[str, list[str]]] = []
    section = re.search(r"^\.Sh EXAMPLES\n(.*?)^\.Sh ", page.read_text(), re.MULTILINE | re.DOTALL)
    for mark, block in re.findall(BLOCK, section[1], re.MULTILINE | re.DOTALL):
        for raw in block.splitlines():
            line = re.sub(r"\\.", lambda match: ESCAPES[match[0]], raw)
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("> "):
                found[-1] = (found[-1][0] + "\n" + line[2:], [])
            else:
                found[-1][1].append(line)
        if mark:
            count = sum(raw.startswith("$ ") for raw in block.splitlines())
            found[-count:] = [(f"{line} --print-config", []) for line, _ in found[-count:]]
    return found


@pytest.fixture(scope="module")
def shell(environment, tmp_path_factory):
    """Run a line of bash in a directory, with `iqc` as the checkout's executable; returns the process."""
    programs = tmp_path_factory.mktemp("bin")
    (programs / "iqc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m iqc "$@"\n')
    (programs / "iqc").chmod(0o755)
    variables = environment | {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "MANPAGER": "cat"}
    variables |= {"IQC_TRAIN_BATCH_ROWS": "1", "IQC_RL_GROUP": "2"}  # the same commands on less work

    def run(line: str, where: Path) -> subprocess.CompletedProcess:
        command = ["bash", "-o", "pipefail", "-c", line]
        return subprocess.run(command, cwd=where, env=variables, capture_output=True, text=True, timeout=60)

    return run


INPUTS = """\
iqc crawl-clean src -q -o docs.jsonl.zst
iqc tokenizer train docs.jsonl.zst --vocab-size 4096 -q -o tok
iqc pack docs.jsonl.zst --tokenizer tok -q -o all.jsonl.zst
iqc head all.jsonl.zst -n 1 -q -o rows.jsonl.zst
iqc tasks -n 4 -q -o tasks.jsonl.zst
iqc train rows.jsonl.zst --model nano-loop --tokenizer tok --epochs 0 -q -o run
"""


@pytest.fixture(scope="module")
def inputs(shell, repo, tmp_path_factory) -> Path:
    """The inputs that the pages' examples name, made from the checkout's own source."""
    from iqc.history.build import build_history, life

    place = tmp_path_factory.mktemp("inputs")
    shutil.copytree(repo / "iqc", place / "src", ignore=shutil.ignore_patterns("__pycache__"))
    sources = sorted((repo / "iqc" / "streams").glob("*.py"))
    build_history(place / "repo.git", life([(path.name, path.read_text()) for path in sources], 60))
    done = shell("set -e\n" + INPUTS, place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_examples_run_and_print_what_is_shown(page, shell, inputs, tmp_path):
    if page.stem in SANDBOXED:
        from iqc.sandbox import available

        if not (layer := available()[0]).holds:
            pytest.skip(f"no isolation here: {layer.detail}")
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True, symlinks=True)
    commands = examples(page)
    assert any("iqc " in line for line, _ in commands)
    for line, expected in commands:
        done = shell(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if expected:
            assert done.stdout.splitlines() == expected, line
