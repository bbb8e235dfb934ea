"""Do the quickstart's numbers move, whatever the seed? The recipe for several seeds, and the spread of its figures.

python tests/bench/quickstart.py [--seeds 3] [--keep DIR] [--print-only]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import REPO, save

MEASURES = {  # before and after: (file, measure)
    "FIM edit similarity": (("fim-1-fresh", "edit_similarity"), ("fim-3-mid-32k", "edit_similarity")),
    "FIM exact match": (("fim-1-fresh", "exact_match"), ("fim-3-mid-32k", "exact_match")),
    "RL pass rate": (("tasks-1-before-rl", "pass@1"), ("tasks-2-after-rl", "pass@1")),
}


def run(seed: int, place: Path) -> dict:
    """One quickstart: its seconds, and every measure before and after. One that is in `place` already is taken."""
    done = place / "seconds"
    if not done.exists():
        done.write_text(str(quickstart(seed, place)))

    def value(name: str, measure: str) -> float:
        return json.loads((place / "work" / "scores" / f"{name}.json").read_text())[measure]["mean"]

    figures = {measure: [value(*before), value(*after)] for measure, (before, after) in MEASURES.items()}
    return {"seed": seed, "seconds": round(float(done.read_text()), 1)} | figures


def quickstart(seed: int, place: Path) -> float:
    """Run the recipe; returns its seconds."""
    started = time.perf_counter()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"SEED": str(seed), "PATH": path}
    with open(place / "log", "w") as log:
        subprocess.run(
            ["bash", REPO / "recipes" / "quickstart.sh", place / "work"],
            env=environment,
            stdout=log,
            stderr=log,
            check=True,
        )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave logs and outputs of seed N in DIR/N")
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            place = options.keep / str(seed) if options.keep else Path(scratch)
            place.mkdir(parents=True, exist_ok=True)
            rows.append(run(seed, place))
        print(rows[-1], file=sys.stderr)
    goals = {
        "FIM edit similarity rises for every seed": all(
            r["FIM edit similarity"][1] > r["FIM edit similarity"][0] for r in rows
        ),
        "RL pass rate rises for every seed": all(r["RL pass rate"][1] > r["RL pass rate"][0] for r in rows),
        "six minutes on two cores": all(row["seconds"] <= 360 for row in rows),
    }
    save("quickstart", {"seeds": rows, "goals": goals}, ("torch", "tokenizers"), print_only=options.print_only)


main()
