"""What this machine has and which parts of iqc work on it: one check a thing, each with what it is for and a remedy.

Every module is imported in a process of its own, because one that is installed may still fail, or end the process, when
it is loaded. Nothing is changed, nothing is fetched. Two checks are no lookups: the sandbox is attacked
(`iqc.sandbox.doctor`), and every grammar of the language table is loaded.
"""

import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from iqc import __version__
from iqc.cores import usable_cores
from iqc.errors import IqcError

OK, MISSING, BROKEN = "ok", "missing", "broken"


@dataclass(slots=True)
class Check:
    """One thing: its state, what was seen, what it is for, what would help. Without a `core` thing nothing works."""

    area: str
    name: str
    state: str
    seen: str
    enables: str = ""
    remedy: str = ""
    core: bool = False

    @property
    def fails(self) -> bool:
        return self.core and self.state != OK

    def json(self) -> dict:
        return asdict(self)


# Distribution: (module, what it is for). tests/test_doctor.py holds both tables against pyproject.toml.
NEEDED = {
    "typer": ("typer", "the command line"),
    "rich": ("rich", "text for terminals"),
    "tqdm": ("tqdm", "progress"),
    "orjson": ("orjson", "records"),
    "zstandard": ("zstandard", "streams"),
    "numpy": ("numpy", "packed sequences"),
    "datasketch": ("datasketch", "dedup"),
    "pybase64": ("pybase64", "training rows"),
    "scipy": ("scipy", "mix --law"),
    "resiliparse": ("resiliparse.extract.html2text", "crawl-clean of web archives"),
    "tree-sitter": ("tree_sitter", "syntax"),
    "tree-sitter-language-pack": ("tree_sitter_language_pack", "grammars"),
    "tokenizers": ("tokenizers", "tokenizer, pack"),
    "tiktoken": ("tiktoken", "pack: the engine that encodes"),
    "safetensors": ("safetensors", "checkpoints"),
    "torch": ("torch", "train, rl, generate"),
}
OPTIONAL = {
    "ray": ("ray", "--ray ADDRESS", "pip install 'iqc[ray]'"),
    "deepspeed": ("deepspeed", "--engine deepspeed", "pip install 'iqc[deepspeed]'"),
    "tensorboard": ("tensorboard", "--tensorboard DIR", "pip install 'iqc[tensorboard]'"),
    "transformers": ("transformers", "loading exported models, and the tests that do", "pip install transformers"),
}
TOOLS = {  # program: (arguments that print its version, what it is for, what provides it)
    "git": (["--version"], "repos, triplets", "install git 2.36 or later"),
    "cc": (["--version"], "Triton compiles its launchers with it", "install a C compiler"),
    "man": (["--version"], "iqc help", "install man-db, or read `iqc COMMAND -h`"),
    "mandoc": (None, "checking the manual pages", "install mandoc"),
    "zstd": (["--version"], "looking into streams by hand: zstd -dc", "install zstd"),
}
GIT = (2, 36)  # the first that has what iqc.history asks of it


def checks() -> list[Check]:
    """All checks, in the order in which they are shown. Takes some seconds, most of them PyTorch's."""
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        torch, triton = pool.submit(_torch), pool.submit(_triton)  # the longest first
        needed = [pool.submit(_needed, name, *row) for name, row in NEEDED.items() if name != "torch"]
        optional = [pool.submit(_optional, name, *row) for name, row in OPTIONAL.items()]
        clash, grammars = pool.submit(_kernels_clash), pool.submit(_grammars)
        found = _machine() + [future.result() for future in needed] + [torch.result()[0], grammars.result()]
        found += torch.result()[1:] + [triton.result()] + [future.result() for future in optional] + [clash.result()]
    return found + [_tool(name, *row) for name, row in TOOLS.items()] + _sandbox()


