"""What `-h` costs against importing Typer: `python tests/bench/startup.py`.

`python -c 'import typer'` is the floor of every program written with Typer. It and the help of each command run in
turns on one processor; the figures are medians of processor seconds. The factor of the median and of the slowest
command are given.
"""

import argparse
import sys

from measure import REPO, middle, save, timed

sys.path.insert(0, str(REPO))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    from iqc.cli import COMMANDS

    commands = {"import typer": [sys.executable, "-c", "import typer"], "iqc": [sys.executable, "-m", "iqc", "-h"]}
    commands |= {f"iqc {name}": [sys.executable, "-m", "iqc", name, "-h"] for name in COMMANDS}
    for command in commands.values():  # compiled files and the disk's cache are there from now on
        timed(command, cores=1)
    runs = {name: [] for name in commands}
    for _ in range(asked.repeats):
        for name, command in commands.items():
            runs[name].append(timed(command, cores=1))
    seconds = {name: middle(timings).cpu for name, timings in runs.items()}
    floor = seconds.pop("import typer")
    factors = {name: value / floor for name, value in seconds.items()}
    slowest = max(factors, key=factors.__getitem__)
    found = {
        "import_typer_cpu_seconds": floor,
        "median_factor": sorted(factors.values())[len(factors) // 2],
        "slowest": {slowest: factors[slowest]},
        "factors": factors,
        "repeats": asked.repeats,
    }
    save("startup", found, ["typer"], asked.print_only)


if __name__ == "__main__":
    main()
