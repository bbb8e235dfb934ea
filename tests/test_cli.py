"""The executable: help that loads nothing heavy, frozen flags, sources of settings, exit statuses, outside commands.

tests/flags.txt lists every command with its arguments and flags. After a deliberate change:
    IQC_FREEZE_FLAGS=1 python -m pytest tests/test_cli.py -k flags
"""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc import cli
from iqc.options import _toml

HEAVY = {
    "torch", "triton", "deepspeed", "numpy", "rich", "tree_sitter", "tree_sitter_language_pack", "datasketch",
    "pydantic", "ray", "transformers", "tokenizers", "tqdm",
}  # fmt: skip
EXISTING = [name for name in cli.COMMANDS if importlib.util.find_spec(f"iqc.commands.{name.replace('-', '_')}")]
FLAGS = Path(__file__).parent / "flags.txt"


def walk(command, name):
    """(name, command) of a command and of all commands below it."""
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from walk(below, f"{name} {child}")


def leaves():
    return [(name, command) for top in EXISTING for name, command in walk(cli.load(top), top)]


PROBE = """
import contextlib, io, json, sys
from iqc.cli import run
found = {}
for args in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = run(args)
    found[" ".join(args)] = [status, len(out.getvalue()), sorted({name.split(".")[0] for name in sys.modules})]
print(json.dumps(found))
"""


def test_help_of_every_command_imports_nothing_heavy(environment):
    asked = [["-h"], ["--version"], *([*name.split(), "-h"] for name, _ in leaves())]
    done = subprocess.run([sys.executable, "-c", PROBE, json.dumps(asked)], env=environment, capture_output=True)
    for args, (status, length, modules) in json.loads(done.stdout).items():
        assert status == 0 and length > 5 and not HEAVY & set(modules), (args, HEAVY & set(modules))


BESIDE_TYPER = """
import contextlib, io, sys
import typer
before = set(sys.modules)
from iqc.cli import COMMANDS, run
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()):
        run([name, "-h"])
print(*sorted(set(sys.modules) - before))
"""


def test_help_imports_little_beside_typer_and_the_command(environment):
    done = subprocess.run([sys.executable, "-c", BESIDE_TYPER], env=environment, capture_output=True, text=True)
    beside = [name for name in done.stdout.split() if not name.startswith(("typer.", "encodings.", "iqc.commands"))]
    assert beside == ["iqc", "iqc.cli", "iqc.errors", "iqc.options", "sysconfig"], done.stderr


def test_flags_are_frozen():
    lines = []
    for name, command in leaves():
        for param in command.params:
            flags = "/".join([*param.opts, *param.secondary_opts])
            lines.append(f"{name}\t{flags if param.param_type_name == 'option' else f'<{param.name}>'}")
    now = [line for line in lines if not line.endswith("--help")]
    if os.environ.get("IQC_FREEZE_FLAGS"):
        FLAGS.write_text("\n".join(now) + "\n")
    assert now == FLAGS.read_text().splitlines(), "say so in the change, and run this with IQC_FREEZE_FLAGS=1"


def test_every_command_has_help_for_every_option():
    for name, command in leaves():
        assert command.help, name
        assert all(getattr(param, "help", None) for param in command.params if param.name != "help"), name


def shown(done):
    """--print-config as {option: (value, source)}."""
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.decode().splitlines():
        setting, source = line.rsplit(" # ", 1)
        name, _, value = setting.removeprefix("# ").partition(" = ")
        found[name.strip()] = (value.strip(), source)
    return found


def test_a_setting_comes_from_flag_then_environment_then_file_then_default(iqc, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        '[head]\njobs = 4\ncount = "5"\nshard-mib = 9\n\n[stats]\nnothing = 1\n[tokenizer.train]\nx = 1\n[score]\n'
    )
    variables = {"IQC_HEAD_JOBS": "3", "IQC_HEAD_COUNT": "6", "IQC_STATS_COUNT": "8"}
    args = ["head", "--print-config", "--config", config]
    found = shown(iqc(*args, "-j", 2, env=variables))
    assert found["jobs"] == ("2", "flag")
    assert found["count"] == ('"6"', "environment")
    assert found["shard_mib"] == ("9", "config file")
    assert found["on_error"] == ('"fail"', "default")
    assert found["output"] == ("output", "default") or found["output"][1] == "default"
    assert shown(iqc(*args, env=variables))["jobs"] == ("3", "environment")
    assert shown(iqc(*args))["jobs"] == ("4", "config file")
    assert shown(iqc("head", "--print-config"))["jobs"] == ("0", "default")
    assert shown(iqc("head", "--print-config", env={"IQC_HEAD_CONFIG": str(config)}))["jobs"] == ("4", "config file")
    config.write_text("jobs = 7\n")
    assert shown(iqc(*args))["jobs"] == ("7", "config file")


def test_what_is_printed_is_a_config_file(iqc, tmp_path):
    config = tmp_path / "c.toml"
    odd = 'a "quoted" \\ name\n.zst'
    printed = iqc("head", "in put", "-o", odd, "--plain", "-j", 3, "--print-config").stdout
    config.write_bytes(printed)
    again = shown(iqc("head", "--config", config, "--print-config"))
    assert again["output"] == (json.dumps(odd), "config file") and again["inputs"] == ('["in put"]', "config file")
    assert again["plain"] == ("true", "config file")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[head]\nbogus = 1", b'no option "bogus"'),
        ("[head]\njobs = [1]", b"takes one value"),
        ('[head]\njobs = "many"', b"not a valid"),
        ("[head]\ncount = 2020-01-01", b"takes one value"),
        ('[head]\ninputs = "a"', b"takes a list"),
        ("head = 3", b"a table of options"),
        ("[head", b"cannot be read"),
        ('[head]\nconfig = "x"', b'no option "config"'),
        ("[head]\nplain = 1", b"takes true or false"),
        ('[head]\nplain = "no"', b"takes true or false"),
        ("[head]\ncount = true", b"takes one value"),
        ("[head]\njobs = true", b"takes one value"),
        ("[head]\ninputs = [{a = 1}]", b"takes a list"),
        ("[head]\ninputs = [[1]]", b"takes a list"),
        ("[head.more]\njobs = 1", b'no option "more"'),
        ("[haed]\njobs = 1\n[stast]", b"no command has the table [haed], [stast]"),
    ],
)
def test_a_wrong_config_file_is_wrong_usage(iqc, tmp_path, text, what):
    (tmp_path / "c.toml").write_text(text)
    done = iqc("head", "--config", tmp_path / "c.toml", "x")
    assert done.returncode == 2 and what in done.stderr


