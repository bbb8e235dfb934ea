"""Mixing sources against a bare loop over the same libraries, and against copying: `python tests/bench/mix.py`.

Source files of this machine, as documents, are dealt to sources of unlike sizes (1 to N parts). `iqc mix` gives all of
them once; so does the peer, the shortest loop that does it with orjson and zstandard: one reader a source, always the
one that is furthest behind its share in bytes, at the same level with the same checksums; but in the order of the files
instead of a shuffled one, and without frames that can be read alone, lineage, resume, or checks. `iqc head -n all`
copies the same records without mixing. All run on one processor, in turns. No ratio is printed unless each output holds
every record of the sources once and, in that of iqc, no source is ever more than one record from its share.
"""

import argparse
import hashlib
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import orjson
from measure import middle, save, timed
from streams import documents, records

PEER = """
import sys, orjson, zstandard
sizes, *sources, target = sys.argv[1:]
sizes = eval(sizes)  # known to it, where iqc reads the sources once to know

def lines(path):
    rest = b""
    with open(path, "rb") as file:
        with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
            while block := reader.read(8 << 20):
                *found, rest = (rest + block).split(b"\\n")
                yield from found

readers, given = [lines(path) for path in sources], [0] * len(sources)
left = list(range(len(sources)))
compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
with open(target, "wb") as out, compressor.stream_writer(out) as writer:
    while left:
        number = min(left, key=lambda k: given[k] / sizes[k])
        line = next(readers[number], None)
        if line is None:
            left.remove(number)
            continue
        given[number] += len(line) + 1
        writer.write(orjson.dumps(orjson.loads(line)) + b"\\n")
"""


def check_equal(wanted: Counter, *paths: Path) -> None:
    for path in paths:
        found = Counter(digest(record) for record in records(path))
        if found != wanted:
            sys.exit(f"{path.name} holds other records: no figures")


def digest(record: object) -> bytes:
    return hashlib.sha256(orjson.dumps(record)).digest()[:12]


def largest_error(path: Path, sizes: list[int]) -> float:
    """The most that a source is from its share after any record of a mixture, in the largest record of all."""
    given, whole, worst, largest = [0] * len(sizes), sum(sizes), 0.0, 0
    done = 0
    for record in records(path):
        size = len(orjson.dumps(record)) + 1
        given[record["source_number"]] += size  # type: ignore[index]
        done, largest = done + size, max(largest, size)
        worst = max(worst, *(abs(amount - done * share / whole) for amount, share in zip(given, sizes)))
    return worst / largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=300, help="MB of JSON lines")
    parser.add_argument("--sources", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="instead of results/mix.json")
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iqc-bench-") as folder:
        place = Path(folder)
        draw = random.Random(0)
        parts: list[list[bytes]] = [[] for _ in range(asked.sources)]
        wanted: Counter = Counter()
        for line in documents(asked.mb * 1_000_000):
            (number,) = draw.choices(range(asked.sources), range(1, asked.sources + 1))
            record = orjson.loads(line) | {"source_number": number}
            wanted[digest(record)] += 1
            parts[number].append(orjson.dumps(record))
        sizes = [sum(map(len, part)) + len(part) for part in parts]
        sources = [place / f"s{number}.zst" for number in range(asked.sources)]
        iqc = [sys.executable, "-m", "iqc"]
        for source, part in zip(sources, parts):
            (place / "in.jsonl").write_bytes(b"\n".join([*part, b""]))
            timed([*iqc, "head", "-q", "-n", "all", place / "in.jsonl", "-o", source])
        (place / "in.jsonl").unlink()
        del parts
        commands = {
            "peer": [sys.executable, "-c", PEER, sizes, *sources, place / "peer.zst"],
            "copy": [*iqc, "head", "-q", "-n", "all", *sources, "-o", place / "copy.zst", "-j", 1],
            "mix": [*iqc, "mix", "-q", *sources, "-o", place / "mix.zst", "-j", 1],
            "mix_unshuffled": [
                *iqc,
                "mix",
                "-q",
                "--no-shuffle",
                *sources,
                "-o",
                place / "mix_unshuffled.zst",
                "-j",
                1,
            ],
        }
        times: dict = {name: [] for name in commands}
        for _ in range(asked.repeats):
            for name, command in commands.items():
                times[name].append(timed(command, cores=1))
        check_equal(wanted, *(place / f"{name}.zst" for name in commands))
        errors = {name: largest_error(place / f"{name}.zst", sizes) for name in ("mix", "mix_unshuffled", "peer")}
        if max(errors["mix"], errors["mix_unshuffled"]) > 1:
            sys.exit(f"a source is {max(errors.values()):.2f} records from its share: no figures")
        cpu = {name: middle(found).cpu for name, found in times.items()}
        found = {
            "records": wanted.total(),
            "megabytes": sum(sizes) / 1e6,
            "cpu_seconds": cpu,
            "megabytes_per_cpu_second": {name: sum(sizes) / 1e6 / seconds for name, seconds in cpu.items()},
            "speed_against_peer": cpu["peer"] / cpu["mix"],
            "speed_against_copy": cpu["copy"] / cpu["mix"],
            "compressed_bytes": {name: (place / f"{name}.zst").stat().st_size for name in commands},
            "largest_error_in_records": errors,
            "repeats": asked.repeats,
        }
    save("mix", found, ["orjson", "zstandard"], asked.print_only, asked.output)


if __name__ == "__main__":
    main()
