"""Packing: how full the rows are, what is cut for it, and what it costs beside the bare encoder.

    python tests/bench/pack.py --tokenizer DIR [--mb 60] [--chats DIR ...]

Fill. Source files of this machine, and the conversations that are found under --chats (any list of {role, content} in
a .json, .jsonl, .json.gz or .tar.gz, which covers the trajectories of agents), are tokenised once and packed at each
context. `nothing cut to fill` cuts only what is longer than a row, `0.995` is the default of `iqc pack`, `1.0` cuts
wherever a row has room; `plain concatenation` joins everything, conversations too, and cuts at the end of every row.
Of each: rows, how full they are, how full all but the last are (a set of a few rows ends with one that is not), what
share of the samples that a row could hold is cut, and what share of all tokens has lost the beginning of its sample.
Few conversations say little about a large set of them, so theirs are also drawn anew, --draw of them, with the lengths
that were found.

Speed. `iqc pack -j 1`, from a stream to a stream, against Tokenizer.encode_array over the same texts in memory, in
turns on one core, in processor seconds. The command's start is timed apart, on a stream of one record, and both ratios
are given, with it and without. No ratio is printed unless both made the same number of tokens.
"""

import argparse
import gzip
import json
import os
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
from measure import REPO, save, timed
from streams import documents

sys.path.insert(0, str(REPO))

from iqc.tokens.chat import ROLES
from iqc.tokens.pack import Encoded, Packer
from iqc.tokens.sequence import Row
from iqc.tokens.tokenise import Options, line_ends, samples
from iqc.tokens.tokenizer import Tokenizer, load

WAYS = {
    "nothing cut to fill": {"fill": 0.0},
    "best fit 0.995": {"fill": 0.995},
    "best fit 1.0": {"fill": 1.0},
    "concat (text alone is cut)": {"method": "concat"},
    "plain concatenation": {"method": "concat"},
}
BARE = """
import sys, time, orjson
from pathlib import Path
from iqc.tokens.tokenizer import load
tokenizer = load(Path(sys.argv[1]))
with open(sys.argv[2], "rb") as file:
    texts = [orjson.loads(line)["text"] for line in file]
started = time.process_time()
tokens = sum(tokenizer.encode_array(text).size for text in texts)
ours = time.process_time() - started
engine = tokenizer._fast  # tiktoken's own call, which makes a list of every text
started = time.process_time()
if sum(len(engine.encode_ordinary(text)) for text in texts) != tokens:
    sys.exit("tiktoken gives other tokens")
print(tokens, ours, sum(len(text.encode()) for text in texts), time.process_time() - started)
"""


def conversations(place: Path) -> Iterator[dict]:
    """The chats in the files below `place`, as records; a role that nobody knows ends one."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    for path in files:
        for name, data in contents(path):
            for number, messages in enumerate(message_lists(data)):
                known = [m | {"content": m.get("content") or ""} for m in messages if m.get("role") in ROLES]
                if any(message["role"] == "assistant" for message in known):
                    yield {"id": f"{name}:{number}", "messages": known}


def contents(path: Path) -> Iterator[tuple[str, Any]]:
    """The JSON values in a file."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith((".json", ".traj")):
                    yield member.name, json.loads(archive.extractfile(member).read())  # type: ignore[union-attr]
    elif path.name.endswith((".json", ".json.gz", ".jsonl", ".jsonl.gz")):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = raw.splitlines() if ".jsonl" in path.name else [raw]
        yield from ((path.name, json.loads(line)) for line in lines if line.strip())


def message_lists(value: Any) -> Iterator[list[dict]]:
    """The conversations in a JSON value: lists of objects with a role and a content that is text or nothing."""
    if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
        if all(isinstance(m.get("content"), str | None) for m in value) and len(value) > 1:
            yield value
        return
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from message_lists(inner)


def encoded(records: Iterator[dict], tokenizer: Tokenizer) -> list[Encoded]:
    """What `pack` makes of records, whatever their length."""
    return [one for r in records for one in samples(r, tokenizer, Options()) if isinstance(one, Encoded)]


def drawn(found: list[Encoded], count: int) -> list[Encoded]:
    """So many samples whose lengths are drawn from those of `found`; of their tokens only the number matters."""
    chance = random.Random(0)
    out = []
    for number in range(count):
        size = chance.choice(found).row.tokens.size
        row = Row(np.zeros(size, np.uint32), np.array([size], np.uint32), np.ones(size, np.uint8), [str(number)])
        out.append(Encoded("chat", row))
    return out


