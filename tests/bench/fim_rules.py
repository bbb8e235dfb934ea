"""Every rule of a fill-in-the-middle sample, over real source: `python tests/bench/fim_rules.py DIR...`.

Each DIR is taken for one repository; without any, the packages of the standard library, the installed packages and the
folders of /usr/include are. Their files of known languages become samples at file level, and with context from each
other at repository level, until there are `--samples`; no language gets more than a tenth of them. Checked of each:

  parts      prefix + middle + suffix is the file; the middle is not blank and keeps --max-middle
  level      a line has no line end within and one or the file's end on both sides; the span of a syntax level is that
             of a node of the level in a new parse, without errors in it
  text       is what pack renders, of neutralised strings, and holds no control token but the layout's
  context    whole lines of other files within the budget, none twice; no file of the same path, none that is a near
             duplicate, none that contains a middle of 20 characters or more, white space collapsed
  tokens     (of a share) a tokenizer trained here gives control ids where the layout has them and nowhere else, and the
             rest decodes to the raw strings

Ends with status 1 when a rule is broken. Takes about ten minutes for 100,000 samples on one core.
"""

import argparse
import os
import re
import sys
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from measure import REPO, save

sys.path.insert(0, str(REPO))

from iqc.corpus.trees import list_files, read_file
from iqc.dedup.documents import THRESHOLD
from iqc.dedup.minhash import jaccard, shingles
from iqc.errors import IqcError
from iqc.fim.cuts import LEVELS
from iqc.fim.layout import neutralise
from iqc.fim.samples import FillInTheMiddle
from iqc.fim.snippets import LEAST_MIDDLE
from iqc.fim.stages import Around, fim
from iqc.streams.stage import Dropped, Noted, Record
from iqc.syntax.parse import nodes, parse
from iqc.tokens.render import render
from iqc.tokens.special import CONTROL
from iqc.tokens.tokenise import tokenise
from iqc.tokens.tokenizer import Tokenizer, train

MAX_FILE = 60_000  # characters; longer ones only make the run slower
MAX_FILES = 400  # of one repository
LIMIT, BUDGET, LINES = 2000, 6000, 20
TOKEN = re.compile("|".join(map(re.escape, CONTROL)))


def default_repositories() -> list[str]:
    tops = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/include"]
    found = [entry.path for top in tops if os.path.isdir(top) for entry in os.scandir(top) if entry.is_dir()]
    return sorted(path for path in found if not path.endswith(("site-packages", "__pycache__", "-info")))


def repository(root: str) -> Record:
    files = []
    for path in list_files(root):
        found = read_file(root, path, "machine")
        if isinstance(found, Dropped) or found["metadata"]["lang"] is None:
            continue
        if found["text"].strip() and len(found["text"]) <= MAX_FILE:
            files.append({"path": path, "text": found["text"], "lang": found["metadata"]["lang"]})
        if len(files) == MAX_FILES:
            break
    return {"id": root, "repo": os.path.basename(root), "commit": None, "files": files, "metadata": {}}


class Rules:
    """Checks the samples of one repository and counts what is broken."""

    def __init__(self, record: Record, tokenizer: Tokenizer, broken: Counter, shown: list[str]):
        self.files = {file["path"]: file["text"] for file in record["files"]}
        self.tokenizer = tokenizer
        self.broken = broken
        self.shown = shown
        self.shingles = cache(lambda path: shingles(self.files[path]))
        self.near = cache(lambda a, b: self.files[a] == self.files[b] or self.likeness(a, b) >= THRESHOLD)
        self.spans = cache(self._spans)

    def likeness(self, a: str, b: str) -> float:
        return jaccard(self.shingles(a), self.shingles(b))

    def _spans(self, path: str, lang: str, level: str) -> set[tuple[int, int]]:
        tree = parse(self.files[path], lang)
        return {(node.start_byte, node.end_byte) for node in nodes(tree, lang, level) if not node.has_error}

    def check(self, sample: Record, encode: bool) -> None:
        for rule in (self.parts, self.level, self.text, self.context, *([self.tokens] if encode else [])):
            if not rule(sample):
                self.broken[rule.__name__] += 1
                if len(self.shown) < 10:
                    self.shown.append(f"{rule.__name__}: {sample['id']} {sample['level']} {sample['middle'][:200]!r}")

    def parts(self, sample: Record) -> bool:
        whole = sample["prefix"] + sample["middle"] + sample["suffix"]
        good = whole == self.files[sample["metadata"]["path"]] and not sample["middle"].isspace()
        return good and 0 < len(sample["middle"]) <= LIMIT

    def level(self, sample: Record) -> bool:
        prefix, middle, suffix = (sample[part] for part in ("prefix", "middle", "suffix"))
        if sample["level"] == "character":
            return True
        if sample["level"] == "line":
            ends = ("\n", "\r")
            return (
                not any(end in middle for end in ends)
                and (not prefix or prefix.endswith(ends))
                and (not suffix or suffix.startswith(ends))
            )
        start = len(prefix.encode())
        about = sample["metadata"]
        return (start, start + len(middle.encode())) in self.spans(about["path"], about["lang"], sample["level"])

    def text(self, sample: Record) -> bool:
        segments = render(sample).segments
        text = "".join(part.value if part.is_control else neutralise(part.value)[0] for part in segments)
        controls = [part.value for part in segments if part.is_control]
        return sample["text"] == text and TOKEN.findall(text) == controls

    def context(self, sample: Record) -> bool:
        own, middle = sample["metadata"]["path"], sample["middle"].strip()
        taken: set[tuple[str, int]] = set()
        for snippet in sample["context"]:
            path, text, first = snippet["path"], snippet["text"], snippet["line"] - 1
            lines = text.split("\n")
            places = {(path, first + k) for k in range(len(lines))}
            if (
                path == own
                or len(lines) > LINES
                or self.files[path].split("\n")[first : first + len(lines)] != lines
                or places & taken
                or self.near(*sorted((own, path)))
                or (len(middle) >= LEAST_MIDDLE and " ".join(middle.split()) in " ".join(text.split()))
            ):
                return False
            taken |= places
        scope = sample["metadata"]["fim_scope"]
        size = sum(len(snippet["path"]) + len(snippet["text"]) + 2 for snippet in sample["context"])
        return size <= BUDGET and (scope == "repository") == bool(sample["context"])

    def tokens(self, sample: Record) -> bool:
        ids = tokenise(sample, self.tokenizer).tokens.tolist()
        names = {number: name for name, number in self.tokenizer.control.items()}
        found: list[str] = []
        piece: list[int] = []
        for number in [*ids, None]:
            if number is None or number in names:
                found += [self.tokenizer.decode(piece)] if piece else []
                found += [names[number]] if number is not None else []
                piece = []
            else:
                piece.append(number)
        merged: list[str] = []
        before = True
        for part in render(sample).segments:  # texts without a control token between them are decoded as one
            merged = (
                [*merged[:-1], merged[-1] + part.value] if not part.is_control and not before else [*merged, part.value]
            )
            before = part.is_control
        return found == merged


