"""The documents: worked examples that work, flags that exist, every command documented.

CONTRIBUTING.md's fenced blocks are carried out in a copy of the checkout, in their order: a block with a path is that
file, `diff` is applied, `sh` is run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iqc import __version__, cli

REPO = Path(__file__).resolve().parents[1]
CONTRIBUTING = (REPO / "CONTRIBUTING.md").read_text("utf-8")
README = REPO / "README.md"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORKED = ["Add a stage", "Add a kernel", "Add a benchmark"]


def sections(text: str) -> dict[str, str]:
    """Title -> text of the second-level sections of a document."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout that an example may change."""
    place = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis")
    for name in ("iqc", "commands", "kernels", "man", "tests"):
        shutil.copytree(REPO / name, place / name, ignore=ignored)
    shutil.copy(REPO / "pyproject.toml", place)
    (place / "bin").mkdir()
    for name, program in (("python", ""), ("iqc", "-m iqc")):
        (place / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {program} "$@"\n')
        (place / "bin" / name).chmod(0o755)
    return place


def carry_out(kind: str, path: str, body: str, place: Path, environment: dict[str, str]) -> None:
    """Do what a fenced block shows."""
    if path:
        assert not (place / path).exists(), f"{path} exists: the example needs another name"
        (place / path).write_text(body, "utf-8")
        return
    command = {"diff": ["git", "apply", "--unidiff-zero", "-"], "sh": ["bash", "-e", "-o", "pipefail"]}[kind]
    variables = environment | {"PYTHONPATH": str(place), "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    variables |= {"OMP_NUM_THREADS": "1", "GIT_CEILING_DIRECTORIES": str(place.parent)}
    done = subprocess.run(command, input=body, cwd=place, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("number", range(len(WORKED)), ids=WORKED)
def test_worked_examples_work(number, checkout, environment):
    found = sections(CONTRIBUTING)
    for earlier in WORKED[:number]:  # an example may use the files of one before it
        for _, path, body in BLOCK.findall(found[earlier]):
            if path and not (checkout / path).exists():
                (checkout / path).write_text(body, "utf-8")
    blocks = BLOCK.findall(found[WORKED[number]])
    assert {"python", "sh"} <= {kind for kind, _, _ in blocks}
    for kind, path, body in blocks:
        carry_out(kind, path, body, checkout, environment)


def test_worked_examples_keep_the_house_style(tmp_path):
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if ruff is None:
        pytest.skip("ruff is not installed")
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    for kind, path, body in BLOCK.findall(CONTRIBUTING):
        if kind == "python":
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(body, "utf-8")
    for how in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([ruff, *how, "."], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def flags_of(name: str) -> set[str]:
    """All flags of a command and its subcommands."""
    command = cli.load(name)
    every = [command, *getattr(command, "commands", {}).values()]
    return {"-h", "--help"} | {
        flag for each in every for param in each.params for flag in (*param.opts, *param.secondary_opts)
    }


def shown_calls(text: str) -> list[tuple[str, list[str]]]:
    """(command, flags) of every `iqc COMMAND ...` in code, up to the end of the command."""
    code = "\n".join(body for kind, _, body in BLOCK.findall(text) if kind in ("sh", "console"))
    code += "\n" + "\n".join(re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)))
    calls = re.findall(r"\biqc ([a-z][a-z-]*)([^|\n;&]*)", code)
    return [(name, re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", rest)) for name, rest in calls]


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "CHANGELOG.md", "README.md", "kernels/README.md"])
def test_commands_and_flags_shown_exist(document):
    if not (REPO / document).exists():
        pytest.skip(f"{document} is absent")
    made_up = {"sample"}  # the stage that CONTRIBUTING adds; its own example runs it
    for name, flags in shown_calls((REPO / document).read_text("utf-8")):
        if name in made_up:
            continue
        assert name in cli.COMMANDS, f"{document} shows iqc {name}"
        assert set(flags) <= flags_of(name), f"{document} shows iqc {name} {set(flags) - flags_of(name)}"


def test_paths_shown_exist():
    made = {path for _, path, _ in BLOCK.findall(CONTRIBUTING) if path}
    for path in re.findall(r"`((?:iqc|commands|kernels|man|tests|recipes)/[\w./-]*)`", BLOCK.sub("", CONTRIBUTING)):
        assert path in made or (REPO / path).exists() or re.search("[A-Z]{4}", path), path


def test_recipes_shown_exist():
    justfile = next((REPO / name for name in ("Justfile", "justfile") if (REPO / name).exists()), None)
    if justfile is None:
        pytest.skip("there is no Justfile")
    known = set(re.findall(r"^@?([a-z][\w-]*)[^:=\n]*:(?!=)", justfile.read_text("utf-8"), re.MULTILINE))
    shown = set(re.findall(r"(?:`|\$ )just ([a-z][\w-]*)", CONTRIBUTING))
    assert shown and shown <= known, shown - known


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_documented(name):
    command = cli.load(name)
    assert command.help and len(command.help) > 10
    page = (REPO / "man" / f"iqc-{name}.1").read_text("utf-8")
    assert re.search(r"^\.Nd \S", page, re.MULTILINE)
    if README.exists():
        text = README.read_text("utf-8")
        assert re.search(rf"`(?:iqc )?{name}\b[^`\n]*`|iqc {name}\b", text), f"README.md does not name {name}"


def test_changelog_knows_this_version():
    assert re.search(
        rf"^## (Unreleased \()?{re.escape(__version__)}\b", (REPO / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
