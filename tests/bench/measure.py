"""What the benchmarks share: a timed command, and a result file that says on what and with what it was measured."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

REPO = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"


@dataclass(slots=True)
class Timing:
    """Seconds of one run: on the clock, and of processors (its children too)."""

    wall: float
    cpu: float


def timed(command: Sequence[object], cores: int | None = None) -> Timing:
    """Run a command on that many processors; CalledProcessError when it fails."""
    usable = sorted(os.sched_getaffinity(0))[:cores]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as when installed
    started = time.perf_counter()
    with subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.DEVNULL,
        env=env | {"PYTHONPATH": str(REPO)},
        preexec_fn=lambda: os.sched_setaffinity(0, usable),  # noqa: PLW1509  (there are no threads)
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Timing(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)


def middle(timings: Sequence[Timing]) -> Timing:
    return Timing(median(item.wall for item in timings), median(item.cpu for item in timings))


def save(name: str, found: dict, packages: Sequence[str], print_only: bool = False, output: Path | None = None) -> None:
    """Print the result and write it to results/NAME.json, or to `output`."""
    described = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(described, cwd=REPO, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # a machine without git
        commit = ""
    model = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    about = {
        "command": " ".join(["python", *sys.argv]),
        "commit": os.environ.get("IQC_COMMIT") or commit,  # a copied tree may not know its own
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {
            "cpu": model[0] if model else platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "system": f"{platform.system()} {platform.release()}",
            "load": os.getloadavg()[0],
        },
    }
    text = json.dumps(about | {"result": found}, indent=1) + "\n"
    print(text, end="")
    if not print_only:
        place = output or RESULTS / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
