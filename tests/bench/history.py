"""Mining of histories against a bare loop and PyDriller: `python tests/bench/history.py REPO... --as triplet`.

Work is commits whose changed files were read on both sides, compared and written with their patch. Ours is `iqc
triplets` at a density at which every commit of the line is a triplet of its own, or one of its other kinds; it judges
each and drops some, by message before they are read or by what was read. So there are two figures. Of the commits of
the line: ours goes through it and writes what it keeps, the bare loop and PyDriller write every one (PyDriller none of
the merges). Of the commits that ours keeps: the bare loop gets only those, and what ours read and dropped counts
against it. Each runs on one processor, in turns; seconds are of processors, Git's among them. No ratio is printed
unless the peers have the texts of ours for every commit that ours keeps.

`--memory` measures the most memory of our process on made histories of 2,000 to 200,000 commits instead.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from measure import REPO, middle, save, timed

sys.path.insert(0, str(REPO))

MINE = [sys.executable, "-m", "iqc", "triplets", "-q", "-j", "1"]
KINDS = {
    "triplet": ["--window", "0-100", "--density", "100", "--horizon", "1", "--min-score", "0"],
    "commit": ["--as", "commit"],
    "commit-without-context": ["--as", "commit", "--no-context"],
}
PEERS = [sys.executable, str(Path(__file__).with_name("history_peers.py"))]
# Our process alone (VmHWM): what rusage says of a process that was forked includes its parent.
WEIGHED = """
import sys
from pathlib import Path
from iqc.cli import run
status = run(sys.argv[1:])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
sys.exit(status)
"""


def records(path: Path) -> Iterator[dict]:
    from iqc.streams.runner import StreamInput, read_records

    yield from read_records(StreamInput([str(path)]))


def sides(record: dict) -> dict[str, list[str | None]]:
    """Path to both texts of one of our records."""
    found: dict[str, list[str | None]] = {}
    for k, side in enumerate(("old", "new")):
        for file in record[side]["files"]:
            found.setdefault(file["path"], [None, None])[k] = file["text"]
    return found


def comparable(record: dict) -> bool:
    """Whether the peers can read it as ours does: they know neither binary files nor encodings."""
    files = record["old"]["files"] + record["new"]["files"]
    return all(file["text"] is not None and (file["encoding"] == "utf-8" or file["text"].isascii()) for file in files)


def digest(rows: dict[str, list[str | None]]) -> bytes:
    return blake2b(repr(sorted(rows.items())).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pydriller_reads(record: dict) -> bool:
    """It has no text of a file that only moved or changed its mode, and mistakes an empty one for a change."""
    old, new = ({file["text"] for file in record[side]["files"]} for side in ("old", "new"))
    return "" not in old | new and not old & new


def peer_covered(path: Path) -> dict[str, bytes]:
    import orjson
    import zstandard

    found = {}
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
        rest = b""
        while block := reader.read(8 << 20):
            *lines, rest = (rest + block).split(b"\n")
            for record in map(orjson.loads, lines):
                rows = {file["path"]: [file["old"], file["new"]] for file in record["files"]}
                found[record["commit"]] = digest(rows)
    return found


def line_of(repository: Path) -> tuple[set[str], set[str]]:
    """The commits of the line that the peers can read, those with a parent and no submodule; and of them no merges."""
    command = ["git", "-C", repository, "log", "--first-parent", "--diff-merges=first-parent", "--raw", "--no-renames"]
    told = subprocess.run([*command, "--format=%x01%H %P"], capture_output=True, check=True).stdout
    line, simple = set(), set()
    for commit in told.split(b"\x01")[1:]:
        ids, _, changes = commit.partition(b"\n")
        name, *parents = ids.decode().split()
        if parents and b":160000 " not in changes and b" 160000 " not in changes:
            line.add(name)
            if len(parents) == 1:
                simple.add(name)
    return line, simple


def measure(repository: Path, kind: str, repeats: int, with_pydriller: bool, place: Path) -> dict:
    """Seconds of ours and of the peers over one repository."""
    mine = [*MINE, *KINDS[kind], repository, "-o", place / "ours.zst"]
    timed(mine, cores=1)
    kept, comparable_to = {}, {"bare": set(), "pydriller": set()}
    for record in records(place / "ours.zst"):
        commit = record["new"]["commit"]
        kept[commit] = digest(sides(record))
        if comparable(record):
            comparable_to["bare"].add(commit)
            if pydriller_reads(record):
                comparable_to["pydriller"].add(commit)
    line, simple = line_of(repository)
    peers = {"bare_of_line": line, "bare_of_kept": set(kept), "pydriller_of_line": simple}
    if not with_pydriller:
        del peers["pydriller_of_line"]
    times: dict[str, list] = {"ours": []} | {peer: [] for peer in peers}
    for turn in range(repeats):
        times["ours"].append(timed(mine, cores=1))
        for peer, wanted in peers.items():
            way = peer.partition("_")[0]
            if way == "pydriller" and turn:
                continue  # slow: once
            (place / "wanted.txt").write_text("\n".join(sorted(wanted)))
            command = [*PEERS, way, repository, place / "wanted.txt", place / "peer.zst"]
            times[peer].append(timed(command, cores=1))
            theirs = peer_covered(place / "peer.zst")
            to_compare = comparable_to[way] & wanted
            differing = {commit for commit in to_compare if theirs.get(commit) != kept[commit]}
            if differing or set(theirs) != wanted or not to_compare:
                sys.exit(f"{repository.name}: {peer} has {len(differing)} commits with other files: no figures")
    seconds = {name: middle(found).cpu for name, found in times.items()}
    row: dict = {"repository": repository.name, "kind": kind, "line": len(line), "kept": len(kept)}
    row |= {f"{name}_cpu_seconds": value for name, value in seconds.items()}
    row["ours_commits_per_second"] = len(line) / seconds["ours"]
    for peer, wanted in peers.items():
        row[f"{peer}_commits_per_second"] = len(wanted) / seconds[peer]
        ours = len(kept if peer == "bare_of_kept" else line) / seconds["ours"]
        row[f"against_{peer}"] = ours / row[f"{peer}_commits_per_second"]
    return row


def made_history(place: Path, commits: int) -> None:
    """A bare repository of so many commits, each of which changes one of 50 files by a few lines."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", place], check=True)
    with subprocess.Popen(["git", "-C", place, "fast-import", "--quiet"], stdin=subprocess.PIPE) as importer:
        for k in range(commits):
            message = f"Change the function number {k} of the module\n"
            text = "".join(f"def f{line}(x):\n    return x + {k if line == k % 37 else line}\n" for line in range(40))
            importer.stdin.write(
                f"commit refs/heads/main\ncommitter a <a@example.org> {1_000_000_000 + 600 * k} +0000\n"
                f"data {len(message)}\n{message}M 100644 inline src/m{k % 50}.py\ndata {len(text)}\n{text}\n".encode()
            )
    if importer.returncode:
        sys.exit("git fast-import failed")


