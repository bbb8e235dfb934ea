"""The fast engine: tiktoken, on a vocabulary for which it is proven to give the ids of the tokenizers library.

The tokenizers library merges the pairs of a list, in the order of the list. tiktoken has no list: it merges two
neighbours whenever what they make is a token, the token of the lowest id first. The two agree on every text when

1. the merges stand in the order of the ids of what they make, and each of their halves has a lower id than the whole
   (bytes apart, which may have any id), and
2. tiktoken, given the bytes of any token alone, comes to its last merge with the two halves that the list has.

For if both are at the same state before the merges that make a token t, then wherever two neighbours make t, no merge
so far has crossed its ends; so what happened between them is what happens to t alone, and the neighbours are the halves
that the list has. The rest of a text cannot matter, and both engines take the leftmost of equal pairs first.

Point 2 is read off the merges backwards (`crossing`). Where a point fails, `prove` raises Unproven with the reason, and
the tokenizers library encodes. A split pattern that is not ours is such a reason too, because the two libraries do not
read every pattern alike.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from iqc.tokens.special import BYTES
from iqc.tokens.split import BY_PATTERN
from iqc.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tiktoken

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


def encoding(vocabulary: Vocabulary) -> "tiktoken.Encoding":
    """The engine of a vocabulary. Raises Unproven where it may not give the same ids."""
    import tiktoken

    pattern = vocabulary.pattern
    if pattern is None:
        raise Unproven("its pre-tokenizer is not a split and then a byte level")
    if pattern not in BY_PATTERN:
        raise Unproven("its split pattern is not one of `iqc tokenizer train`")
    prove(vocabulary)
    never = {_NEVER_ALLOWED: max(vocabulary.pieces.values()) + 1}
    return tiktoken.Encoding("iqc", pat_str=pattern, mergeable_ranks=vocabulary.pieces, special_tokens=never)


def prove(vocabulary: Vocabulary) -> None:
    """Raises Unproven unless merging by the ids is merging by the list."""
    for setting, plain in _PLAIN.items():
        if vocabulary.model.get(setting) not in plain:
            raise Unproven(f"its model has {setting} {vocabulary.model[setting]!r}")
    order = {piece: number if len(piece) > 1 else -1 for piece, number in vocabulary.pieces.items()}
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    last = -1
    for left, right in vocabulary.merges:
        number = order.get(left + right, -1)
        if number <= last or order[left] >= number or order[right] >= number:
            raise Unproven(f"its merges are not in the order of the ids: {left!r} and {right!r}")
        halves[left + right] = (left, right)
        last = number
    if len(halves) + BYTES != len(order):
        raise Unproven("it has pieces that no merge makes")
    for piece, (left, right) in halves.items():
        if crossing(left, right, order[piece], order, halves):
            raise Unproven(f"its piece {piece!r} is not made by its own merge")


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
