"""What is built and installed is the tree: wheel, source distribution, editable install, and the checkout itself.

The wheel is used from `/`, with nothing of the checkout on the path.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from iqc import __version__, cli

REPO = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
MAPPED = {"iqc.commands": "commands", "iqc.kernels": "kernels", "iqc.recipes": "recipes"}


def run(*command: object, cwd: Path | str = "/", path: Path | None = None) -> str:
    """The standard output of a command that knows nothing of the checkout; `path` is its PYTHONPATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IQC_", "PYTHON"))}
    env = kept | {"PYTHONDONTWRITEBYTECODE": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def tracked() -> list[str]:
    """Every file of the checkout that belongs to it."""
    try:
        done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPO, capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is absent")
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.decode().split("\0") if name and (REPO / name).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout: a build writes beside its sources, and finds what an earlier one left there."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPO / name).read_bytes())
        target.chmod((REPO / name).stat().st_mode)
    return copy


def build(kind: str, source: Path, place: Path) -> Path:
    """A `wheel` or an `sdist` by the build backend itself, as pip and build call it."""
    code = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    return place / run(sys.executable, "-c", code, place, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory) -> Path:
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The directory that the wheel was installed into."""
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--no-index", "-t", target, wheel)
    return target


def test_the_packages_of_the_build_are_those_of_the_tree():
    found = {"iqc", *MAPPED}
    found |= {".".join(path.parent.relative_to(REPO).parts) for path in (REPO / "iqc").rglob("*/__init__.py")}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed)) and set(listed) == found
    modules = {path.parent for path in (REPO / "iqc").rglob("*.py")}
    assert {".".join(path.relative_to(REPO).parts) for path in modules} <= found, "a directory without __init__.py"


@pytest.mark.parametrize("name", MAPPED.values())
def test_no_init_in_what_lies_beside_the_package(name):
    reason = (
        f"{name}/__init__.py makes a top-level package `{name}` of whatever has the checkout on its path; that of "
        "kernels/ hides the package `kernels` of Hugging Face, without which Transformers cannot be imported"
    )
    assert not (REPO / name / "__init__.py").exists(), reason


def test_one_version():
    assert PROJECT["project"]["version"] == __version__


def test_the_wheel_has_every_module_page_and_table(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for name in tracked():
        top = name.split("/")[0]
        if top == "iqc" and name.endswith((".py", ".toml", "py.typed")):
            expected.add(name)
        elif top in MAPPED.values():
            expected.add(f"iqc/{name}")
        elif top == "man" and name.endswith(".1"):
            expected.add(f"iqc-{__version__}.data/data/share/man/man1/{Path(name).name}")
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == expected
    assert {f"iqc-{__version__}.dist-info/{name}" for name in ("entry_points.txt", "licenses/LICENSE")} <= names


def test_the_sdist_is_the_checkout(sdist, source):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked()) - {".gitignore"} <= names


def test_a_wheel_of_the_sdist_is_the_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "built").mkdir()
    again = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "built")

    def content(path):
        archive = zipfile.ZipFile(path)
        return {name: archive.read(name) for name in archive.namelist()}

    assert content(again) == content(wheel)


CALL_ALL = """
import contextlib, io, json, sys
import iqc, iqc.commands.head, iqc.kernels.loop_attention
from iqc.cli import COMMANDS, run
found = {}
for args in [[], *([name] for name in COMMANDS)]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        found[" ".join(args)] = [run([*args, "-h"]), out.getvalue()]
print(json.dumps([found, list(iqc.__path__), iqc.kernels.loop_attention.__file__]))
"""


def test_the_installed_wheel_answers_from_anywhere(installed):
    assert run(sys.executable, "-m", "iqc", "--version", path=installed).strip() == f"iqc {__version__}"
    help_text = run(sys.executable, "-m", "iqc", "-h", path=installed)
    assert all(name in help_text for name in cli.COMMANDS)
    found, package, kernel = json.loads(run(sys.executable, "-c", CALL_ALL, path=installed))
    for name, (status, text) in found.items():
        assert status == 0 and f"Usage: iqc {name}".strip() in text and "-h, --help" in text, name
    assert package == [str(installed / "iqc")] and kernel.startswith(str(installed))
    assert run(installed / "bin" / "iqc", "-h", path=installed) == help_text


def test_the_installed_wheel_does_its_work_and_finds_its_tables(installed, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"id":"a","text":"x"}\n' * 3)
    out = tmp_path / "out.jsonl.zst"
    run(sys.executable, "-m", "iqc", "head", "-q", "-n", "2", tmp_path / "in.jsonl", "-o", out, path=installed)
    stats = run(sys.executable, "-m", "iqc", "stats", "--json", out, path=installed)
    assert json.loads(stats)["records"] == 2
    code = "from iqc.syntax.languages import languages; print(len(languages()))"
    assert int(run(sys.executable, "-c", code, path=installed)) > 10
    code = "from iqc.train.stages import mixture_weights, stage; print(mixture_weights(stage('mid-32k'))['agent'])"
    assert float(run(sys.executable, "-c", code, path=installed)) == 10


def test_an_editable_install_finds_everything_and_leaks_nothing(source, tmp_path):
    venv.create(tmp_path / "venv", system_site_packages=True, with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    if sys.prefix != sys.base_prefix:  # the environment of the tests is not what that of a new one inherits
        (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-e", source)
    assert run(tmp_path / "venv/bin/iqc", "--version").strip() == f"iqc {__version__}"
    found, _, kernel = json.loads(run(python, "-c", CALL_ALL))
    assert all(status == 0 for status, _ in found.values()) and kernel == str(source / "kernels/loop_attention.py")
    code = "from importlib.util import find_spec; print([n for n in ('commands', 'kernels', 'tests') if find_spec(n)])"
    leaked = run(python, "-c", code)
    assert leaked == run(sys.executable, "-c", code)
    (source / "commands/later.py").write_text("here = True\n")
    try:
        run(python, "-c", "import iqc.commands.later")
    finally:
        (source / "commands/later.py").unlink()


def test_transformers_imports_with_the_checkout_as_working_directory():
    pytest.importorskip("transformers")
    out = run(sys.executable, "-c", "from transformers import LlamaForCausalLM as L; print(L.__name__)", cwd=REPO)
    assert out.split()[-1] == "LlamaForCausalLM"


def test_continuous_integration_is_the_readme_command():
    command = (REPO / ".ci/run").read_text().splitlines()[-1]
    assert command.endswith("just test") and os.access(REPO / ".ci/run", os.X_OK)
    assert re.search(rf"^\s*(?:\$ )?{re.escape(command)}$", (REPO / "README.md").read_text(), re.MULTILINE)


def test_every_recipe_installs_what_pip_can_read():
    """An empty list of extras is no requirement; `just quickstart` asks for none."""
    just = shutil.which("just") or shutil.which("just", path=str(Path(sys.executable).parent))
    if just is None:
        pytest.skip("just absent")
    for recipe, wanted in (("quickstart", "."), ("test", ".[test]"), ("lint", ".[dev]")):
        done = subprocess.run([just, "--dry-run", recipe], cwd=REPO, capture_output=True, text=True)
        assert re.findall(r"--editable '(.*)'", done.stderr) == [wanted], done.stderr
