"""Fill-in-the-middle samples from documents, at file level.

A document is cut into prefix, middle and suffix, and formatted for a causal model to predict the middle (Bavarian et
al., arXiv 2207.14255). Five levels say where the cuts may fall: `character` (two uniform cuts), `line` (one line), and
the syntax levels `expression`, `statement` and `function`, each a whole node of the file's syntax tree (IQuest-Coder-V1
report, section 3.1). Samples with context from other files of the repository are not made here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from tree_sitter import Node, Tree

from iqc.errors import BadRecord, UsageError
from iqc.streams.stage import Dropped, Record, metadata_of, rng
from iqc.syntax.languages import SYNTAX_LEVELS, language_of_record, languages
from iqc.syntax.parse import encode, nodes, parse

LEVELS = ("character", "line", *SYNTAX_LEVELS)

# psm is the report's layout (section 3.1); spm puts the suffix first, with the same tokens.
LAYOUTS = {
    "psm": "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|im_end|>",
    "spm": "<|fim_suffix|>{suffix}<|fim_prefix|>{prefix}<|fim_middle|>{middle}<|im_end|>",
}

# The tokens that the vocabulary of IQuest-Coder-V1 marks as special.
_SPECIAL = re.compile(r"<\|(im_start|im_end|fim_prefix|fim_middle|fim_suffix|fim_pad|endoftext|repo_name|file_sep)\|>")
# Lines end as Git and compilers see them: str.splitlines would also cut at form feeds and Unicode separators.
_LINE = re.compile(r"[^\r\n]+")

Cut = tuple[int, int]


def neutralise(text: str) -> tuple[str, int]:
    """Source that names a special token must not contain it: a blank goes inside each bar, `<| im_end |>`.

    Returns the text and how many tokens were changed.
    """
    return _SPECIAL.subn(r"<| \1 |>", text) if "<|" in text else (text, 0)


@dataclass(frozen=True, slots=True)
class FillInTheMiddle:
    """The stage `document -> fim records`, or the document itself, unchanged, for the share that is not drawn.

    rate      share of documents that become samples, in [0, 1] (0.5 in StarCoder and Seed-Coder)
    weights   relative weight of each of LEVELS; a missing level has weight 0
    layout    a key of LAYOUTS
    samples   samples of a drawn document; fewer when the same cut is drawn again
    """

    rate: float = 0.5
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 1.0))
    layout: str = "psm"
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UsageError(f"the rate of fill-in-the-middle is {self.rate}", remedy="give a share from 0 to 1")
        if self.layout not in LAYOUTS:
            raise UsageError(f"no layout named {self.layout!r}", remedy=f"use one of {', '.join(LAYOUTS)}")
        if unknown := sorted(set(self.weights) - set(LEVELS)):
            raise UsageError(f"no level named {unknown[0]!r}", remedy=f"use {', '.join(LEVELS)}")
        weights = self.weights.values()
        if not all(0 <= weight < float("inf") for weight in weights) or sum(weights) <= 0:
            raise UsageError("the weights of the levels are not positive", remedy="give one level a weight above 0")
        if self.samples < 1:
            raise UsageError(f"{self.samples} samples a document", remedy="ask for at least 1")

    def transform(self, record: Record) -> Iterator[Record | Dropped]:
        """Samples keep the document's fields; `text` is the formatted sample; prefix + middle + suffix is the source.

        `middle` is never blank. A level that the file cannot give (unknown language, no such node) becomes a line, and
        `metadata.fim_fallback` names the level and the reason. `metadata.fim_neutralised` counts the special tokens
        that the source contained. A drawn document without a visible character is dropped by rule `fim.blank`.
        """
        source, name = record.get("text"), record.get("id")
        if not isinstance(source, str) or not isinstance(name, str):
            raise BadRecord("a document needs `id` and `text`, both strings", remedy="give document records")
        random = rng(self.seed, "fim", name)
        if random.random() >= self.rate:
            yield record
            return
        if not source.strip():
            yield Dropped(record, "fim.blank", 0, 1)
            return
        cutter = _Cutter(source, language_of_record(record))
        drawn = set()
        levels = [level for level in LEVELS if self.weights.get(level, 0) > 0]
        weights = [self.weights[level] for level in levels]
        for _ in range(self.samples):
            wanted = random.choices(levels, weights)[0]
            level, (start, end), reason = cutter.cut(wanted, random)
            if (start, end) in drawn:
                continue
            drawn.add((start, end))
            sample = self._format(record, source[:start], source[start:end], source[end:])
            sample |= {"id": f"{name}#fim{len(drawn) - 1}", "level": level}
            if reason:
                sample["metadata"]["fim_fallback"] = {"level": wanted, "reason": reason}
            yield sample

    def _format(self, record: Record, prefix: str, middle: str, suffix: str) -> Record:
        clean, changed = {}, 0
        for part, text in (("prefix", prefix), ("middle", middle), ("suffix", suffix)):
            clean[part], count = neutralise(text)
            changed += count
        metadata = dict(metadata_of(record))
        if changed:
            metadata["fim_neutralised"] = changed
        return record | {
            "text": LAYOUTS[self.layout].format(**clean),
            "prefix": prefix,
            "suffix": suffix,
            "middle": middle,
            "layout": self.layout,
            "context": [],
            "metadata": metadata,
        }


class _Cutter:
    """Draws cuts in one source, which is parsed at most once and only if a syntax level is drawn."""

    def __init__(self, source: str, lang: str | None):
        self.source = source
        self.lang = lang
        self._tree: Tree | None = None
        self._data = b""
        self._lines: list[Cut] = []
        self._found: dict[str, list[Node]] = {}

    def cut(self, level: str, random: Random) -> tuple[str, Cut, str | None]:
        """The level that the cut has, the cut in characters, and why it is not the level asked for."""
        if level == "character":
            return level, self._characters(random), None
        if level == "line":
            return level, self._line(random), None
        if self.lang is None or self.lang not in languages():
            return "line", self._line(random), "unknown language"
        if level not in languages()[self.lang].levels:
            return "line", self._line(random), "the language has no such level"
        if (cut := self._node(self.lang, level, random)) is None:
            return "line", self._line(random), "the file has no such node"
        return level, cut, None

    def _characters(self, random: Random) -> Cut:
        """Two uniform cuts between characters, drawn again while the middle is blank.

        A file that is nearly all white space would be drawn from for ever: after 16 draws the cuts fall on both sides
        of one visible character.
        """
        size = len(self.source)
        for _ in range(16):
            start, end = sorted((random.randint(0, size), random.randint(0, size)))
            if not self.source[start:end].isspace() and start < end:
                return start, end
        left = len(self.source) - len(self.source.lstrip())
        return random.randint(0, left), random.randint(left + 1, size)

    def _line(self, random: Random) -> Cut:
        """A line that is not blank, uniformly, with its indentation and without its line end."""
        if not self._lines:
            self._lines = [match.span() for match in _LINE.finditer(self.source) if not match[0].isspace()]
        return random.choice(self._lines)

    def _node(self, lang: str, level: str, random: Random) -> Cut | None:
        """A node of the level, uniformly among all of them, nested ones included; never the whole source.

        All nodes are collected: the query runs in C; for expressions, the most numerous, it costs two thirds of the
        parse. The cheaper way, a random byte and its first ancestor of the level, draws a node in proportion to the
        bytes that belong to no nested node of the level, and so favours long nodes; setting that right by rejection
        (accept with probability 1 / those bytes) needs hundreds of draws for a function, each with a walk over its
        subtree.
        """
        if self._tree is None:
            self._data = encode(self.source)
            self._tree = parse(self._data, lang)
        if level not in self._found:
            self._found[level] = nodes(self._tree, lang, level)
        found = self._found[level]
        if not found:
            return None
        node = random.choice(found)
        if not self._usable(node):  # rare: only then is the list gone through
            usable = [node for node in found if self._usable(node)]
            if not usable:
                return None
            node = random.choice(usable)
        start, end = node.start_byte, node.end_byte
        if len(self._data) == len(self.source):
            return start, end
        before = len(self._data[:start].decode())
        return before, before + len(self._data[start:end].decode())

    def _usable(self, node: Node) -> bool:
        middle = self._data[node.start_byte : node.end_byte].strip()
        return 0 < len(middle) < len(self._data.strip())
