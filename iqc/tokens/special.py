"""The control tokens of the released checkpoints, in their order; they follow the pieces of a vocabulary of any size.

The released vocabulary has 76,800 rows: 75,858 pieces, then these 22 tokens, then 920 rows that no token uses.
Any other size has no unused rows: pieces + control tokens == vocabulary size.
"""

from iqc.errors import IqcError

# The first fourteen are "special" in the sense of Hugging Face (skipped when text is decoded for a reader);
# the last eight are single tokens that a reader wants to see.
SPECIAL = (
    "<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>",
    "<|im_start|>", "<|im_end|>",
    "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|endoftext|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
VISIBLE = (
    "<think>", "</think>", "<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
CONTROL = SPECIAL + VISIBLE

EOS = "<|im_end|>"
PAD = "<|endoftext|>"

RELEASED_VOCAB_SIZE = 76_800
RELEASED_PIECES = 75_858
BYTES = 256  # a byte-level vocabulary holds every byte, so that any text has an encoding


def pieces(vocab_size: int) -> int:
    """How many ordinary tokens a vocabulary of that size holds; the control tokens follow them."""
    count = RELEASED_PIECES if vocab_size == RELEASED_VOCAB_SIZE else vocab_size - len(CONTROL)
    if count < BYTES:
        raise IqcError(
            f"a vocabulary of {vocab_size} has no room for {BYTES} bytes and {len(CONTROL)} control tokens",
            remedy=f"use at least {BYTES + len(CONTROL)}",
        )
    return count
