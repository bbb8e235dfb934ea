"""Records of histories against `git apply`: `python tests/bench/history_apply.py REPO... --records 10000`.

Mines each repository for triplets and for commits, densely. Of each record R_old is written to a directory of its own,
`git apply` runs there on the patch, and what then lies there is compared with R_new: paths, modes, bytes. Prints how
many records agreed, and what became of every commit by kind of record and rule. Fails at the first record that differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from measure import REPO, save

sys.path.insert(0, str(REPO))

DENSE = ["--window", "0-100", "--density", "100", "--min-score", "0"]
KINDS = {
    "triplet of one commit": [*DENSE, "--horizon", "1"],
    "triplet of up to 8": [*DENSE, "--horizon", "8"],
    "triplet, dependencies": ["--window", "20-80", "--density", "12", "--min-score", "0", "--state", "dependencies"],
    "commit": ["--as", "commit", "--no-context"],
}


def write(files: list[dict], place: Path) -> None:
    """Text files and links as they were; a binary file has no part in the patch."""
    for file in files:
        if file["text"] is None:
            continue
        path = place / file["path"]
        if place not in path.parents or ".." in path.parts:
            sys.exit(f"a record names {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = file["text"].encode(file["encoding"])
        if file["mode"] == "120000":
            path.symlink_to(os.fsdecode(data))
        else:
            path.write_bytes(data)
            path.chmod(0o755 if file["mode"] == "100755" else 0o644)


def found(place: Path) -> dict[str, tuple[str, bytes]]:
    state = {}
    for folder, folders, names in os.walk(place):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in names + links:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                entry = ("120000", os.fsencode(os.readlink(path)))
            else:
                entry = ("100755" if os.stat(path).st_mode & 0o100 else "100644", Path(path).read_bytes())
            state[os.path.relpath(path, place)] = entry
    return state


def check(record: dict, place: Path) -> None:
    """Ends the run when the record does not hold."""
    place.mkdir()
    write(record["old"]["files"], place)
    env = {"PATH": os.environ["PATH"], "HOME": str(place.parent), "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {"GIT_CEILING_DIRECTORIES": str(place.parent), "GIT_CONFIG_GLOBAL": os.devnull}
    patch = record["patch"].encode(record["metadata"]["patch_encoding"])
    if patch:
        done = subprocess.run(["git", "apply", "-"], cwd=place, env=env, input=patch, capture_output=True)
        if done.returncode:
            sys.exit(f"{record['id']}: {done.stderr.decode(errors='replace')}")
    new = {
        file["path"]: (file["mode"], file["text"].encode(file["encoding"]))
        for file in record["new"]["files"]
        if file["text"] is not None
    }
    if found(place) != new:
        sys.exit(f"{record['id']}: git apply gives another state")
    shutil.rmtree(place)


def mined(repository: Path, flags: list[str], place: Path) -> tuple[Path, dict]:
    out, summary = place / "out.zst", place / "summary.json"
    command = [sys.executable, "-m", "iqc", "triplets", "-q", f"{repository.resolve().parent.name}={repository}"]
    command += [*flags, "-o", str(out), "--summary", str(summary)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(REPO)})
    return out, json.loads(summary.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repositories", metavar="REPO", nargs="+", type=Path)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="the JSON goes there, not to results/")
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    from iqc.streams.runner import StreamInput, read_records

    rows, applied = [], {kind: 0 for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="iqc-apply-") as folder:
        place = Path(folder)
        share = -(-asked.records // (len(asked.repositories) * len(KINDS)))
        for repository in asked.repositories:
            for kind, flags in KINDS.items():
                out, summary = mined(repository, flags, place)
                row = {"repository": repository.resolve().parent.name, "kind": kind, "kept": summary["kept"]}
                rows.append(row | {"dropped": summary["dropped"]})
                print(rows[-1], file=sys.stderr)
                for record in islice(read_records(StreamInput([str(out)])), share):
                    check(record, place / "tree")
                    applied[kind] += 1
    save("history_apply", {"applied": applied, "differing": 0, "rows": rows}, [], asked.print_only, asked.output)


if __name__ == "__main__":
    main()
