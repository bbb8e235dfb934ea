"""The doctor knows what the project depends on, and tells what works from what is missing and what is broken."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from iqc import cli, doctor
from iqc.doctor import BROKEN, MISSING, OK, Check


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9-]+", line)[0] for line in requirements}


def test_the_tables_are_those_of_the_project(repo):
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    assert set(doctor.NEEDED) == names(project["dependencies"])
    optional = project["optional-dependencies"]
    extras = {name for key in ("ray", "deepspeed", "tensorboard") for name in names(optional[key])}
    assert extras <= set(doctor.OPTIONAL)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory that also comes first on every Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_module_is_there_missing_or_broken(place):
    assert doctor._needed("orjson", "orjson", "records").state == OK
    absent = doctor._optional("no-such-thing", "no_such_thing", "nothing", "make it")
    assert (absent.state, absent.remedy, absent.fails) == (MISSING, "make it", False)
    assert doctor._needed("no-such-thing", "no_such_thing", "nothing").fails
    (place / "orjson.py").write_text("raise ImportError('libsomething.so.1: cannot open shared object file')\n")
    broken = doctor._needed("orjson", "orjson", "records")
    assert broken.state == BROKEN and "libsomething" in broken.seen and broken.fails and "orjson" in broken.remedy
    (place / "orjson.py").write_text("import os\nos.abort()\n")
    broken = doctor._needed("orjson", "orjson", "records")
    assert (broken.state, broken.seen) == (BROKEN, "ended by signal 6")


def test_triton_says_whether_it_has_a_gpu_and_its_interpreter_runs(place):
    for name in ("triton", "triton/backends"):
        (place / name).mkdir()
    (place / "triton/__init__.py").write_text("__version__ = '9.1'\n")
    drivers = "class Driver:\n    def __init__(self, active): self.driver, self.is_active = self, lambda: active\n"
    (place / "triton/backends/__init__.py").write_text(drivers + "backends = dict(a=Driver(True), b=Driver(False))\n")
    language = place / "triton/language.py"
    language.write_text("swizzle2d = {(1,): lambda *sizes: None}\n")
    found = doctor._triton()
    assert (found.state, found.seen, found.fails) == (OK, "9.1, a, its interpreter runs", False)
    language.write_text("swizzle2d = {}\n")
    assert "its interpreter does not run" in doctor._triton().seen
    language.write_text("raise ImportError('gone')\n")
    broken = doctor._triton()
    assert broken.state == BROKEN and "gone" in broken.seen and broken.remedy


def test_torch_and_the_gpus_come_from_one_process(place):
    (place / "torch.py").write_text("raise ImportError('gone')\n")
    torch, gpu = doctor._torch()
    assert (torch.name, torch.state, torch.fails) == ("torch", BROKEN, True) and "gone" in torch.seen
    assert gpu.state != OK
    info = place / "torch-9.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.1\n")
    (place / "torch.py").write_text(
        "class cuda:\n    name, total_memory, major, minor = 'H', 2**30, 9, 0\n"
        "    get_device_properties = staticmethod(lambda number: cuda)\n"
        "    device_count = staticmethod(lambda: 2)\n"
    )
    torch, *gpus = doctor._torch()
    assert (torch.state, torch.seen) == (OK, "9.1")
    assert [gpu.seen for gpu in gpus] == ["H, 1.0 GiB, compute capability 9.0"] * 2


def test_a_package_kernels_that_hides_the_other_is_found(place):
    assert doctor._kernels_clash().state == OK
    (place / "kernels").mkdir()
    (place / "kernels/ours.py").touch()
    assert doctor._kernels_clash().state == OK  # a directory without __init__.py comes after every package
    (place / "kernels/__init__.py").touch()
    clash = doctor._kernels_clash()
    assert clash.state == BROKEN and str(place / "kernels") in clash.seen and not clash.fails
    info = place / "kernels-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 1.0\n")
    assert doctor._kernels_clash().state == OK  # it is the installed one


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo git version 2.36.0", OK),
        ("echo git version 2.100.1.windows", OK),
        ("echo git version 2.35.9", BROKEN),
        ("echo git version 1.99", BROKEN),
        ("echo git version 2.40.0; exit 3", BROKEN),
        (None, MISSING),
    ],
)
def test_git_is_new_enough(place, monkeypatch, script, state):
    monkeypatch.setenv("PATH", str(place))
    if script:
        (place / "git").write_text(f"#!/bin/sh\n{script}\n")
        (place / "git").chmod(0o755)
    found = doctor._tool("git", *doctor.TOOLS["git"])
    assert found.state == state and bool(found.remedy) == (state != OK)


def test_grammars_are_loaded(place):
    assert doctor._grammars().state == OK
    (place / "tree_sitter_language_pack.py").write_text("raise ImportError('gone')\n")
    broken = doctor._grammars()
    assert broken.fails and "gone" in broken.seen


def test_the_machine_is_described(place):
    found = {check.name: check.seen for check in doctor._machine()}
    assert str(place) in found["disk"] and re.match(r"[\d.]+ GiB", found["memory"])
    assert found["cores"].startswith(f"{len(os.sched_getaffinity(0))} usable")


def test_text_has_a_line_a_check_and_its_remedy():
    found = [
        Check("first", "a", OK, "1.0", "this", "not shown"),
        Check("first", "longer", MISSING, "none", "that", "get it"),
        Check("second", "b", BROKEN, "dead"),
    ]
    assert doctor.text(found).splitlines() == [
        "first",
        "  ok       a       1.0  (this)",
        "  missing  longer  none  (that)",
        "           get it",
        "",
        "second",
        "  broken   b  dead",
    ]


def test_exit_status_tells_whether_the_core_works(monkeypatch, capsys):
    core = Check("needed", "x", OK, "1.0", core=True)
    for extra, status in (
        (Check("optional", "y", BROKEN, "bad"), 0),
        (Check("needed", "z", BROKEN, "bad", core=True), 1),
    ):
        monkeypatch.setattr(doctor, "checks", lambda extra=extra: [core, extra])
        assert cli.run(["doctor"]) == status
        assert capsys.readouterr().out == doctor.text([core, extra]) + "\n"
        assert cli.run(["doctor", "--json"]) == status
        report = json.loads(capsys.readouterr().out)
        assert report["works"] is (status == 0) and [Check(**row) for row in report["checks"]] == [core, extra]


def test_a_promise_that_the_sandbox_breaks_fails(monkeypatch):
    from iqc import sandbox
    from iqc.sandbox import Layer
    from iqc.sandbox import doctor as probes

    monkeypatch.setattr(sandbox, "available", lambda: [Layer("namespaces", False, "none here")])
    [absent] = doctor._sandbox()
    assert (absent.state, absent.seen, absent.fails) == (MISSING, "none here", False) and absent.remedy
    monkeypatch.setattr(sandbox, "available", lambda: [Layer("namespaces", True)])
    monkeypatch.setattr(sandbox, "Sandbox", lambda workers: _Nothing())
    rows = [probes.Probe("held", True, "denied"), probes.Probe("not held", False, "it got through")]
    monkeypatch.setattr(probes, "doctor", lambda _: rows)
    _, held, broken = doctor._sandbox()
    assert (held.state, broken.state, broken.seen, broken.fails) == (OK, BROKEN, "it got through", True)


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_the_command_on_this_machine(iqc):
    done = iqc("doctor", "--json", timeout=300)
    report = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert states["python"] == states["orjson"] == states["grammars"] == OK
    assert done.returncode == (0 if report["works"] else 1)
    for check in report["checks"]:
        assert check["state"] in (OK, MISSING, BROKEN) and check["seen"]
        assert check["state"] == OK or check["remedy"], check
