"""Reading and writing streams against a bare loop over the same libraries: `python tests/bench/streams.py`.

The input is made of source files of this machine, as documents, `--mb` MB of JSON lines. `iqc head -n all` parses and
writes every record again; so does the peer, the shortest loop that does it with orjson and zstandard, at the same level
with the same checksums, but without frames that can be read alone, lineage, bounds, checks or error messages. Both run
on one processor, in turns. No ratio is printed unless both outputs hold the input's records.

What lineage costs is timed apart, on the functions that do it: the digests of the lines (which the digest of the input
and of the output both are), and all the rest.
"""

import argparse
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import orjson
import zstandard
from measure import REPO, middle, save, timed

sys.path.insert(0, str(REPO))

ENDINGS = (".py", ".pyi", ".c", ".h", ".hpp", ".js", ".pl", ".pm", ".sh", ".java", ".go", ".rs")
PEER = """
import sys, orjson, zstandard
source, target = sys.argv[1:]
compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
with open(source, "rb") as file, open(target, "wb") as out, compressor.stream_writer(out) as writer:
    rest = b""
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
        while block := reader.read(8 << 20):
            *lines, rest = (rest + block).split(b"\\n")
            if lines:
                writer.write(b"\\n".join([orjson.dumps(orjson.loads(line)) for line in lines]) + b"\\n")
"""


def documents(size: int) -> Iterator[bytes]:
    """Lines of that many bytes in all, from source files of this machine; a second round has other ids."""
    roots = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/lib", "/usr/include", "/usr/share"]
    made = 0
    for turn in range(1000):
        for root in roots:
            for folder, folders, names in os.walk(root):
                folders.sort()
                for name in sorted(names):
                    path = os.path.join(folder, name)
                    if not name.endswith(ENDINGS) or os.path.islink(path) or os.path.getsize(path) > 1 << 20:
                        continue
                    try:
                        text = Path(path).read_text("utf-8")
                    except (OSError, UnicodeDecodeError):
                        continue
                    about = {"path": path, "lang": name.rpartition(".")[2]}
                    record = {"id": f"{turn}:{path}", "text": text, "source": "machine", "metadata": about}
                    line = orjson.dumps(record)
                    yield line
                    made += len(line) + 1
                    if made >= size:
                        return
        if not made:
            sys.exit("no source files here")


def records(path: Path) -> Iterator[object]:
    """The records of a zstd file, by the library alone."""
    rest = b""
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
        while block := reader.read(8 << 20):
            *lines, rest = (rest + block).split(b"\n")
            yield from map(orjson.loads, lines)
    if rest:
        sys.exit(f"{path} does not end with a line end")


def check_equal(*paths: Path) -> int:
    """How many records all the files hold, the same in the same order; ends the benchmark when they do not."""
    count = 0
    for count, row in enumerate(zip_longest(*map(records, paths)), start=1):
        if any(record != row[0] for record in row):
            sys.exit(f"record {count} differs: no figures")
    return count


def lineage_seconds(lines: list[bytes]) -> dict[str, float]:
    """Processor seconds of the digests of all lines, and of everything else that lineage needs, at this size."""
    from iqc.streams.container import CHUNK
    from iqc.streams.lineage import Digest, Input, Stage, line_digest, lineage_of

    started = time.process_time()
    digests = b"".join([line_digest(line) for line in lines])
    digested = time.process_time()
    total = Digest()
    frames = sum(map(len, lines)) // CHUNK + 1
    step = -(-len(lines) // frames) * 32
    for start in range(0, len(digests), step):
        total.add(digests[start : start + step])
    counts = {"read": len(lines), "kept": len(lines)}
    output = {"digest": total.text(), "records": len(lines), "bytes": sum(map(len, lines)) + len(lines)}
    made = lineage_of(Stage("head", "1"), [Input(total.text(), len(lines))], counts, output)
    orjson.dumps(made | {"frames": [step // 32] * frames})
    return {"line_digests": digested - started, "rest": time.process_time() - digested}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=300, help="MB of JSON lines")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iqc-bench-") as folder:
        place = Path(folder)
        lines = list(documents(asked.mb * 1_000_000))
        size = sum(map(len, lines)) + len(lines)
        (place / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        head = [sys.executable, "-m", "iqc", "head", "-q", "-n", "all"]
        timed([*head, place / "in.jsonl", "-o", place / "in.zst"])
        (place / "in.jsonl").unlink()
        ours = [*head, place / "in.zst", "-o", place / "ours.zst", "-j"]
        peer = [sys.executable, "-c", PEER, place / "in.zst", place / "peer.zst"]
        one, two, bare = [], [], []
        for _ in range(asked.repeats):
            bare.append(timed(peer, cores=1))
            one.append(timed([*ours, 1], cores=1))
            two.append(timed([*ours, 2], cores=2))
            count = check_equal(place / "in.zst", place / "peer.zst", place / "ours.zst")
        lineage = lineage_seconds(lines)
        found = {
            "records": count,
            "megabytes": size / 1e6,
            "peer_cpu_seconds": middle(bare).cpu,
            "iqc_cpu_seconds": middle(one).cpu,
            "speed_against_peer_cpu": middle(bare).cpu / middle(one).cpu,
            "speed_against_peer_wall": middle(bare).wall / middle(one).wall,
            "two_cores_megabytes_per_second_wall": size / 1e6 / middle(two).wall,
            "lineage_cpu_seconds": lineage,
            "lineage_share_beyond_digests": lineage["rest"] / middle(one).cpu,
            "compressed_against_peer": (place / "ours.zst").stat().st_size / (place / "peer.zst").stat().st_size,
            "repeats": asked.repeats,
        }
    save("streams", found, ["orjson", "zstandard"], asked.print_only)


if __name__ == "__main__":
    main()