def test_a_nested_command_has_its_own_table(iqc, tmp_path):
    config = tmp_path / "c.toml"
    args = ["tokenizer", "train", "--config", config, "--print-config"]
    config.write_text("vocab-size = 310\n")
    assert shown(iqc(*args))["vocab_size"] == ("310", "config file")
    config.write_text("[train]\nvocab-size = 400\n")
    assert shown(iqc(*args))["vocab_size"] == ("400", "config file")
    config.write_text("[tokenizer.train]\nvocab-size = 500\n[train]\nsteps = 3\n")
    assert shown(iqc(*args))["vocab_size"] == ("500", "config file")
    assert shown(iqc("train", "--config", config, "--print-config"))["steps"] == ("3", "config file")


@given(st.text(st.characters(codec="utf-8")))
def test_any_string_is_printed_as_toml(text):
    assert tomllib.loads(f"x = {_toml(text)}")["x"] == text


@pytest.mark.parametrize("odd", ["\x7f", "\x00\x1f\n", "\U0001f600", "\u2028", '"\\'])
def test_odd_strings_are_printed_as_toml(odd):
    assert tomllib.loads(f"x = {_toml(odd)}")["x"] == odd


def test_exit_statuses(iqc, tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_bytes(b'{"id":"a"}\n')
    bad.write_bytes(b"bad\n")
    assert iqc("head", good, "-q", "--plain").stdout == good.read_bytes()
    assert iqc("head", bad).returncode == 1
    assert iqc("head", bad).stderr.startswith(f"iqc head: {bad}:1: not JSON".encode())
    assert iqc("head", tmp_path / "none").returncode == 1
    for wrong in (["head", "--nope"], ["head", "-n", "x"], ["head", "-n", "-1"], ["head", "-j", "-1"], ["--nope"]):
        assert iqc(*wrong).returncode == 2, wrong
    assert iqc("head", good, "--on-error", "ignore").returncode == 2
    assert iqc("head", "-h").returncode == iqc("--version").returncode == 0
    assert iqc("lineage", good).returncode == 1
    done = iqc("stats", good)
    assert done.returncode == 0 and b"records     1" in done.stdout
    assert json.loads(iqc("stats", good, "--json").stdout)["records"] == 1


def test_an_unknown_command_suggests(iqc):
    done = iqc("haed")
    assert done.returncode == 2 and b"Did you mean 'head'" in done.stderr


def test_a_program_on_the_path_is_a_command(iqc, tmp_path):
    program = tmp_path / "iqc-foo"
    program.write_text('#!/bin/sh\necho "foo $*"; cat; exit 7\n')
    program.chmod(0o755)
    (tmp_path / "iqc-head").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "iqc-head").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = iqc("foo", "-x", "a b", stdin=b"records", env=path)
    assert (done.stdout, done.returncode) == (b"foo -x a b\nrecords", 7)
    assert b"mine" not in iqc("head", "-h", env=path).stdout  # a command of ours is not replaced unseen


def test_closed_standard_streams_are_errors(environment, tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_bytes(b'{"id":"a"}\n')
    for closed, args in ((">&-", f"'{good}'"), ("<&-", "-"), ("<&-", "")):
        script = f"exec '{sys.executable}' -m iqc head --plain -q {args} {closed}"
        done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True)
        assert done.returncode in (1, 2) and b"internal error" not in done.stderr and done.stderr, (closed, args)


def test_standard_output_carries_records_alone(iqc, tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_bytes(b'{"id":"a"}\n')
    done = iqc("head", good, "--plain", "--summary", tmp_path / "s.json")
    assert done.stdout == good.read_bytes() and b"read 1, kept 1" in done.stderr and b"lineage" in done.stderr
    summary = json.loads((tmp_path / "s.json").read_bytes())
    expected = {"command": "head", "read": 1, "kept": 1, "dropped": {}, "bytes_in": 11, "bytes_out": 11}
    assert {key: summary[key] for key in expected} == expected and summary["seconds"] >= 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(iqc, shell):
    done = iqc("completion", shell)
    assert done.returncode == 0 and b"_IQC_COMPLETE" in done.stdout
    assert iqc("completion", "csh").returncode == 2


def test_completion_completes(iqc):
    done = iqc(env={"_IQC_COMPLETE": "complete_bash", "COMP_WORDS": "iqc he", "COMP_CWORD": "1"})
    assert {b"head", b"help"} <= set(done.stdout.split()) and b"stats" not in done.stdout
    done = iqc(env={"_IQC_COMPLETE": "complete_bash", "COMP_WORDS": "iqc head --sha", "COMP_CWORD": "2"})
    assert b"--shard-mib" in done.stdout


def test_help_of_a_command_and_of_none(iqc):
    assert iqc("help").returncode == 0 and iqc("help", "head").returncode == 0
    assert iqc("help", "nothing").returncode == 2
