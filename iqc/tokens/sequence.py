"""The sequence record: one row of training tokens, its documents and its loss weights, as base64 of little-endian
arrays. A row holds whole documents back to back and no padding. No token sees another document, and positions restart
at each.

A document may be a trie: texts that share their beginnings, each token once, depth first, so that what follows a token
lies behind it without a gap. `parents` then tells, for every token of the row, the index inside its document of the
token before it on its path, -1 for the first. A token sees those on its path, and its position is its depth. In a
document that is no trie the parent is the token before. A row without tries has no `parents`.
"""

import binascii
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pybase64
from numpy.typing import NDArray

from iqc.errors import BadRecord
from iqc.streams.stage import Record


@dataclass(slots=True)
class Row:
    """tokens [n] u32; lengths [documents] u32, their sum is n; loss [n] u8 (only 0 and 1) or f32: the weight of
    predicting each token from those before it in its document, so 0 at the first token of every document; parents [n]
    i32 or None; an id for each document."""

    tokens: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    loss: NDArray[np.uint8] | NDArray[np.float32]
    ids: list[str]
    parents: NDArray[np.int32] | None = None


def encode_sequence(
    *, id: str, ids: list[str], tokens: NDArray, lengths: NDArray, loss: NDArray, parents: NDArray | None = None
) -> Record:
    """Arrays -> record. The loss of the first token of every document becomes 0: nothing comes before it."""
    first = starts(lengths)
    if loss[first].any():
        loss = loss.copy()
        loss[first] = 0
    binary = loss.dtype == np.uint8 or bool(np.isin(loss, (0, 1)).all())
    record = {
        "id": id,
        "ids": ids,
        "tokens": _pack(tokens, "<u4"),
        "lengths": _pack(lengths, "<u4"),
        "loss": _pack(loss, "u1" if binary else "<f4"),
    }
    return record if parents is None else record | {"parents": _pack(parents, "<i4")}


def decode_sequence(record: Record) -> Row:
    """Record -> arrays. Raises BadRecord when a field is absent, is not base64, or the sizes disagree."""
    tokens, lengths = _unpack(record, "tokens", "<u4"), _unpack(record, "lengths", "<u4")
    raw = _bytes(record, "loss")
    sizes, ids = lengths.tolist(), record.get("ids")  # few: lists are faster than arrays
    total = sum(sizes)
    if total != tokens.size or len(raw) not in (tokens.size, 4 * tokens.size) or 0 in sizes:
        raise BadRecord(
            f"a sequence of {tokens.size} tokens whose lengths add up to {total} and whose loss has {len(raw)} bytes",
            remedy="pack the samples again",
        )
    if not isinstance(ids, list) or len(ids) != lengths.size:
        raise BadRecord(f"a sequence of {lengths.size} documents without one id each", remedy="pack the samples again")
    loss = np.frombuffer(raw, "u1" if len(raw) == tokens.size else "<f4")
    if total and any(map(loss.item, accumulate(sizes[:-1], initial=0))):
        raise BadRecord("a sequence with a loss on the first token of a document", remedy="pack the samples again")
    if loss.dtype != np.uint8 and not ((loss >= 0) & (loss < np.inf)).all():
        raise BadRecord("a sequence with a loss that is negative or no number", remedy="pack the samples again")
    parents = _parents(record, lengths) if "parents" in record else None
    return Row(tokens, lengths, loss, ids, parents)


def starts(lengths: NDArray) -> NDArray[np.int64]:
    """Where each document of a row starts: [documents]."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def chain(size: int) -> NDArray[np.int32]:
    """The parents of a document that is no trie: -1, 0, 1, ..."""
    return np.arange(-1, size - 1, dtype=np.int32)


def _parents(record: Record, lengths: NDArray) -> NDArray[np.int32]:
    """Checked: the first token of a document has none, any other one that comes before it."""
    parents, first = _unpack(record, "parents", "<i4"), starts(lengths)
    if parents.size == int(lengths.sum(dtype=np.int64)):
        place = np.arange(parents.size) - np.repeat(first, lengths)
        if (parents < place).all() and ((parents < 0) == (place == 0)).all() and (parents >= -1).all():
            return parents
    raise BadRecord("a sequence whose parents are no tries of its documents", remedy="pack the samples again")


def _pack(array: NDArray, dtype: str) -> str:
    return pybase64.b64encode_as_string(array.astype(dtype, copy=False).tobytes())


def _unpack(record: Record, field: str, dtype: str) -> NDArray:
    raw = _bytes(record, field)
    try:
        return np.frombuffer(raw, dtype)
    except ValueError:
        what = f"{field} has {len(raw)} bytes, not a whole number of items"
        raise BadRecord(what, remedy="pack the samples again") from None


def _bytes(record: Record, field: str) -> bytes:
    try:
        return pybase64.b64decode(record[field], validate=True)
    except KeyError:
        raise BadRecord(f"no sequence record: it has no {field}", remedy="give the output of `iqc pack`") from None
    except (TypeError, ValueError, binascii.Error):
        raise BadRecord(f"{field} is not base64", remedy="give a sequence record, as `iqc pack` writes it") from None