def fills(name: str, found: list[Encoded], contexts: list[int], ends: np.ndarray) -> list[dict]:
    table = []
    for context in contexts:
        usable = [one for one in found if one.row.tokens.size <= context or one.kind == "document"]
        tokens = sum(one.row.tokens.size for one in usable)
        fitting = sum(one.row.tokens.size <= context for one in usable)
        for way, options in WAYS.items():
            packer = Packer(context, line_ends=ends, **options)  # type: ignore[arg-type]
            started, sizes = time.process_time(), []
            plain = way == "plain concatenation"
            for one in usable:
                row = one.row
                whole = Row(row.tokens, np.array([row.tokens.size], np.uint32), row.loss, row.ids[:1])
                rows = packer.add(Encoded("document", whole) if plain else one)
                sizes += [row["tokens"] for row in rows]
            sizes = [len(packed) // 4 * 3 // 4 for packed in sizes + [row["tokens"] for row in packer.finish()]]
            seconds, stats = time.process_time() - started, packer.stats
            if stats.tokens != tokens:
                sys.exit(f"{name}, {way}: {stats.tokens} tokens in rows of {tokens}: no figures")
            others = stats.tokens - min(sizes)
            table.append(
                {
                    "of": name,
                    "context": context,
                    "way": way,
                    "samples": len(usable),
                    "too_long": len(found) - len(usable),
                }
                | {"tokens": tokens, "rows": stats.rows, "fewest_rows": -(-tokens // context), "fill": stats.fill}
                | {"fill_without_last": others / ((stats.rows - 1) * context) if stats.rows > 1 else stats.fill}
                | {"longer_than_row": stats.split, "cut_to_fill": stats.cut, "cut_share": stats.cut / max(fitting, 1)}
                | {"lost_beginning_share": stats.tails / tokens, "cpu_seconds": seconds}
            )
    return table


def show(table: list[dict]) -> None:
    head = ("of", "context", "way", "samples", "rows", "fill", "but last", "split", "cut", "cut %", "no begin %")
    print(("{:>14} {:>7} {:<27}" + " {:>8}" * 8).format(*head))
    for r in table:
        print(
            f"{r['of']:>14} {r['context']:>7} {r['way']:<27} {r['samples']:>8} {r['rows']:>8} {r['fill']:8.4f}"
            f" {r['fill_without_last']:8.4f} {r['longer_than_row']:>8} {r['cut_to_fill']:>8}"
            f" {100 * r['cut_share']:8.2f} {100 * r['lost_beginning_share']:8.2f}"
        )


def speed(lines: list[bytes], tokenizer: str, context: int, repeats: int, place: Path) -> dict:
    """Processor seconds of both in turns."""
    import subprocess

    (place / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (place / "one.jsonl").write_bytes(lines[0] + b"\n")
    iqc = [sys.executable, "-m", "iqc"]
    for name in ("in", "one"):
        timed([*iqc, "head", "-q", "-n", "all", place / f"{name}.jsonl", "-o", place / f"{name}.zst"])
    whole: list[float] = []
    start: list[float] = []
    bare: list[float] = []
    lists: list[float] = []  # tiktoken's own
    env = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    for _ in range(repeats):
        command = [sys.executable, "-c", BARE, tokenizer, str(place / "in.jsonl")]
        out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
        bare.append(float(out[1]))
        lists.append(float(out[3]))
        for name, seconds in (("in", whole), ("one", start)):
            asked = ["--tokenizer", tokenizer, "--context", context, "-j", 1, "-q", "--summary", place / "summary"]
            seconds.append(timed([*iqc, "pack", *asked, place / f"{name}.zst", "-o", place / "rows.zst"], cores=1).cpu)
            if name == "in":
                made = orjson.loads((place / "summary").read_bytes())
                documents_made = made["read"] - sum(made["dropped"].values())
                if made["tokens"] != int(out[0]) + documents_made:  # each ends with one token more
                    sys.exit(f"pack made {made['tokens']} tokens, the bare encoder {out[0]}: no ratio")
    ratio = [b / w for b, w in zip(bare, whole)]
    ratio_run = [b / (w - s) for b, w, s in zip(bare, whole, start)]
    ratio_lists = [b / (w - s) for b, w, s in zip(lists, whole, start)]
    return {
        "megabytes": int(out[2]) / 1e6,
        "tokens": int(out[0]),
        "bare_encoder_cpu_seconds": median(bare),
        "iqc_pack_cpu_seconds": median(whole),
        "of_which_start": median(start),
        "speed_against_bare": median(ratio),
        "speed_against_bare_without_start": median(ratio_run),
        "tiktoken_cpu_seconds": median(lists),
        "speed_against_tiktoken_without_start": median(ratio_lists),
        "least_seconds_without_start_against_bare": min(bare) / (min(whole) - min(start)),
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="what `iqc tokenizer train` wrote")
    parser.add_argument("--mb", type=int, default=60, help="MB of source files, as JSON lines")
    parser.add_argument("--chats", type=Path, nargs="*", default=[], help="files and directories with conversations")
    parser.add_argument("--draw", type=int, default=20_000, help="conversations drawn with the lengths found")
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--repeats", type=int, default=3, help="0: no speed")
    parser.add_argument("--output", type=Path, help="where the JSON goes; otherwise results/pack.json")
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    asked = parser.parse_args()
    tokenizer = load(Path(asked.tokenizer))
    ends = line_ends(tokenizer)
    lines = list(documents(asked.mb * 1_000_000))
    code = encoded(map(orjson.loads, lines), tokenizer)
    table = fills("code", code, asked.contexts, ends)
    chats = encoded((chat for place in asked.chats for chat in conversations(place)), tokenizer)
    if chats:
        table += fills("chats", chats, asked.contexts, ends)
        table += fills("chats drawn", drawn(chats, asked.draw), asked.contexts, ends)
    show(table)
    found: dict[str, Any] = {"fill": table, "engine": tokenizer.engine, "vocabulary": tokenizer.vocab_size}
    if asked.repeats:
        with tempfile.TemporaryDirectory(prefix="iqc-bench-") as folder:
            found["speed"] = speed(lines, asked.tokenizer, asked.contexts[-1], asked.repeats, Path(folder))
    save("pack", found, ["tiktoken", "tokenizers", "numpy", "zstandard"], asked.print_only, asked.output)


if __name__ == "__main__":
    main()
