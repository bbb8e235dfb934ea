"""Every promise holds here under attack, as root and as an ordinary user, and the probes can fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iqc.sandbox.doctor import doctor

NOBODY = 65534
PROGRAM = """
import json
from iqc.sandbox import Sandbox
from iqc.sandbox.doctor import doctor
with Sandbox(1, unsafe={unsafe}) as sandbox:
    print(json.dumps({{probe.promise: [probe.holds, probe.seen] for probe in doctor(sandbox)}}))
"""


def test_every_promise_holds(sandbox, host):
    before = host()
    assert [probe for probe in doctor(sandbox) if not probe.holds] == []
    assert host() == before


@pytest.fixture
def as_user():
    """Runs a program as a user without privileges, with a Python and a checkout that this user can read."""
    root = Path(__file__).resolve().parents[2]

    def run(program: str) -> dict:
        if os.getuid() != 0:
            command, who = [sys.executable, "-B", "-c", program], {}
        else:
            system = shutil.which("python3", path="/usr/bin:/usr/local/bin")
            if system is None:
                pytest.skip("no system Python that another user could run")
            command, who = [system, "-B", "-c", program], {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            probe = (
                f"import os, sys; sys.exit(sys.version_info < (3, 11) or not os.access({str(root / 'iqc')!r}, os.R_OK))"
            )
            can = [system, "-c", probe]
            if subprocess.run(can, **who, cwd="/").returncode != 0:
                pytest.skip("another user cannot read this checkout, or the system's Python is older than 3.11")
        done = subprocess.run(
            command, **who, cwd="/", env={"PYTHONPATH": str(root), "HOME": "/tmp"}, capture_output=True, text=True
        )
        if "no isolation for untrusted code here" in done.stderr:
            pytest.skip("no user namespaces here: " + done.stderr.strip().splitlines()[-1])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_every_promise_holds_for_an_ordinary_user(as_user):
    assert {k: seen for k, (holds, seen) in as_user(PROGRAM.format(unsafe=False)).items() if not holds} == {}


def test_without_the_wall_the_probes_say_so(as_user):
    broken = {promise for promise, (holds, _) in as_user(PROGRAM.format(unsafe=True)).items() if not holds}
    assert broken >= {
        "the network cannot be reached",
        "files of the host cannot be read",
        "nothing is written on the host",
        "processes of the host cannot be signalled",
    }
