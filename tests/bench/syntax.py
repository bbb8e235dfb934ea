"""Real source by language, what counts as parsed and what a drawn node costs: `python tests/bench/syntax.py DIR...`.

The files of the trees are sorted into languages as `iqc crawl` does; of each language at most `--files` are taken, by a
fixed seed. For each: how many parse without an error, quantiles of the share of error bytes, and what share of files
`max_error_share` keeps. Then speeds over the same files in processor time, in turns, best of three: the bare parse (the
peer), the parse and one drawn node of each level, and the parse and all nodes of the level. Drawn and enumerated nodes
are checked: a level has a drawn node if and only if the enumeration has one.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from random import Random

from measure import REPO, save

sys.path.insert(0, str(REPO))

from iqc.corpus.trees import list_files, read_file
from iqc.streams.stage import Dropped
from iqc.syntax.languages import languages
from iqc.syntax.parse import draw, error_share, nodes, parse

QUANTILES = (0.9, 0.95, 0.99)
MOST = 500_000  # bytes of a file: parsed in about a tenth of a second


def collect(trees: list[str], most: int) -> dict[str, list[bytes]]:
    """At most that many files of each language, drawn by a fixed seed from the sorted paths of all trees."""
    paths = [(tree, path) for tree in trees for path in list_files(tree)]
    Random(0).shuffle(paths)
    files: dict[str, list[bytes]] = defaultdict(list)
    for tree, path in paths:
        if not 0 < (Path(tree) / path).stat().st_size < MOST:
            continue
        record = read_file(tree, path, "bench")
        lang = None if isinstance(record, Dropped) else record["metadata"]["lang"]
        if lang is not None and len(files[lang]) < most and record["text"].strip():
            files[lang].append(record["text"].encode())
    return {lang: files[lang] for lang in sorted(files) if files[lang]}


def validity(lang: str, files: list[bytes]) -> dict[str, float]:
    shares = sorted(error_share(data, lang) for data in files)
    limit = languages()[lang].max_error_share
    found = {"files": len(files), "clean": sum(share == 0 for share in shares) / len(files)}
    found |= {f"q{round(100 * q)}": shares[int(q * (len(shares) - 1))] for q in QUANTILES}
    return found | {"limit": limit, "kept": sum(share <= limit for share in shares) / len(files)}


def speeds(lang: str, files: list[bytes]) -> dict[str, float]:
    """MB/s of the bare parse, and the speed of each way relative to it."""
    levels = list(languages()[lang].levels)
    random, best = Random(0), defaultdict(lambda: float("inf"))

    def timed(name, work) -> list[bool]:
        start = time.process_time()
        found = [bool(work(parse(data, lang))) for data in files]
        best[name] = min(best[name], time.process_time() - start)
        return found

    for _ in range(3):
        timed("parse", lambda tree: tree)
        for level in levels:
            drawn = timed(f"draw {level}", lambda tree, level=level: draw(tree, lang, level, random))
            listed = timed(f"list {level}", lambda tree, level=level: nodes(tree, lang, level))
            if drawn != listed:
                raise SystemExit(f"{lang}: drawing and listing disagree on which files have a {level}")
    ratios = {name: best["parse"] / seconds for name, seconds in best.items() if name != "parse"}
    return {"MB/s": sum(map(len, files)) / 1e6 / best["parse"]} | ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", metavar="DIR")
    parser.add_argument("--files", type=int, default=300, help="most files of a language (default 300)")
    parser.add_argument("--languages", help="only these, with commas between")
    parser.add_argument("--output", type=Path, help="write the result here")
    options = parser.parse_args()
    wanted = set(options.languages.split(",")) if options.languages else set(languages())

    found = {}
    for lang, files in collect(options.trees, options.files).items():
        if lang in wanted:
            found[lang] = validity(lang, files) | speeds(lang, files)
            print(f"{lang:11}", *(f"{name} {value:.4g}" for name, value in found[lang].items()), sep="  ", flush=True)
    save(
        "syntax",
        found,
        ["tree-sitter", "tree-sitter-language-pack"],
        output=options.output,
        print_only=not options.output,
    )


if __name__ == "__main__":
    main()
