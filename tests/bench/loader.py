"""Training rows from disk to batches, against bare loops: `python tests/bench/loader.py`.

The rows are source files of this machine, tokenised and packed by `iqc pack` at each context. Figures are tokens a
processor second, of all threads, less the start-up; padding does not count.

speed  `iqc` is one epoch of what the thread behind `batches` makes: shuffled, checked, as the arrays that the trainer
       takes. `stream` is the shortest loop over zstandard, orjson and pybase64 that fills the same arrays, in the order
       of the file, from the 8 MB frames that other records come in: no order, no checks. `raw` is a memory map of the
       tokens alone, 4 bytes each, cut every `context` tokens and shuffled: no documents, no loss, no checks, so it is
       a bound and no peer. All take turns; no figure is printed unless `iqc` and `stream` gave the same rows, in
       another order. `cold` is `iqc` with the system's cache emptied of the file, on the clock.
start  A directory of 10^11 tokens, whose manifest lists as many shards as `iqc pack` makes of them (links to one),
       opened in a new process, to the first batch of step 10^6; less the imports.
frames What rows cost in frames of one row, 1 MB and 8 MB: bytes a token, and seconds to read rows in random order.
mixing How evenly the batches of one epoch draw on the shards: the excess of the variance of rows a shard over a drawn
       permutation's, in standard errors, and the share of neighbours in the set that are in one batch, over the drawn.
       Beside the order of iqc: the order of the set through a buffer of 10,000 rows, as streaming loaders shuffle.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
import pybase64
import zstandard
from measure import REPO, save
from streams import documents

sys.path.insert(0, str(REPO))

from iqc.streams.container import LEVEL, compress
from iqc.streams.lineage import Digest, Stage, lineage_of
from iqc.streams.output import shard_name
from iqc.streams.reader import MANIFEST
from iqc.streams.runner import StreamInput, read_records
from iqc.streams.writer import ROW_LEVEL, AtomicFile, StreamWriter, dump
from iqc.tokens.dataset import open_dataset
from iqc.tokens.loader import Limits, assemble
from iqc.tokens.order import row_indices

VOCABULARY = 76_800
TOKENS = 1 << 19  # a batch
START = """
import sys, time
from pathlib import Path
from iqc.tokens.dataset import open_dataset
from iqc.tokens.loader import Limits, batches
started, processor = time.perf_counter(), time.process_time()
dataset, _ = open_dataset([sys.argv[1]])
opened = time.perf_counter()
source = batches(dataset, Limits(int(sys.argv[2]), 1 << 20, 0), seed=0, batch_rows=int(sys.argv[3]), start=10**6)
first = next(source)
ended, processor = time.perf_counter(), time.process_time() - processor
source.close()
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
figures = [opened - started, ended - started, processor, int(peak.split()[1]) / 1024]
print(len(dataset), len(dataset.parts), first.tokens.size, *figures)
"""


def pack(place: Path, megabytes: int, contexts: list[int], tokenizer: Path | None) -> None:
    """Rows of every context, packed by the command: place/rows-CONTEXT.jsonl.zst."""
    iqc = [sys.executable, "-m", "iqc"]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    (place / "in.jsonl").write_bytes(b"\n".join(documents(megabytes * 1_000_000)) + b"\n")
    if tokenizer is None:
        tokenizer = place / "tokenizer"
        size = ["--vocab-size", VOCABULARY, "--limit-mib", 64, "-q", "-o", tokenizer]
        subprocess.run(list(map(str, [*iqc, "tokenizer", "train", *size, place / "in.jsonl"])), check=True, env=env)
    for context in contexts:
        asked = ["--context", context, "--tokenizer", tokenizer, "-q", "-o", place / f"rows-{context}.jsonl.zst"]
        subprocess.run(list(map(str, [*iqc, "pack", *asked, place / "in.jsonl"])), check=True, env=env)


def records(path: Path) -> list[dict]:
    return list(read_records(StreamInput([str(path)])))


def fingerprint(tokens: np.ndarray, weights: np.ndarray) -> int:
    """Of a row without its padding; sums do not depend on the order of the rows."""
    factors = np.arange(1, tokens.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    return int(((tokens.astype(np.uint64) * 4 + (weights * 2).astype(np.uint64)) * factors).sum()) ** 2 % 2**61


def ours(path: Path, context: int, check: Callable | None = None) -> int:
    """One epoch, by what the thread of `batches` does; returns the tokens."""
    size = max(1, TOKENS // context)
    limits, total = Limits(context, 1 << 20, 0), 0
    with open_dataset([str(path)])[0] as dataset:
        for first in range(0, len(dataset), size):
            batch = assemble(dataset, row_indices(len(dataset), 0, first, min(size, len(dataset) - first)), limits)
            for at in range(len(batch.lengths)) if check else ():
                tokens = int(batch.lengths[at].sum())
                check(batch.tokens[at, :tokens], batch.weights[at, :tokens])
            total += int(np.concatenate(batch.lengths).sum())
    return total


def stream(path: Path, context: int, check: Callable | None = None) -> int:
    size = max(1, TOKENS // context)
    total, rest, at = 0, b"", 0
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
        while block := reader.read(8 << 20):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if at % size == 0:
                    tokens = np.zeros((size, context), np.int64)
                    weights = np.zeros((size, context), np.float32)
                row = orjson.loads(line)
                found = np.frombuffer(pybase64.b64decode(row["tokens"]), "<u4")
                loss = np.frombuffer(pybase64.b64decode(row["loss"]), "u1")
                lengths = np.frombuffer(pybase64.b64decode(row["lengths"]), "<u4").astype(np.int64)
                tokens[at % size, : found.size], weights[at % size, : found.size] = found, loss
                if check:
                    check(tokens[at % size, : found.size], weights[at % size, : found.size])
                total += int(lengths.sum())
                at += 1
    return total


def raw(path: Path, context: int, check: Callable | None = None) -> int:
    tokens = np.memmap(path, "<u4", "r")
    rows = tokens.size // context
    order = np.random.Generator(np.random.PCG64(0)).permutation(rows)
    size, total = max(1, TOKENS // context), 0
    for start in range(0, rows, size):
        batch = np.empty((size, context), np.int64)
        for at, row in enumerate(order[start : start + size]):
            batch[at] = tokens[row * context : (row + 1) * context]
        total += min(size, rows - start) * context
    return total


def timed(work: Callable[..., int], path: Path, context: int) -> tuple[float, float]:
    """Tokens a second of processors, and on the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work(path, context)
    return tokens / (time.process_time() - cpu), tokens / (time.perf_counter() - wall)


