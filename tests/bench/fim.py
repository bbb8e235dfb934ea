"""Fill-in-the-middle: what it costs beside the least that must be done: `python tests/bench/fim.py`.

Two measurements, each against its peer in turns, on one core, in processor seconds; MB are of source text, as UTF-8.

The whole command: `iqc fim --rate 1 -j 1` reads a stream of documents and writes a stream of samples, each with the
source twice, as parts and as text. The peer is the shortest loop over orjson and zstandard that does the same at
character level: two uniform cuts that may enclose blanks, no neutralising, no lineage, no checks. For the syntax levels
the peer's loop parses every document as well, and cuts at a random byte's character. Start-up counts on both sides.

The library: documents in memory to samples in memory, against the bare parse of the same documents (`Parser.parse` of
their UTF-8, encoded within the time), of languages that have the level. Beside them, the plain way to draw a node: the
parse and a query for all nodes of the level, of which one is chosen.

No ratio is printed unless every document gave one sample on both sides and the parts of each are its source.
"""

import argparse
import os
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from statistics import median

import orjson
from measure import REPO, middle, save, timed
from streams import records

sys.path.insert(0, str(REPO))

from iqc.fim.samples import FillInTheMiddle
from iqc.syntax.languages import SYNTAX_LEVELS, language_of, languages
from iqc.syntax.parse import grammar, nodes, parse

PEER = """
import sys, random, orjson, zstandard
source, target, syntax = sys.argv[1:]
if syntax:
    from tree_sitter import Parser
    from tree_sitter_language_pack import get_language
    names = dict(pair.split("=") for pair in syntax.split(","))
    parsers = {lang: Parser(get_language(name)) for lang, name in names.items()}
draw = random.Random(0).randint
def sample(record):
    text = record["text"]
    if syntax:
        parsers[record["metadata"]["lang"]].parse(text.encode())
    start, end = sorted((draw(0, len(text)), draw(0, len(text))))
    prefix, middle, suffix = text[:start], text[start:end], text[end:]
    record["text"] = f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|im_end|>"
    record["prefix"], record["middle"], record["suffix"] = prefix, middle, suffix
    return record
compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
with open(source, "rb") as file, open(target, "wb") as out, compressor.stream_writer(out) as writer:
    rest = b""
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
        while block := reader.read(8 << 20):
            *lines, rest = (rest + block).split(b"\\n")
            if lines:
                writer.write(b"\\n".join([orjson.dumps(sample(orjson.loads(line))) for line in lines]) + b"\\n")
"""


def documents(roots: Iterable[str], size: int, parsed: bool) -> list[dict]:
    """Documents of about that many bytes, of files in order; with `parsed`, of languages that have all levels."""
    found: list[dict] = []
    made = 0
    for turn in range(1000):
        for path, text, lang in sources(roots):
            row = languages().get(lang or "")
            if parsed and (row is None or set(row.levels) != set(SYNTAX_LEVELS)):
                continue
            about = {"path": path, "lang": lang}
            found.append({"id": f"{turn}:{path}", "text": text, "source": "machine", "metadata": about})
            made += len(text.encode())
            if made >= size:
                return found
        if not made:
            break
    sys.exit("no source files there")


def sources(roots: Iterable[str]) -> Iterator[tuple[str, str, str | None]]:
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > 1 << 20:
                    continue
                if (lang := language_of(path)) is None or not languages()[lang].code:
                    continue
                try:
                    text = Path(path).read_text("utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                if text.strip():
                    yield path, text, lang


def write(place: Path, name: str, found: list[dict]) -> Path:
    (place / "plain").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in found))
    timed([sys.executable, "-m", "iqc", "head", "-q", "-n", "all", place / "plain", "-o", place / name])
    (place / "plain").unlink()
    return place / name


def check(given: list[dict], path: Path, suffix: str) -> Counter:
    """Levels of the samples; ends the benchmark unless there is one for each document, made of its source."""
    levels: Counter = Counter()
    count = 0
    for count, (record, sample) in enumerate(zip(given, records(path)), start=1):
        if (
            sample["id"] != record["id"] + suffix
            or sample["prefix"] + sample["middle"] + sample["suffix"] != record["text"]
        ):
            sys.exit(f"sample {count} is not of its document: no figures")
        levels[sample.get("level", "character")] += 1
    if count != len(given):
        sys.exit(f"{count} samples of {len(given)} documents: no figures")
    return levels


