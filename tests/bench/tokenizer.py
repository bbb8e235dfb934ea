"""Tokenizers, three measurements: `python tests/bench/tokenizer.py ids|rate|splits ...`.

A PATH is a stream of records, or a directory whose source files are read. MB are of text, as UTF-8.

    ids TOKENIZER PATH...     Every text is encoded by iqc and by the tokenizers library; the texts whose ids differ are
                              counted and named, and the status is 1 if there are any. `--skip-mb` and `--mb` cut a long
                              run in pieces.
    rate TOKENIZER PATH...    Encoding of the same texts in turns, one core, processor seconds: iqc (`encode_array`),
                              tiktoken bare (its own list of ids), and the tokenizers library (`encode_batch_fast`). No
                              ratio is printed unless all three give the same ids.
    splits TRAIN HELD         Trains a vocabulary with each way of cutting text on the one stream, and measures bytes a
                              token of each language on the other. Beside them, with `--tiktoken FILE`, a vocabulary in
                              tiktoken's form, whole and cut to the same size: Qwen's is in the wheel of `qwen-agent`
                              on PyPI. GPT-4's is not among the packages of PyPI: tiktoken fetches it when it runs.
"""

import argparse
import base64
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from fim import sources
from measure import REPO, save

sys.path.insert(0, str(REPO))

import tiktoken

from iqc.streams.runner import StreamInput, read_records
from iqc.tokens import split as splits
from iqc.tokens import tokenizer
from iqc.tokens.special import RELEASED_VOCAB_SIZE, pieces
from iqc.tokens.texts import Texts

# Ways that are measured and not offered: letters with `_`, and words cut where the case changes (as in CamelCase).
_PART = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = {
    "words": _PART + r"\p{L}+",
    "words with _": _PART + r"[\p{L}_]+",
    "words by case": f"{_PART}{_UPPER}*{_LOWER}+|{_PART}{_UPPER}+{_LOWER}*",
}


def texts_of(paths: list[str]) -> Iterator[tuple[str, str]]:
    """(language, text) of everything."""
    for path in paths:
        if os.path.isdir(path):
            yield from ((lang or "other", text) for _, text, lang in sources([path]))
        else:
            yield from Texts(read_records(StreamInput([path]))).by_language()


def taken(paths: list[str], skip_mb: float, mb: float) -> Iterator[tuple[str, str, int]]:
    """(language, text, its bytes), from where `skip_mb` end, `mb` of them."""
    seen = 0
    for language, text in texts_of(paths):
        size = len(text.encode())
        seen += size
        if seen > (skip_mb + mb) * 1e6:
            return
        if seen > skip_mb * 1e6:
            yield language, text, size


def ids(asked: argparse.Namespace) -> dict:
    tok = tokenizer.load(asked.tokenizer)
    found: Counter[str] = Counter()
    by_language: Counter[str] = Counter()
    differ = []
    for language, text, size in taken(asked.path, asked.skip_mb, asked.mb):
        ours = tok.encode_ordinary(text)
        if tok.encode_by_library(text) != ours or tok.bytes(ours) != text.encode():
            differ.append(text[:200])
        found += Counter(texts=1, bytes=size, tokens=len(ours))
        by_language[language] += size
    return {"engine": tok.engine, **found, "differ": len(differ), "examples": differ[:5], "bytes_by": by_language}


def rate(asked: argparse.Namespace) -> dict:
    tok = tokenizer.load(asked.tokenizer)
    given = [text for _, text, _ in taken(asked.path, asked.skip_mb, asked.mb)]
    bare = tok._fast
    if bare is None:
        sys.exit(f"{tok.engine} is the engine ({tok.why}): no figures")
    plain = tok._plain
    ways: dict[str, Callable[[], list]] = {
        "iqc": lambda: [tok.encode_array(text) for text in given],
        "tiktoken": lambda: [bare.encode_ordinary(text) for text in given],
        "tokenizers": lambda: [each.ids for each in plain.encode_batch_fast(given, add_special_tokens=False)],
    }
    expected = [tok.encode_by_library(text) for text in given]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.repeats):
        for name, way in ways.items():
            started = time.process_time()
            made = way()
            seconds[name].append(time.process_time() - started)
            if any(list(map(int, found)) != right for found, right in zip(made, expected)):
                sys.exit(f"{name} gives other ids: no figures")
            del made
    mb = sum(len(text.encode()) for text in given) / 1e6
    tokens = sum(map(len, expected))
    middle = {name: median(each) for name, each in seconds.items()}
    return {
        "texts": len(given),
        "megabytes": mb,
        "tokens": tokens,
        "megabytes_per_second": {name: mb / each for name, each in middle.items()},
        "fastest_megabytes_per_second": {name: mb / min(each) for name, each in seconds.items()},
        "of_tiktoken": middle["tiktoken"] / middle["iqc"],
        "of_tokenizers": middle["tokenizers"] / middle["iqc"],
        "repeats": asked.repeats,
    }