def forget(path: Path) -> None:
    """Have the system drop what it holds of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def speed(place: Path, context: int, repeats: int) -> dict[str, Any]:
    path = place / f"rows-{context}.jsonl.zst"
    found = records(path)
    (place / "frames.zst").write_bytes(b"".join(frames_of([dump(record) for record in found], 8 << 20, LEVEL)))
    tokens = np.concatenate([np.frombuffer(pybase64.b64decode(record["tokens"]), "<u4") for record in found])
    tokens.tofile(place / "tokens.bin")
    seen: dict[str, list[int]] = {"iqc": [], "stream": []}
    ours(path, context, lambda *row: seen["iqc"].append(fingerprint(*row)))
    stream(place / "frames.zst", context, lambda *row: seen["stream"].append(fingerprint(*row)))
    if sorted(seen["iqc"]) != sorted(seen["stream"]) or len(seen["iqc"]) != len(found):
        sys.exit(f"context {context}: the rows differ: no figures")
    if seen["iqc"] == seen["stream"]:
        sys.exit(f"context {context}: not shuffled: no figures")
    work = {"iqc": (ours, path), "stream": (stream, place / "frames.zst"), "raw": (raw, place / "tokens.bin")}
    rates: dict[str, list[float]] = {name: [] for name in (*work, "cold")}
    for _ in range(repeats):
        for name, (function, file) in work.items():
            rates[name].append(timed(function, file, context)[0])
        forget(path)
        rates["cold"].append(timed(ours, path, context)[1])
    figures = {f"{name}_mtokens_s": round(median(values) / 1e6, 2) for name, values in rates.items()}
    best = {f"{name}_best": round(max(values) / 1e6, 2) for name, values in rates.items()}
    return {"context": context, "rows": len(found), "tokens": int(tokens.size)} | figures | best


def frames_of(lines: list[bytes], size: int, level: int) -> Iterator[bytes]:
    """Frames that end at the first line end at or after `size` bytes."""
    text: list[bytes] = []
    held = 0
    for line in lines:
        text.append(line + b"\n")
        held += len(line) + 1
        if held >= size:
            yield compress(b"".join(text), len(text), level).data
            text, held = [], 0
    if text:
        yield compress(b"".join(text), len(text), level).data


def frames(place: Path, context: int) -> list[dict[str, Any]]:
    lines = [dump(record) for record in records(place / f"rows-{context}.jsonl.zst")]
    tokens = sum(len(pybase64.b64decode(orjson.loads(line)["tokens"])) // 4 for line in lines)
    found = []
    for name, size in (("one row", 1), ("1 MB", 1 << 20), ("8 MB", 8 << 20)):
        for level in (ROW_LEVEL, LEVEL):
            started = time.process_time()
            made = list(frames_of(lines, size, level))
            written = time.process_time()
            read = [zstandard.ZstdDecompressor().decompress(frame) for frame in made]
            ended = time.process_time()
            a_row = (ended - written) / len(read)  # to have one row, its frame is read
            found.append(
                {"context": context, "frame": name, "level": level, "bytes_a_token": sum(map(len, made)) / tokens}
                | {"write_mtokens_s": tokens / (written - started) / 1e6, "random_row_us": a_row * 1e6}
            )
    return found


def start(place: Path, context: int) -> dict[str, Any]:
    """Opening 10^11 tokens at step 10^6, in a new process."""
    some = records(place / f"rows-{context}.jsonl.zst")
    shard = place / "shard.zst"
    out = StreamWriter(AtomicFile(shard))
    while out.bytes < 256 << 20:
        out.add_record(some[out.records % len(some)])
    made = lineage_of(Stage("pack", "1"), [], {"read": 0, "kept": out.records}, out.output())
    out.finish(made)
    rows = 10**11 // context
    count = -(-rows // out.records)
    directory = place / f"all-{context}"
    directory.mkdir()
    digest, shards = Digest(), []
    for number in range(count):
        os.link(shard, directory / shard_name(number))
        digest.add_digest(made["output"]["digest"])
        shards.append({"file": shard_name(number)} | made["output"])
    whole = {"digest": digest.text(), "records": count * out.records, "bytes": count * out.bytes}
    manifest = lineage_of(Stage("pack", "1"), [], {"read": 0, "kept": whole["records"]}, whole) | {"shards": shards}
    (directory / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    runs = []
    for _ in range(5):
        command = [sys.executable, "-c", START, str(directory), str(context), str(TOKENS // context)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, check=True)
        runs.append([float(value) for value in done.stdout.split()])
    middle = [median(values) for values in zip(*runs)]
    names = ("rows", "shards", "batch_tokens", "open_s", "first_batch_s", "processor_s", "memory_mib")
    size = {"manifest_bytes": (directory / MANIFEST).stat().st_size}
    return {"context": context, "slowest_s": max(run[4] for run in runs)} | dict(zip(names, middle)) | size


def buffered(rows: int, size: int) -> np.ndarray:
    """The order of the set through a buffer: each row that leaves is drawn from it and replaced by the next."""
    draw = np.random.Generator(np.random.PCG64(1))
    buffer, order = np.arange(size), np.empty(rows, np.int64)
    for at in range(rows):
        place = draw.integers(len(buffer)) if at + size < rows else draw.integers(rows - at)
        order[at] = buffer[place]
        buffer[place] = at + size if at + size < rows else buffer[rows - at - 1]
    return order


def mixing(rows: int = 200_000, shards: int = 100, batch: int = 256) -> list[dict[str, Any]]:
    orders = {
        "iqc": row_indices(rows, 0, 0, rows),
        "drawn": np.random.Generator(np.random.PCG64(2)).permutation(rows),
        "buffer of 10,000": buffered(rows, 10_000),
    }
    found = []
    for name, order in orders.items():
        whole = order[: rows // batch * batch].reshape(-1, batch)
        counts = np.stack([np.bincount(row, minlength=shards) for row in whole * shards // rows])
        mean = batch / shards
        ratio = ((counts - mean) ** 2 / (mean * (1 - 1 / shards))).mean(axis=1)  # 1 where drawn, nearly
        error = ratio.std() / np.sqrt(len(ratio))
        where = np.empty(rows, np.int64)
        where[order] = np.arange(rows)
        together = float((np.diff(where // batch) == 0).mean()) / (batch / rows)
        found.append(
            {"order": name, "shards_variance_over_drawn": float(ratio.mean()), "standard_error": float(error)}
            | {"neighbours_together_over_drawn": together}
        )
    return found


def table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    print("  ".join(f"{name:>14}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>14.4g}" if isinstance(value, float) else f"{value:>14}" for value in row.values()))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=60, help="MB of source text")
    parser.add_argument("--context", type=int, nargs="*", default=[512, 2048, 32768])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path, help="what `iqc tokenizer train` wrote; by default one is trained")
    parser.add_argument("--output", type=Path, help="the JSON; by default results/loader.json")
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iqc-bench-") as folder:
        place = Path(folder)
        pack(place, asked.mb, asked.context, asked.tokenizer)
        found: dict[str, list[dict[str, Any]]] = {"speed": [], "start": [], "frames": [], "mixing": mixing()}
        for context in asked.context:
            found["speed"].append(speed(place, context, asked.repeats))
            found["frames"] += frames(place, context)
            if context >= 2048:  # nobody trains on 10^11 tokens in rows of 512
                found["start"].append(start(place, context))
    for rows in found.values():
        table(rows)
    save("loader", found, ["numpy", "orjson", "zstandard"], asked.print_only, asked.output)


if __name__ == "__main__":
    main()