def samples(record: Record, each: int) -> Iterator[Record | Dropped]:
    """At file level and at repository level, half of them as SPM."""
    weights = dict.fromkeys(LEVELS, 1.0)
    for layout, around in (("psm", Around(BUDGET, LINES)), ("spm", Around(BUDGET, LINES)), ("psm", Around(0))):
        maker = FillInTheMiddle(1.0, {}, weights, layout, each, LIMIT, seed=len(layout) + around.budget)
        yield from (out for out in fim(maker, around)()(record) if not isinstance(out, Noted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repositories", nargs="*", metavar="DIR")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=2, help="samples of a file in each of three ways")
    parser.add_argument("--encode", type=int, default=10, help="encode every Nth sample")
    parser.add_argument("--print-only", action="store_true", help="leave results/ alone")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    asked = parser.parse_args()
    started = time.monotonic()
    roots = asked.repositories or default_repositories()
    tokenizer = None
    counts: dict[str, Counter] = defaultdict(Counter)
    broken: Counter = Counter()
    shown: list[str] = []
    made = 0
    for root in roots:
        try:
            record = repository(root)
        except IqcError as error:
            print(error, file=sys.stderr)
            continue
        full = {lang for lang, count in counts["language"].items() if count >= asked.samples // 10}
        record["files"] = [file for file in record["files"] if file["lang"] not in full]
        if not record["files"]:
            continue
        if tokenizer is None:
            tokenizer = train((file["text"] for file in record["files"]), 600)
        rules = Rules(record, tokenizer, broken, shown)
        counts["repositories"]["read"] += 1
        for out in samples(record, asked.each):
            if isinstance(out, Dropped):
                counts["dropped"][out.rule] += 1
                continue
            about = out["metadata"]
            about.setdefault("fim_scope", "file")
            rules.check(out, made % asked.encode == 0)
            made += 1
            counts["level"][out["level"]] += 1
            counts["layout"][out["layout"]] += 1
            counts["scope"][about["fim_scope"]] += 1
            counts["language"][about["lang"]] += 1
            if "fim_fallback" in about:
                counts["fallback"]["{level}: {reason}".format(**about["fim_fallback"])] += 1
            if "fim_no_context" in about:
                counts["no context"][about["fim_no_context"]] += 1
            counts["neutralised"]["samples"] += "fim_neutralised" in about
            counts["context"]["snippets"] += len(out["context"])
        if made >= asked.samples:
            break
    for name, table in counts.items():
        print(f"{name:<13}" + ", ".join(f"{key} {count:,}" for key, count in table.most_common()), file=sys.stderr)
    print("\n".join(shown), file=sys.stderr)
    found = {
        "samples": made,
        "encoded": -(-made // asked.encode),
        "violations": dict(broken),
        "languages": len(counts["language"]),
        "seconds": time.monotonic() - started,
    }
    found |= {name: dict(table.most_common()) for name, table in counts.items()}
    save("fim_rules", found, ["tree-sitter", "tree-sitter-language-pack"], asked.print_only, asked.output)
    if broken or made < asked.samples:
        sys.exit(f"{broken.total()} violations in {made} samples of {asked.samples}")


if __name__ == "__main__":
    main()
