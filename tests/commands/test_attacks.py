"""What a hostile user tries: side streams over records, full disks, closed descriptors, numbers that are none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iqc import cli
from iqc.errors import IqcError
from iqc.streams.writer import AtomicFile

ROOT = Path(__file__).resolve().parents[2]


def iqc(*args: object, **settings) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | settings.pop("env", {})
    command = [sys.executable, "-m", "iqc", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, **settings)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id":"a","text":"x = 1\\n","language":"python"}\n')
    return path


def test_the_summary_does_not_replace_the_records(records: Path, tmp_path: Path):
    out = tmp_path / "out.zst"
    assert iqc("fim", "-q", records, "-o", out, "--summary", out).returncode != 0


def test_a_side_stream_does_not_replace_an_input(records: Path, tmp_path: Path):
    before = records.read_bytes()
    for option in ("--summary", "--explain"):
        assert iqc("fim", "-q", records, "-o", tmp_path / "out.zst", option, records).returncode != 0
        assert records.read_bytes() == before


def test_a_summary_that_cannot_be_written_is_found_before_the_work(records: Path, tmp_path: Path):
    out = tmp_path / "out.zst"
    assert iqc("fim", "-q", records, "-o", out, "--summary", tmp_path / "missing" / "s.json").returncode != 0
    assert not out.exists()


def test_a_commit_that_fails_leaves_nothing(tmp_path: Path):
    file = AtomicFile(tmp_path / "out")
    file.write(b"x")
    (full := os.open("/dev/full", os.O_WRONLY), os.dup2(full, file.file.fileno()), os.close(full))
    with pytest.raises(IqcError, match="out: cannot be written"), file:
        file.commit()
    assert not list(tmp_path.iterdir())


def shell(script: str, records: Path) -> subprocess.CompletedProcess:
    """A script in which {} is the records and $0 is Python."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["sh", "-c", script.replace("{}", str(records)), sys.executable]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    "words", ["--version", "-h", "stats {}", "help head", "completion bash", "eval list", "fim -q {} -o {}.out"]
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_descriptors(records: Path, words: str, closed: str):
    before = records.read_bytes()
    done = shell(f'exec "$0" -m iqc {words} {closed}', records)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", "") and "fim" not in words)
    assert records.read_bytes() == before


def test_records_do_not_go_to_a_closed_output(records: Path):
    done = shell('exec "$0" -m iqc fim -q {} >&-', records)
    assert done.returncode == 1 and "standard output is closed" in done.stderr
    done = shell('exec "$0" -m iqc stats - <&-', records)
    assert done.returncode == 1 and "standard input: closed" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        "fim --rate 1 --levels line=nan {}",
        "fim --seed 99999999999999999999 {}",
        "dedup --threshold nan {}",
        "head -n 99999999999999999999999 {}",
        "head -n \uff11 {}",
        "tasks -n 1 --seed 99999999999999999999",
        "tasks -n 1 --seed -1",
        "fim --shard-mib 99999999999999999999 {}",
        "fim --stretch 99999999999999999999 {}",
        "pack --tokenizer t --context 99999999999999999999 {}",
        "pack --tokenizer t --window 99999999999999999999 {}",
        "triplets --horizon 99999999999999999999 {}",
        "dedup --bands 99999999999 {}",
        "dedup --rows 99999999999 {}",
    ],
)
def test_numbers_that_are_none(records: Path, args: str):
    done = iqc(*args.format(records).split(), "--plain", "-q")
    assert "internal error" not in done.stderr
    assert done.returncode in (0, 2)
    assert done.returncode == 0 or done.stderr.count("\n") >= 2  # what is wrong, and a remedy


@pytest.mark.parametrize(
    "args",
    [
        "train --batch-rows 99999999999 {}",
        "train --micro-rows 99999999999 {}",
        "train --steps 99999999999 {}",
        "train --context 99999999999 {}",
        "tokenizer train --vocab-size 99999999999 {}",
        "tokenizer train --context 1 {}",
        "rl --from r --group 99999999999 {}",
        "generate --model m --samples 99999999999 {}",
        "eval run fim --data d --model m --batch 99999999999",
    ],
)
def test_sizes_that_no_machine_has(records: Path, tmp_path: Path, args: str):
    done = iqc(*args.format(records).split(), cwd=tmp_path)
    assert done.returncode == 2 and "is not in the range" in done.stderr


@pytest.mark.parametrize(("ks", "remedy"), [("1,10", "--samples 10"), ("0", "from 1 on"), ("-1", "from 1 on")])
def test_more_than_was_drawn_cannot_pass(tmp_path: Path, ks: str, remedy: str):
    done = iqc("eval", "run", "fim", "--data", "d", "--model", "m", "-n", 2, f"--pass-at={ks}", cwd=tmp_path)
    assert done.returncode == 2 and remedy in done.stderr


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ImportError("No module named 'x'"), "No module named 'x'\n  `iqc doctor`"),
        (MemoryError(), "out of memory\n  use fewer --jobs"),
        (FileExistsError(17, "File exists", "p"), "p: File exists\n  remove it"),
        (PermissionError(13, "Permission denied", "p"), "p: Permission denied\n  name a path"),
        (IsADirectoryError(21, "Is a directory", "p"), "p: Is a directory\n  name a file"),
        (OSError(28, "No space left on device"), "No space left on device\n"),
    ],
)
def test_errors_of_the_machine_have_a_remedy(monkeypatch, capsys, error: Exception, shown: str):
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(cli, "load", fail)
    assert cli.run(["stats"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"iqc stats: {shown}") and "internal error" not in said


def test_ascii_terminals(records: Path):
    done = iqc("stats", records, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["fim", "RECORDS", "-o", ""],
        ["fim", "RECORDS", "--summary", ""],
        ["fim", "RECORDS", "--explain", ""],
        ["fim", "RECORDS", "--summary", "-"],
        ["fim", "RECORDS", "--explain", "-"],
        ["fim", ""],
        ["stats", ""],
        ["pack", "RECORDS", "--tokenizer", ""],
        ["train", "RECORDS", "--model", ""],
        ["train", "RECORDS", "--from", ""],
        ["rl", "RECORDS", "--from", ""],
        ["export", "", "-o", "out"],
        ["export", "run", "-o", ""],
        ["report", ""],
        ["lineage", ""],
    ],
)
def test_an_unset_shell_variable_is_wrong_usage(records: Path, tmp_path: Path, args: list[str]):
    done = iqc(*[str(records) if arg == "RECORDS" else arg for arg in args], cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 2, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [records.name]