def memory(place: Path, sizes: tuple[int, ...] = (2_000, 20_000, 200_000)) -> list[dict]:
    found = []
    for commits in sizes:
        repository = place / f"made{commits}"
        made_history(repository, commits)
        for kind, flags in KINDS.items():
            command = [sys.executable, "-c", WEIGHED, "triplets", "-q", "-j", "1", *flags, str(repository)]
            command += ["-o", str(place / "out.zst"), "--window", "60-64"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(REPO)})
            found.append({"commits": commits, "kind": kind, "peak_mb": int(done.stdout) / 1e3})
            print(found[-1], file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repositories", metavar="REPO", nargs="*", type=Path)
    parser.add_argument("--as", dest="kinds", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-pydriller", action="store_true")
    parser.add_argument("--memory", action="store_true", help="memory on made histories, and nothing else")
    parser.add_argument("--output", type=Path, help="the JSON goes there, not to results/")
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iqc-bench-") as folder:
        place = Path(folder)
        if asked.memory:
            save("history_memory", {"rows": memory(place)}, ["orjson"], asked.print_only, asked.output)
            return
        rows = []
        for given in asked.repositories:
            # PyDriller reads no bare repository; the clone has no files and no objects of its own.
            repository = place / given.resolve().parent.name
            subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", given, repository], check=True)
            for kind in asked.kinds or KINDS:
                rows.append(measure(repository, kind, asked.repeats, not asked.no_pydriller, place))
                print(*(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                        for key, value in rows[-1].items()), file=sys.stderr)  # fmt: skip
    packages = ["orjson", "zstandard", *([] if asked.no_pydriller else ["pydriller"])]
    save("history", {"rows": rows, "repeats": asked.repeats}, packages, asked.print_only, asked.output)


if __name__ == "__main__":
    main()
