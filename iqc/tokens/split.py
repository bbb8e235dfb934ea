"""How text is cut before BPE: no token reaches across a cut.

The cut is that of Qwen2: contractions, words with one leading sign, single digits, runs of signs with the line ends
behind them, line ends with the white space before them, other white space (all but its last character, which goes with
what follows). One thing is added: white space is also cut after every LONGEST_RUN characters. Unbounded, the look-ahead
on a run of a million blanks overflows the stack of one regex engine (fancy-regex of tiktoken, which panics) and costs
the other (Oniguruma of tokenizers) a look at the whole run for each step back. The bound stands in the pattern, so that
both engines, and with them Transformers, give the same ids. Text without such a run is cut exactly as by Qwen2.
"""

LONGEST_RUN = 512  # characters of white space; real code has hardly any longer run, and each costs two tokens or three

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACE = rf"\s{{0,{LONGEST_RUN}}}[\r\n]+|\s{{1,{LONGEST_RUN}}}(?!\S)|\s{{1,{LONGEST_RUN}}}"
SPLIT = "|".join((WORDS, r"\p{N}", SIGNS, SPACE))
