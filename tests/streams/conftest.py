"""Helpers for streams: reading any input whole, foreign containers, transforms that workers can import."""

import subprocess
import sys
from pathlib import Path

import pytest

from iqc.errors import IqcError
from iqc.streams import runner


def _read(name):
    """(records, digest or None, lineage or None) of one input, read as a stage reads it."""
    source = runner.StreamInput([str(name)])
    records = list(runner.read_records(source))
    found = source.results()[0]
    return records, found.digest, found.lineage


@pytest.fixture(scope="session")
def read():
    return _read


@pytest.fixture(scope="session")
def fails():
    """Whether an input is refused with an error for a user; what it gave otherwise."""

    def check(name):
        try:
            return _read(name)
        except IqcError:
            return None

    return check


TRANSFORMS = '''
import os, time
from iqc.errors import BadRecord
from iqc.streams.runner import Settings, run_stage
from iqc.streams.stage import Dropped, rng

def pick(record):
    """Keep, double, drop or refuse by the record alone."""
    number = record["n"]
    if number % 7 == 3:
        return [Dropped(record, "sevens", number, 3)]
    if number % 11 == 5:
        raise BadRecord("an eleven")
    draw = rng(1, "pick", record["id"]).random()
    return [record | {"draw": draw}] * (2 if draw < 0.3 else 1)

def slow(record):
    if "STARTED" in os.environ:
        open(os.environ["STARTED"], "w").close()
    time.sleep(0.2)
    return [record]

def suicide(record):
    if record["n"] == 40_000:
        os.kill(os.getpid(), 9)
    return [record]

def make_pick(): return pick
def make_slow(): return slow
def make_suicide(): return suicide
def make_nothing():
    from iqc.errors import IqcError
    raise IqcError("no table", where="rules.toml")
'''


@pytest.fixture(scope="session")
def stages(tmp_path_factory, environment):
    """A function that runs a stage of these transforms in a new process, as a command would: stage(factory, *args)."""
    place = tmp_path_factory.mktemp("stages")
    (place / "transforms.py").write_text(TRANSFORMS)
    (place / "iqc-stage").write_text(
        "import sys\n"
        "from iqc.options import command_app, stage_options\n"
        "import iqc.cli, transforms, types\n"
        "app = command_app()\n"
        "@app.command()\n"
        "@stage_options()\n"
        "def stage(settings, factory: str = 'make_pick') -> None:\n"
        "    transforms.run_stage('stage', {'factory': factory}, settings, getattr(transforms, factory))\n"
        "module = types.ModuleType('iqc.commands.stage')\n"
        "module.app = app\n"
        "sys.modules['iqc.commands.stage'] = module\n"
        "iqc.cli.COMMANDS['stage'] = 'A stage'\n"
        "iqc.cli.main(sys.argv[1:])\n"
    )
    env = environment | {"PYTHONPATH": f"{environment['PYTHONPATH']}:{place}"}

    class Stages:
        path = place

        def command(self, factory, *args):
            return [sys.executable, str(place / "iqc-stage"), "stage", "--factory", factory, *map(str, args)]

        def start(self, factory, *args, started=None, **how):
            """A running stage; `slow` makes the file `started` when it has its first record."""
            mark = {"STARTED": str(started)} if started else {}
            return subprocess.Popen(self.command(factory, *args), env=env | mark, **how)

        def run(self, factory, *args, stdin=b"", **how):
            how = {"capture_output": True, "timeout": 60} | how
            return subprocess.run(self.command(factory, *args), env=env, input=stdin, **how)

    return Stages()


@pytest.fixture(scope="session")
def sample_lines():
    """About 20 MB of JSON lines, three chunks, with blank lines in them."""
    pad = "x" * 400
    parts = []
    for n in range(45_000):
        parts.append(b'{"id":"%d","n":%d,"text":"%s"}' % (n, n, pad.encode()))
        if n % 997 == 0:
            parts.append(b"")
    return b"\n".join(parts) + b"\n"


@pytest.fixture(scope="session")
def samples(tmp_path_factory, sample_lines, iqc) -> Path:
    """sample.jsonl, and the same as sample.zst."""
    place = tmp_path_factory.mktemp("samples")
    (place / "sample.jsonl").write_bytes(sample_lines)
    assert iqc("head", "-n", "all", place / "sample.jsonl", "-o", place / "sample.zst").returncode == 0
    return place
