"""What a tokenizer.json of a byte-level BPE holds, read and checked: nothing of it is believed.

The file may come from anywhere. A token whose id is another's, a merge of what is no token or a byte that is missing
would give wrong ids, and in silence.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from iqc.errors import IqcError
from iqc.tokens.special import BYTES

REMEDY = "use what `iqc tokenizer train` wrote, or a tokenizer.json of a byte-level BPE that has the control tokens"
MAX_SIZE = 1 << 24  # tokens; what `iqc tokenizer train` makes at most

# Each byte has a printable character in a byte-level vocabulary: itself, or the next one from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {byte: byte for byte in _PRINTABLE} | {
    0x100 + i: byte for i, byte in enumerate(byte for byte in range(BYTES) if byte not in _PRINTABLE)
}
_TABLE = {point: 0xFFFF for point in range(BYTES)} | BYTE_OF  # U+FFFF is what Latin-1 lacks


@dataclass(slots=True, frozen=True)
class Vocabulary:
    """`pieces`: bytes -> id. `merges`: the two halves of each, in order. `added`: the text of added tokens -> id.
    `model`: the settings of the BPE. `pattern`: what text is split by, None where the pre-tokenizer does other things.
    """

    pieces: dict[bytes, int]
    merges: list[tuple[bytes, bytes]]
    added: dict[str, int]
    model: dict[str, Any]
    pattern: str | None


def read_vocabulary(state: Any) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json. Raises IqcError, with the reason, where it is not as above."""
    model = _dict(state, "model")
    if model.get("type", "BPE") != "BPE" or state.get("normalizer") is not None:
        raise _error("not a byte-level BPE without normaliser")
    vocab = _dict(model, "vocab")
    whole = {piece: _bytes(piece) for piece in vocab}
    pieces = {whole[piece]: _id(number, piece) for piece, number in vocab.items()}
    for byte in range(BYTES):  # the library would pass over it in silence
        if bytes([byte]) not in pieces:
            raise _error(f"a tokenizer without a token for the byte 0x{byte:02X}")
    added = {}
    for token in state.get("added_tokens") or []:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content:
            raise _error(f"an added token that is {token!r:.80}")
        added[content] = _id(token.get("id"), content)
    _distinct(pieces, added)
    try:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        merges = [(whole[left], whole[right]) for left, right in pairs]
    except (KeyError, ValueError, TypeError) as error:
        raise _error(f"a list of merges that are not of two pieces each: {error!r:.80}") from None
    settings = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
    return Vocabulary(pieces, merges, added, settings, _pattern(state.get("pre_tokenizer")))


def parse(text: str | bytes) -> dict[str, Any]:
    """The JSON of a tokenizer.json. Raises IqcError."""
    try:
        state = orjson.loads(text)
    except ValueError as error:
        raise _error(f"not a tokenizer: {error}") from None
    if not isinstance(state, dict):
        raise _error("not a tokenizer: no JSON object")
    return state


def _pattern(pre_tokenizer: Any) -> str | None:
    match pre_tokenizer:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def _distinct(pieces: dict[bytes, int], added: dict[str, int]) -> None:
    """No id means two things."""
    if len(set(pieces.values())) < len(pieces):
        raise _error("two pieces with one id")
    by_id = {number: piece for piece, number in pieces.items()}
    for token, number in added.items():
        if by_id.setdefault(number, token.encode()) != token.encode():
            raise _error(f"the added token {token!r} with the id of another, {number}")


def _bytes(piece: str) -> bytes:
    try:
        return piece.translate(_TABLE).encode("latin-1")
    except UnicodeEncodeError:
        raise _error(f"not a byte-level BPE: {piece!r:.40} stands for no bytes") from None


def _id(number: Any, token: str) -> int:
    if type(number) is not int or not 0 <= number < MAX_SIZE:
        raise _error(f"a token, {token!r:.40}, with the id {number!r:.40}")
    return number


def _dict(state: dict[str, Any], name: str) -> dict[str, Any]:
    value = state.get(name)
    if not isinstance(value, dict):
        raise _error(f"not a tokenizer: no {name}")
    return value


def _error(what: str) -> IqcError:
    return IqcError(what, remedy=REMEDY)