def per_language(encode: Callable[[str], list[int]], held: list[tuple[str, str]]) -> dict[str, float]:
    """Bytes a token of each language, and their mean: a language counts as much as another."""
    size, tokens = Counter(), Counter()
    for language, text in held:
        size[language] += len(text.encode())
        tokens[language] += len(encode(text))
    found = {language: size[language] / tokens[language] for language in sorted(size)}
    return {"mean": sum(found.values()) / len(found)} | found


def ways() -> dict[str, splits.Split]:
    """Each way of cutting text by its name."""
    offered = {f"digits {s.digits}, indent {s.indent}": s for s in splits.BY_PATTERN.values()}
    return {name: s for name, s in offered.items() if "one" in name or "apart" in name}


class Words(splits.Split):
    """A way that is not offered: another expression for words."""

    def __init__(self, words: str):
        super().__init__()
        object.__setattr__(self, "words", words)

    def pattern(self) -> str:
        return super().pattern().replace(WORDS["words"], self.words)  # type: ignore[attr-defined]


def compared(asked: argparse.Namespace) -> dict:
    held = list(texts_of([asked.held]))
    found: dict[str, dict[str, float]] = {}
    if asked.tiktoken:
        lines = [line.split() for line in asked.tiktoken.read_bytes().splitlines()]
        whole = {base64.b64decode(token): int(number) for token, number in lines}
        for name, limit in (("whole", len(whole)), ("cut", pieces(asked.size))):
            some = {token: number for token, number in whole.items() if number < limit}
            never = {"<|never|>": limit}
            encoder = tiktoken.Encoding(
                "peer", pat_str=splits.Split().pattern(), mergeable_ranks=some, special_tokens=never
            )
            found[f"{asked.tiktoken.stem}, {len(some):,} pieces ({name})"] = per_language(encoder.encode_ordinary, held)
    every: dict[str, splits.Split] = ways() | {name: Words(words) for name, words in WORDS.items() if name != "words"}
    for name, split in every.items():
        if asked.only and name not in asked.only:
            continue
        started = time.process_time()
        made = tokenizer.train((text for _, text in texts_of([asked.train])), asked.size, split)
        seconds = time.process_time() - started
        found[name] = per_language(made.encode_ordinary, held)
        print(f"{name}: {found[name]['mean']:.3f} bytes a token, {seconds:.0f} s", file=sys.stderr, flush=True)
    return {"size": asked.size, "languages": len(held and {language for language, _ in held}), "bytes_a_token": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    below = parser.add_subparsers(dest="what", required=True)
    for name, function, mb in (("ids", ids, 1e6), ("rate", rate, 20)):
        part = below.add_parser(name)
        part.set_defaults(function=function)
        part.add_argument("tokenizer", type=Path)
        part.add_argument("path", nargs="+")
        part.add_argument("--mb", type=float, default=mb)
        part.add_argument("--skip-mb", type=float, default=0)
        part.add_argument("--repeats", type=int, default=5)
    part = below.add_parser("splits")
    part.set_defaults(function=compared)
    part.add_argument("train")
    part.add_argument("held")
    part.add_argument("--size", type=int, default=RELEASED_VOCAB_SIZE)
    part.add_argument("--tiktoken", type=Path, metavar="FILE")
    part.add_argument("--only", action="append", metavar="NAME", help="train only these ways")
    for part in below.choices.values():
        part.add_argument("--print-only", action="store_true", help="leave results/ alone")
        part.add_argument("--output", type=Path, help="JSON file for the result")
    asked = parser.parse_args()
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = asked.function(asked)
    name = "tokenizer" if asked.what == "rate" else f"tokenizer_{asked.what}"
    save(name, found, ["tokenizers", "tiktoken", "numpy"], asked.print_only, asked.output)
    print(json.dumps(found, indent=1), file=sys.stderr)
    if found.get("differ"):
        sys.exit(1)


if __name__ == "__main__":
    main()
