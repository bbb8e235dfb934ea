"""Where a source is cut: the start and end of the hole, drawn at one of five levels.

`character`: two uniform boundaries. They lie between Unicode code points, so that a cut can divide a letter from its
combining mark, the parts of an emoji, or CR from LF: the model meets such boundaries in an editor, and the parts stay
valid Unicode. Byte-level BPE encodes each part alone. `line`: one line, with its indentation, without its line end.
`expression`, `statement` and `function`: one whole node of the syntax tree (IQuest-Coder-V1 report, section 3.1).

Each cut is uniform over all of its level. A level that a file cannot give becomes a line, with the reason.
"""

from random import Random

import numpy as np
from tree_sitter import Node, Tree

from iqc.errors import IqcError
from iqc.syntax.languages import SYNTAX_LEVELS, languages
from iqc.syntax.parse import draw, encode, parse

LEVELS = ("character", "line", *SYNTAX_LEVELS)

MAX_PARSED = 4_000_000  # bytes; a tree takes 20 to 80 bytes a byte of source
PARSE_SECONDS = 5.0  # of processor time; real files of that size take one
_DRAWS = 16  # of lines and characters, until what may be drawn is listed
_LINE_ENDS = (10, 13)  # as Git and compilers see them: str.splitlines would also cut at form feeds and U+2028

Cut = tuple[int, int]  # in characters


class Cutter:
    """Draws cuts in one source that has a visible character; it is parsed at most once, and only for a syntax level.

    `limit`: the most characters of a middle; 0 for no limit.
    """

    def __init__(self, source: str, lang: str | None, limit: int = 0):
        self.source = source
        self.lang = lang
        self.limit = limit or len(source)
        self._bytes: bytes | None = None
        self._ends: np.ndarray | None = None
        self._visible = (0, 0)  # the bytes from the first visible character to the last
        self._tree: Tree | None = None
        self._refused = ""  # why there is no tree

    def cut(self, level: str, random: Random) -> tuple[str, Cut, str | None]:
        """The level that the cut has, the cut, and why it is not the level asked for."""
        reason = None
        if level in SYNTAX_LEVELS:
            found = self._node(level, random)
            if not isinstance(found, str):
                return level, found, None
            reason = found
        if level != "character":
            if cut := self._line(random):
                return "line", cut, reason
            reason = reason or "no line is within the limit"
        return "character", self._characters(random), reason

    def _characters(self, random: Random) -> Cut:
        """Two uniform cuts, not further apart than the limit, drawn again while the middle is blank.

        A file that is nearly all white space would be drawn from for ever: after some draws the cuts fall on both sides
        of its first visible character.
        """
        size, limit = len(self.source), self.limit
        for _ in range(_DRAWS):
            if limit < size:  # every pair within the limit is equally likely, but for those that leave the file
                start = random.randrange(size)
                end = start + random.randint(1, limit)
            else:
                start, end = sorted((random.randint(0, size), random.randint(0, size)))
            if start < end <= size and not self.source[start:end].isspace():
                return start, end
        visible = size - len(self.source.lstrip())
        start = random.randint(max(0, visible + 1 - limit), visible)
        return start, random.randint(visible + 1, min(size, start + limit))

    def _line(self, random: Random) -> Cut | None:
        """A line that is not blank, uniformly; None when all of those are over the limit."""
        if self._ends is None:
            data = np.frombuffer(self._data(), np.uint8)
            ends = np.flatnonzero(data == _LINE_ENDS[0])
            if "\r" in self.source:  # CR LF: the line between the two is blank
                ends = np.flatnonzero((data == _LINE_ENDS[0]) | (data == _LINE_ENDS[1]))
            self._ends = np.concatenate(([-1], ends, [len(data)]))
        lines = len(self._ends) - 1
        for _ in range(_DRAWS):
            k = random.randrange(lines)
            if self._usable(start := int(self._ends[k]) + 1, end := int(self._ends[k + 1])):
                return self._in_characters(start, end)
        starts, ends = (self._ends[:-1] + 1).tolist(), self._ends[1:].tolist()
        usable = [line for line in zip(starts, ends) if self._usable(*line)]
        return self._in_characters(*random.choice(usable)) if usable else None

    def _node(self, level: str, random: Random) -> Cut | str:
        """A node of the level, uniformly, nested ones included, never the whole source; or why there is none."""
        if self.lang is None or self.lang not in languages():
            return "unknown language"
        if level not in languages()[self.lang].levels:
            return "the language has no such level"
        if (tree := self._parsed(self.lang)) is None:
            return self._refused
        if (node := draw(tree, self.lang, level, random, self._whole)) is None:
            return "the file has no such node"
        return self._in_characters(node.start_byte, node.end_byte)

    def _parsed(self, lang: str) -> Tree | None:
        if self._tree is None and not self._refused:
            data = self._data()
            if len(data) > MAX_PARSED:
                self._refused = "the file is too large to parse"
                return None
            try:
                self._tree = parse(data, lang, PARSE_SECONDS)
            except IqcError as error:
                self._refused = f"not parsed: {error.what}"
            except TimeoutError:
                self._refused = "the parse takes too long or crashes"
            self._visible = len(data) - len(data.lstrip()), len(data.rstrip())
        return self._tree

    def _whole(self, node: Node) -> bool:
        """Whether the node is usable and leaves something of the source."""
        first, last = self._visible
        return (node.start_byte > first or node.end_byte < last) and self._usable(node.start_byte, node.end_byte)

    def _usable(self, start: int, end: int) -> bool:
        """Whether these bytes, as a middle, are not blank and within the limit."""
        if end - start > 4 * self.limit:  # a code point has at most four bytes
            return False
        middle = self._data()[start:end].decode()
        return 0 < len(middle) <= self.limit and not middle.isspace()

    def _data(self) -> bytes:
        """The source in UTF-8, as nodes count it; BadRecord for a lone surrogate."""
        if self._bytes is None:
            self._bytes = encode(self.source)
        return self._bytes

    def _in_characters(self, start: int, end: int) -> Cut:
        if self.source.isascii():
            return start, end
        data = self._data()
        before = len(data[:start].decode())
        return before, before + len(data[start:end].decode())