def commands(place: Path, cases: dict[str, list[dict]], repeats: int) -> dict:
    """Seconds of whole commands and of their peers, in turns."""
    head = [sys.executable, "-m", "iqc", "fim", "-q", "-j", 1, "--rate", 1]
    runs: dict[str, tuple[list, list]] = {}
    paths = {name: write(place, f"{name}.zst", given) for name, given in cases.items()}
    for _ in range(repeats):
        for name, given in cases.items():
            syntax = name not in ("character", "line")
            grammars = ",".join(
                f"{lang}={languages()[lang].grammar}" for lang in sorted({r["metadata"]["lang"] for r in given})
            )
            ours, peer = runs.setdefault(name, ([], []))
            levels = ",".join(SYNTAX_LEVELS) if syntax else name
            ours.append(timed([*head, paths[name], "--levels", levels, "-o", place / "ours.zst"], cores=1))
            bare = [sys.executable, "-c", PEER, paths[name], place / "peer.zst", grammars if syntax else ""]
            peer.append(timed(bare, cores=1))
            found = check(given, place / "ours.zst", "#fim0")
            check(given, place / "peer.zst", "")
            print(f"  {name}: {dict(found)}", file=sys.stderr)
    return {
        name: {
            "megabytes_per_second": size(cases[name]) / middle(ours).cpu,
            "peer_megabytes_per_second": size(cases[name]) / middle(peer).cpu,
            "of_peer": middle(peer).cpu / middle(ours).cpu,
        }
        for name, (ours, peer) in runs.items()
    }


def library(given: list[dict], repeats: int) -> dict:
    """The same documents parsed, and made samples at each level, in turns, in this process."""
    parsers: dict[str, Callable] = {lang: parser_of(lang) for lang in {record["metadata"]["lang"] for record in given}}
    random = Random(0)

    def bare(record: dict) -> int:
        parsers[record["metadata"]["lang"]](record["text"].encode())
        return 1

    def queried(record: dict, level: str) -> int:
        lang = record["metadata"]["lang"]
        if found := nodes(parse(record["text"], lang), lang, level):
            random.choice(found)
        return 1

    def maker(level: str) -> Callable[[dict], int]:
        stage = FillInTheMiddle(rate=1, weights={level: 1})
        return lambda record: sum(1 for _ in stage.transform(record))

    ways: dict[str, Callable[[dict], int]] = {"parse": bare}
    ways |= {level: maker(level) for level in (*SYNTAX_LEVELS, "character", "line")}
    ways |= {f"query for {level}": (lambda record, level=level: queried(record, level)) for level in SYNTAX_LEVELS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.process_time()
            made = sum(map(way, given))
            seconds[name].append(time.process_time() - started)
            if made != len(given):
                sys.exit(f"{made} results of {len(given)} documents: no figures")
    parse_seconds = median(seconds["parse"])
    return {
        name: {"megabytes_per_second": size(given) / median(each), "of_parse": parse_seconds / median(each)}
        for name, each in seconds.items()
    }


def parser_of(lang: str) -> Callable:
    from tree_sitter import Parser

    return Parser(grammar(lang)).parse


def size(given: list[dict]) -> float:
    return sum(len(record["text"].encode()) for record in given) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=100, help="MB of source for characters and lines")
    parser.add_argument("--parsed-mb", type=float, default=20, help="MB of source for the syntax levels")
    parser.add_argument("--source", action="append", metavar="DIR", help="where files are taken from, in this order")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    asked = parser.parse_args()
    tops = [sysconfig.get_path("stdlib"), "/usr/include", sysconfig.get_path("purelib"), "/usr/lib", "/usr/share"]
    roots = asked.source or tops
    plain = documents(roots, int(asked.mb * 1e6), False)
    parsed = documents(roots, int(asked.parsed_mb * 1e6), True)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    inside = library(parsed, asked.repeats)
    with tempfile.TemporaryDirectory(prefix="iqc-bench-") as folder:
        whole = commands(Path(folder), {"character": plain, "line": plain, "syntax": parsed}, asked.repeats)
    found = {
        "documents": len(plain),
        "megabytes": size(plain),
        "parsed_documents": len(parsed),
        "parsed_megabytes": size(parsed),
        "parsed_languages": dict(Counter(record["metadata"]["lang"] for record in parsed).most_common()),
        "commands": whole,
        "library": inside,
        "repeats": asked.repeats,
    }
    for name, table in (("command", whole), ("library", inside)):
        for level, figures in table.items():
            shown = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
            print(f"{name:<8} {level:<21} {shown}", file=sys.stderr)
    save(
        "fim",
        found,
        ["orjson", "zstandard", "tree-sitter", "tree-sitter-language-pack"],
        asked.print_only,
        asked.output,
    )


if __name__ == "__main__":
    main()