def _machine() -> list[Check]:
    enough = sys.version_info >= (3, 11)
    python = f"{platform.python_version()}, {sys.executable}"
    return [
        Check("machine", "iqc", OK, f"{__version__}, {Path(__file__).parent}"),
        Check("machine", "python", OK if enough else BROKEN, python, remedy="" if enough else "use 3.11", core=True),
        Check("machine", "system", OK, f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Check("machine", "cores", OK, f"{usable_cores()} usable of {os.cpu_count()}"),
        Check("machine", "memory", OK, _memory()),
        Check("machine", "disk", OK, f"{_gib(shutil.disk_usage('.').free)} free in {os.getcwd()}"),
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _memory() -> str:
    """Total and available; the limit of the control group too, where there is a lower one."""
    try:
        table = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    except OSError:
        return _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    total, available = (int(table[name]) << 10 for name in ("MemTotal", "MemAvailable"))
    text = f"{_gib(available)} available of {_gib(total)}"
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(name).read_text().strip()
        except OSError:
            continue
        if limit.isdecimal() and int(limit) < total:
            text += f", limited to {_gib(int(limit))}"
    return text


def _ask(code: str, here: bool = False) -> tuple[str, str]:
    """(what the code printed last, "") in a Python of its own, or ("", why not).

    `here` puts the working directory first on its path, as `python -m` does; the executable `iqc` does not.
    """
    command = [sys.executable, *([] if here else ["-P"]), "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "", "no answer in 120 seconds"
    said, errors = (text.decode("utf-8", "replace").strip().splitlines() for text in (done.stdout, done.stderr))
    if done.returncode == 0 and said:
        return said[-1], ""
    if done.returncode < 0:
        return "", f"ended by signal {-done.returncode}"
    return "", errors[-1] if errors else f"exit status {done.returncode}"


def _version(distribution: str, module: str) -> tuple[str, str]:
    """(state, the version or why there is none)."""
    code = f"import {module}\nfrom importlib.metadata import version\nprint(version({distribution!r}))"
    return _state(module, *_ask(code))


def _state(module: str, said: str, why: str) -> tuple[str, str]:
    """(state, what a Python that imported the module said, or why it said nothing)."""
    if said:
        return OK, said
    absent = importlib.util.find_spec(module.partition(".")[0]) is None
    return (MISSING, "not installed") if absent else (BROKEN, why)


def _needed(distribution: str, module: str, enables: str) -> Check:
    return _needed_row(distribution, *_version(distribution, module), enables)


def _needed_row(distribution: str, state: str, seen: str, enables: str) -> Check:
    remedy = "" if state == OK else f"pip install --force-reinstall {distribution}, in the version iqc asks for"
    return Check("needed", distribution, state, seen, enables, remedy, core=True)


def _optional(distribution: str, module: str, enables: str, remedy: str) -> Check:
    state, seen = _version(distribution, module)
    return Check("optional", distribution, state, seen, enables, "" if state == OK else remedy)


def _grammars() -> Check:
    """Loads the grammar of every language of the table, and parses with it."""
    root = str(Path(__file__).parent.parent)  # of this iqc, which may be a checkout that is not installed
    code = (
        f"import sys\nsys.path.append({root!r})\n"
        "from iqc.syntax.languages import languages\nfrom iqc.syntax.parse import parse\nbad = {}\n"
        "for name in languages():\n"
        "    try:\n        parse('x', name)\n"
        "    except Exception as error:\n        bad[name] = str(error)\n"
        "import json\nprint(json.dumps([len(languages()), bad]))"
    )
    said, why = _ask(code)
    count, bad = json.loads(said) if said else (0, {"all": why})
    if not bad:
        return Check("needed", "grammars", OK, f"{count} languages", "crawl-clean, repos, fim, triplets", core=True)
    seen = "; ".join(f"{name}: {text}" for name, text in bad.items())
    remedy = "pip install --force-reinstall tree-sitter tree-sitter-language-pack==0.13.0"
    return Check("needed", "grammars", BROKEN, seen, "crawl-clean, repos, fim, triplets", remedy, core=True)


def _torch() -> list[Check]:
    """PyTorch and the GPUs it sees; a machine whose driver has a GPU that PyTorch does not see is broken.

    One process for both: importing PyTorch takes more processor time than all other modules.
    """
    code = (
        "import json, torch\nfrom importlib.metadata import version\ndevice = torch.cuda.get_device_properties\n"
        "try: seen = [device(number) for number in range(torch.cuda.device_count())]\n"
        "except Exception: seen = []\n"  # a driver too old for this PyTorch, say
        "print(json.dumps([version('torch'), [[d.name, d.total_memory, f'{d.major}.{d.minor}'] for d in seen]]))"
    )
    said, why = _ask(code)
    version, devices = json.loads(said) if said else ("", [])
    torch = _needed_row("torch", *_state("torch", version, why), NEEDED["torch"][1])
    enables = "training and generation beyond small models"
    gpus = [
        Check("optional", f"gpu {number}", OK, f"{name}, {_gib(memory)}, compute capability {capability}", enables)
        for number, (name, memory, capability) in enumerate(devices)
    ]
    if gpus:
        return [torch, *gpus]
    if Path("/proc/driver/nvidia/version").exists():
        remedy = "install a build of PyTorch for this driver: https://pytorch.org/get-started"
        seen = why or "the driver is here, PyTorch sees no device"
        return [torch, Check("optional", "gpu", BROKEN, seen, enables, remedy)]
    return [torch, Check("optional", "gpu", MISSING, "none", enables, "small presets run on the processor")]


def _triton() -> Check:
    """Whether Triton loads, has a GPU to compile for, and its interpreter runs a function (of its own library)."""
    code = (
        "import os\nos.environ['TRITON_INTERPRET'] = '1'\nimport triton, triton.language as tl\n"
        "from triton.backends import backends\n"
        "gpu = ' and '.join(name for name, one in backends.items() if one.driver.is_active()) or 'no GPU'\n"
        "try:\n    tl.swizzle2d[(1,)](0, 1, 2, 2, 1)\n    interpreter = 'its interpreter runs'\n"
        "except Exception as error:\n    interpreter = f'its interpreter does not run ({error})'\n"
        "print(f'{triton.__version__}, {gpu}, {interpreter}')"
    )
    state, seen = _state("triton", *_ask(code))
    remedy = "" if state == OK else "it comes with PyTorch's builds for GPUs on Linux"
    return Check("optional", "triton", state, seen, "kernels on a GPU; its interpreter runs them anywhere", remedy)


def _kernels_clash() -> Check:
    """Whether `import kernels`, from this directory, is something else than the package of Hugging Face."""
    code = (
        "import importlib.util, json, os\nfrom importlib.metadata import distribution\n"
        "spec = importlib.util.find_spec('kernels')\nfile = spec.origin if spec else None\nown = ''\n"
        "try:\n    own = os.path.abspath(distribution('kernels').locate_file('kernels'))\n"
        "except Exception:\n    pass\n"
        "print(json.dumps([file, own]))"
    )
    said, why = _ask(code, here=True)
    file, own = json.loads(said) if said else (None, "")
    name, enables = "kernels clash", "importing Transformers"
    if why:
        return Check("optional", name, BROKEN, why, enables)
    if file and str(Path(file).parent) != own:
        remedy = "work in another directory, or remove that __init__.py: it hides the package of Hugging Face"
        return Check("optional", name, BROKEN, f"`import kernels` is {file}", enables, remedy)
    return Check("optional", name, OK, f"none; `kernels` is {own}" if file else "none", enables)


def _tool(name: str, arguments: list[str] | None, enables: str, remedy: str) -> Check:
    path = shutil.which(name)
    if path is None:
        return Check("tools", name, MISSING, "not on the PATH", enables, remedy)
    if arguments is None:
        return Check("tools", name, OK, path, enables)
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("tools", name, BROKEN, str(error), enables, remedy)
    seen = next(iter((done.stdout or done.stderr).splitlines()), "")
    old = name == "git" and tuple(map(int, re.findall(r"\d+", seen)[:2])) < GIT
    state = BROKEN if done.returncode or old else OK
    return Check("tools", name, state, seen, enables, "" if state == OK else remedy)


def _sandbox() -> list[Check]:
    """The layers of the wall, then every promise under attack. A promise that does not hold fails the whole."""
    from iqc.sandbox import Sandbox, available
    from iqc.sandbox.doctor import doctor

    enables = "tasks, eval and rl: they run programs nobody has read"
    layers = available()
    if not layers[0].holds:
        remedy = "run as root, or allow user namespaces: sysctl user.max_user_namespaces, kernel.apparmor_restrict_*"
        return [Check("sandbox", "isolation", MISSING, layers[0].detail, enables, remedy)]
    has = ", ".join(layer.name for layer in layers if layer.holds)
    found = [Check("sandbox", "isolation", OK, has, enables)]
    try:
        with Sandbox(1) as sandbox:
            probes = doctor(sandbox)
    except IqcError as error:
        return [*found, Check("sandbox", "probes", BROKEN, error.what, enables, error.remedy or "", core=True)]
    remedy = "do not run programs from others here; report it"
    for probe in probes:
        state, seen = (OK, "holds under attack") if probe.holds else (BROKEN, probe.seen)
        found.append(Check("sandbox", probe.promise, state, seen, "", "" if probe.holds else remedy, core=True))
    return found


def text(found: Iterable[Check]) -> str:
    """A line a check under its area's name; the remedy on a line of its own."""
    lines: list[str] = []
    for area, group in itertools.groupby(found, key=lambda check: check.area):
        rows = list(group)
        width = max(len(check.name) for check in rows)
        lines += ["", area] if lines else [area]
        for check in rows:
            enables = f"  ({check.enables})" if check.enables else ""
            lines.append(f"  {check.state:<8} {check.name:<{width}}  {check.seen}{enables}")
            if check.remedy and check.state != OK:
                lines.append(f"{'':11}{check.remedy}")
    return "\n".join(lines)
