"""How text is cut before BPE: no token reaches across a cut.

The default is the cut of Qwen2: contractions, words with one leading sign, single digits, runs of signs with the line
ends behind them, line ends with the white space before them, other white space (all but its last character, which goes
with what follows). The options change two parts of it; a change of either is measured in tests/bench/README.md.

One thing is added: white space is also cut after every LONGEST_RUN characters. Unbounded, the look-ahead on a run of a
million blanks overflows the stack of one regex engine (fancy-regex of tiktoken, which panics) and costs the other
(Oniguruma of tokenizers) a look at the whole run for each step back. The bound stands in the pattern, so that both
engines, and with them Transformers, give the same ids. Text without such a run is cut exactly as by Qwen2.
"""

from dataclasses import dataclass
from itertools import product

LONGEST_RUN = 512  # characters of white space; longer runs are rare, and each costs a few tokens more

DIGITS = {"one": r"\p{N}", "three": r"\p{N}{1,3}", "run": r"\p{N}+"}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LINES = rf"\s{{0,{LONGEST_RUN}}}[\r\n]+"
INDENT = {"apart": _LINES, "joined": rf"{_LINES}[ \t]{{0,{LONGEST_RUN}}}"}
_BLANKS = rf"\s{{1,{LONGEST_RUN}}}(?!\S)|\s{{1,{LONGEST_RUN}}}"


@dataclass(slots=True, frozen=True)
class Split:
    """`digits`: one a piece, up to three, or a whole run. `indent`: the indentation of a line apart from the line end
    before it, or one piece with it (but for a line end that goes with signs)."""

    digits: str = "one"
    indent: str = "apart"

    def pattern(self) -> str:
        """The regular expression, which Oniguruma and fancy-regex read alike."""
        return "|".join((_WORDS, DIGITS[self.digits], _SIGNS, INDENT[self.indent], _BLANKS))


BY_PATTERN = {split.pattern(): split for split in (Split(*options) for options in product(DIGITS, INDENT))}
