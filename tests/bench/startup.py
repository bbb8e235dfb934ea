"""What `-h` costs against importing Typer: `python tests/bench/startup.py`.

`python -c 'import typer'` is the floor of every program written with Typer. It and the help of each command, called as
the installed script calls it, run in turns on one processor, from compiled files. What else the machine does only adds
to a run, so the figures are the least processor seconds of all runs. Given are the factor of the median command and of
the slowest.
"""

import argparse
import sys

from measure import REPO, save, timed

sys.path.insert(0, str(REPO))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    from iqc.cli import COMMANDS

    iqc = [sys.executable, "-c", "from iqc.cli import main; main()"]
    commands = {"import typer": [sys.executable, "-c", "import typer"], "iqc": [*iqc, "-h"]}
    commands |= {f"iqc {name}": [*iqc, name, "-h"] for name in COMMANDS}
    for command in commands.values():  # compiled files and the disk's cache are there from now on
        timed(command, cores=1)
    seconds = dict.fromkeys(commands, float("inf"))
    for _ in range(asked.repeats):
        for name, command in commands.items():
            seconds[name] = min(seconds[name], timed(command, cores=1).cpu)
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
