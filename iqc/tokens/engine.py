"""The fast engine: tiktoken, on a vocabulary for which it is proven to give the ids of the tokenizers library.

The tokenizers library merges the pairs of a list, in the order of the list. tiktoken has no list: it merges two
neighbours whenever what they make is a token, the token of the lowest id first. The two agree on every text when

1. the merges stand in the order of the ids of what they make, and each of their halves has a lower id than the whole
   (bytes apart, which may have any id), and
2. tiktoken, given the bytes of any token alone, comes to its last merge with the two halves that the list has.

For if both are at the same state before the merges that make a token t, then wherever two neighbours make t, no merge
so far has crossed its ends; so what happened between them is what happens to t alone, and the neighbours are the halves
that the list has. The rest of a text cannot matter, and both engines take the leftmost of equal pairs first.

Point 2 is read off the merges backwards (`crossing`). Where a point fails, `ranks` raises Unproven with the reason, and
the tokenizers library encodes. A split pattern that is not ours is such a reason too, because the two libraries do not
read every pattern alike.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iqc.tokens.special import BYTES
from iqc.tokens.split import BY_PATTERN

if TYPE_CHECKING:
    import tiktoken

# Each byte has a printable character in a byte-level vocabulary: itself, or the next one from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {byte: byte for byte in _PRINTABLE} | {
    0x100 + i: byte for i, byte in enumerate(byte for byte in range(BYTES) if byte not in _PRINTABLE)
}

# tiktoken looks for its special tokens one character at a time where it has none. With this one it looks for a
# literal, and is told that none is allowed: text that holds it is encoded as any other.
_NEVER_ALLOWED = "<|never_allowed|>"

_NOTHING = (None, "", False)
_PLAIN = {
    "dropout": (None, 0, 0.0),
    "unk_token": (None,),
    "continuing_subword_prefix": _NOTHING,
    "end_of_word_suffix": _NOTHING,
    "byte_fallback": _NOTHING,
}


class Unproven(Exception):
    """Why the two engines may differ on a vocabulary."""


def bytes_of(piece: str) -> bytes:
    """The bytes that a piece of a byte-level vocabulary stands for. Raises ValueError when it is none."""
    try:
        return bytes(BYTE_OF[ord(character)] for character in piece)
    except KeyError:
        raise ValueError(f"{piece!r} is no piece of a byte-level vocabulary") from None


def encoding(state: Mapping[str, Any]) -> "tiktoken.Encoding":
    """The engine of a tokenizer.json, parsed. Raises Unproven where it may not give the same ids."""
    import tiktoken

    pattern = split_of(state)
    if pattern is None:
        raise Unproven("its pre-tokenizer is not a split and then a byte level")
    if pattern not in BY_PATTERN:
        raise Unproven("its split pattern is not one of `iqc tokenizer train`")
    found = ranks(state["model"])
    return tiktoken.Encoding(
        "iqc", pat_str=pattern, mergeable_ranks=found, special_tokens={_NEVER_ALLOWED: max(found.values()) + 1}
    )


def split_of(state: Mapping[str, Any]) -> str | None:
    """The regular expression of a pre-tokenizer that splits by one and then maps bytes; None where it is another."""
    match state.get("pre_tokenizer"):
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def ranks(model: Mapping[str, Any]) -> dict[bytes, int]:
    """Bytes of each token -> its id. Raises Unproven unless merging by them is merging by the list."""
    for setting, plain in _PLAIN.items():
        if model.get(setting) not in plain:
            raise Unproven(f"its model has {setting} {model[setting]!r}")
    vocab = model["vocab"]
    try:
        found = {bytes_of(piece): number for piece, number in vocab.items()}
    except ValueError as error:
        raise Unproven(str(error)) from None
    if any(bytes([byte]) not in found for byte in range(BYTES)):
        raise Unproven("it lacks a byte")
    order = {token: number if len(token) > 1 else -1 for token, number in found.items()}
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    last = -1
    for left, right in merges_of(model):
        number = vocab.get(left + right)
        if number is None or left not in vocab or right not in vocab:
            raise Unproven(f"a merge of {left!r} and {right!r}, which are not all tokens")
        one, other = bytes_of(left), bytes_of(right)
        if number <= last or order[one] >= number or order[other] >= number:
            raise Unproven(f"its merges are not in the order of the ids: {left!r} + {right!r}")
        halves[one + other] = (one, other)
        last = number
    if len(halves) + BYTES != len(found):
        raise Unproven("it has tokens that no merge makes")
    for token, (one, other) in halves.items():
        if crossing(one, other, order[token], order, halves):
            raise Unproven(f"its token {token!r} is not made by its own merge")
    return found


def merges_of(model: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    """The merges as pairs; older files have them as strings with a blank between."""
    return [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]


def crossing(
    left: bytes,
    right: bytes,
    rank: int,
    order: Mapping[bytes, int],
    halves: Mapping[bytes, tuple[bytes, bytes]],
) -> bool:
    """Whether merging by rank joins bytes across the boundary of two neighbours before the turn of `rank`.

    Goes back in time: of the two tokens at the boundary the later one is cut in its halves, and the neighbours that
    the boundary had before then must not have made a token whose turn came first. Of equal pairs the left one is
    first, so a pair as old as the cut token counts when the right token was cut."""
    limit = rank
    while True:
        if order.get(left + right, limit) < limit:
            return True
        if order[left] < 0 and order[right] < 0:
            return False
        if order[left] > order[right]:
            limit, left = order[left], halves[left][1]
        else:
            limit, right = order[right] + 1, halves[right][0]
