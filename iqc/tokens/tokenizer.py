"""A byte-level BPE tokenizer: trained here, saved so that Transformers loads it, and deaf to control tokens in text.

Any text round-trips exactly: every byte is a token and nothing is normalised. Text that happens to contain
`<|im_end|>` is encoded as ordinary pieces: `encode_ordinary` works on the model without its added tokens, and control
ids are placed by iqc.tokens.render alone. (`encode_special_tokens` of the tokenizers library is not enough: it still
matches added tokens that are not special, such as `<think>`.)

The ids are those of tokenizer.json. The engine is tiktoken where it is proven to give the same ones, and the tokenizers
library where it is not: see iqc.tokens.engine.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from iqc.errors import BadRecord, IqcError
from iqc.streams.writer import write_file
from iqc.tokens.chat import CHAT_TEMPLATE
from iqc.tokens.engine import Unproven, encoding
from iqc.tokens.special import (
    BYTES,
    CONTROL,
    EOS,
    PAD,
    RELEASED_PIECES,
    RELEASED_VOCAB_SIZE,
    SPECIAL,
    VISIBLE,
    pieces,
)
from iqc.tokens.split import BY_PATTERN, LONGEST_RUN, Split
from iqc.tokens.vocabulary import REMEDY, parse, read_vocabulary

if TYPE_CHECKING:
    import tiktoken
    import tokenizers


class Tokenizer:
    """Text <-> token ids. `control` maps each control token to its id; `digest` names the mapping of text to ids;
    `engine` is the library that encodes, and `why` the reason where that is not the fast one."""

    def __init__(self, text: str | bytes):
        """`text`: a tokenizer.json, a byte-level BPE with the control tokens. Raises IqcError where it is another."""
        self._state = parse(text)
        known = read_vocabulary(self._state)
        if absent := [token for token in CONTROL if token not in known.added]:
            few = ", ".join(absent[:4]) + (", ..." if len(absent) > 4 else "")
            raise IqcError(f"a tokenizer that lacks {len(absent)} control tokens: {few}", remedy=REMEDY)
        self.control: dict[str, int] = {token: known.added[token] for token in CONTROL}
        self._pieces = known.pieces
        self._bytes = {number: piece for piece, number in known.pieces.items()}
        self._bytes |= {number: token.encode() for token, number in known.added.items()}
        size = max(self._bytes) + 1
        released = len(known.pieces) == RELEASED_PIECES and size <= RELEASED_VOCAB_SIZE
        self.vocab_size = RELEASED_VOCAB_SIZE if released else size
        self._text = text
        self.pattern = known.pattern
        self.split = BY_PATTERN.get(known.pattern or "")
        self.why = ""
        self._fast: tiktoken.Encoding | None = None
        try:
            self._fast = encoding(known)
        except Unproven as error:
            self.why = str(error)
            _probe(self)
        self.engine = "tiktoken" if self._fast else "tokenizers"

    def __reduce__(self):
        return Tokenizer, (self._text,)

    @cached_property
    def full(self) -> "tokenizers.Tokenizer":
        """The tokenizer as the tokenizers library has it, control tokens included."""
        return _library(self._text)

    @cached_property
    def _plain(self) -> "tokenizers.Tokenizer":
        """Without what would make control tokens of text, cut or pad it, or draw another encoding each time."""
        model = self._state["model"] | {"dropout": None}
        plain = {"model": model, "added_tokens": [], "truncation": None, "padding": None}
        return _library(orjson.dumps(self._state | plain))

    @cached_property
    def digest(self) -> str:
        meaning = {key: self._state.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer")}
        model: dict[str, Any] = self._state["model"]
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        meaning["model"] = model | {"merges": pairs}
        canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """Ids of the text, none of them a control token whatever the text says; the array is read-only.
        Raises BadRecord for a lone surrogate, which is no character."""
        try:
            if self._fast:
                return self._fast.encode_to_numpy(text, disallowed_special=())
            text.encode()
            ids = np.array(self.encode_by_library(text), np.uint32)
        except UnicodeEncodeError as error:
            what = f"a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}"
            raise BadRecord(what, remedy="decode the text with errors='replace'") from None
        ids.flags.writeable = False
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """`encode_array` as a list."""
        return self.encode_array(text).tolist()

    def encode_by_library(self, text: str) -> list[int]:
        """The same ids by the tokenizers library, as Transformers has them."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids, control tokens by name; a row of the vocabulary that no token uses has none.
        Raises IqcError for a number that is no id."""
        numbers = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        try:
            return b"".join(map(self._bytes.__getitem__, numbers))
        except KeyError:
            return b"".join(_rare(self._bytes, number, self.vocab_size) for number in numbers)

    def decode(self, ids: Iterable[int]) -> str:
        """`bytes` as text. What is not UTF-8 becomes U+FFFD."""
        return self.bytes(ids).decode("utf-8", "replace")

    def shown(self, number: int) -> str:
        """A token for a person: its text in quotes, or its bytes where they are a part of a character."""
        found = self.bytes([number])
        try:
            return repr(found.decode())
        except UnicodeDecodeError:
            return repr(found)

    def about(self) -> list[str]:
        """Lines that say what it is: sizes, engine, split, digest, longest tokens, control tokens."""
        learnt = len(self._pieces)
        longest = sorted(self._pieces, key=lambda piece: (-len(piece), piece))[:5]
        rows = {
            "tokens": str(self.vocab_size),
            "pieces": f"{learnt}, of {BYTES} bytes and {learnt - BYTES} merges",
            "unused": str(self.vocab_size - len(self._bytes)),
            "engine": f"{self.engine}: " + (self.why or "proven to give the ids of the tokenizers library"),
            "split": f"digits {self.split.digits}, indent {self.split.indent}" if self.split else "another",
            "pattern": self.pattern or "another pre-tokenizer",
            "longest": ", ".join(f"{len(piece)} bytes of {piece[:8]!r}" for piece in longest),
            "digest": f"sha256:{self.digest}",
        }
        lines = [f"{name:<8} {value}" for name, value in rows.items()]
        return lines + [f"{number:>8} {token}" for token, number in self.control.items()]

    def save(self, directory: Path, *, context: int | None = None, lineage: dict | None = None) -> None:
        """Writes tokenizer.json, tokenizer_config.json and lineage.json, if it has one; `context` is the model's
        longest input, in tokens."""
        check_writable(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": None,
            "additional_special_tokens": [token for token in SPECIAL if token not in (EOS, PAD)],
            "clean_up_tokenization_spaces": False,
            "padding_side": "right",
            "chat_template": CHAT_TEMPLATE,
        }
        if context is not None:
            config["model_max_length"] = context
        if lineage is not None:
            write_file(directory / "lineage.json", orjson.dumps(lineage, option=orjson.OPT_INDENT_2) + b"\n")
        write_file(directory / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
        write_file(directory / "tokenizer.json", self.full.to_str(pretty=True).encode())  # last: it makes a tokenizer


def check_writable(directory: Path) -> None:
    """Raises IqcError where the directory cannot be made, or takes no files: before the work, and leaving nothing."""
    place = next(each for each in (directory.absolute(), *directory.absolute().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        what = "cannot be written" if place.is_dir() else "is a file"
        raise IqcError(f"no tokenizer can go there: {place} {what}", where=str(directory), remedy="name another -o DIR")


def train(texts: Iterable[str], vocab_size: int, split: Split | None = None) -> Tokenizer:
    """Learns a byte-level BPE of `vocab_size` tokens, control tokens included: the same texts give the same tokenizer
    whatever the number of threads. They are read once and not kept; what stays in memory is a count for each distinct
    piece. Raises IqcError when the texts hold too few distinct pairs for that size."""
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

    wanted = pieces(vocab_size)
    cut = pre_tokenizers.Split(Regex((split or Split()).pattern()), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # A merge costs the trainer the length of each piece that it is in: a megabyte of letters in one piece, hours.
    short = pre_tokenizers.Split(Regex(f"(?m:.{{1,{LONGEST_RUN}}})"), behavior="isolated")
    full = tokenizers.Tokenizer(models.BPE())
    full.pre_tokenizer = pre_tokenizers.Sequence([cut, short, to_bytes])
    full.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=wanted, initial_alphabet=alphabet, show_progress=False)
    full.train_from_iterator(iter(texts), trainer)
    if full.get_vocab_size() != wanted:
        raise IqcError(
            f"the texts give {full.get_vocab_size()} pieces, a vocabulary of {vocab_size} needs {wanted}",
            remedy="train on more text, or choose a smaller vocabulary",
        )
    full.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    full.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    full.add_tokens([AddedToken(token, special=False, normalized=False) for token in VISIBLE])
    return Tokenizer(full.to_str())


def load(path: Path) -> Tokenizer:
    """Reads a tokenizer.json, or the directory that holds one. Raises IqcError when it is absent or another kind."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IqcError(
            f"{file}: {getattr(error, 'strerror', 'not a tokenizer')}",
            remedy="name a tokenizer.json, or the directory that holds it",
        ) from None
    try:
        return Tokenizer(text)
    except IqcError as error:
        raise IqcError(error.what, where=str(file), remedy=error.remedy) from None


def _probe(tokenizer: Tokenizer) -> None:
    """Raises IqcError where the library, on a tokenizer that is not ours, adds to a text, loses some of it, or makes a
    control token of it."""
    for text in (*CONTROL, "a", " a  b\n\t1234 'll \u00e9\u6f22\U0001f600\x00"):
        ids = tokenizer.encode_ordinary(text)
        if tokenizer.bytes(ids) != text.encode():
            raise IqcError(f"not exact: it makes {tokenizer.bytes(ids)!r} of {text!r}", remedy=REMEDY)
        if not tokenizer.control.keys().isdisjoint(map(tokenizer.decode, ([number] for number in ids))):
            raise IqcError(f"the control token {text} is also a piece, which text becomes", remedy=REMEDY)


def _rare(known: dict[int, bytes], number: int, size: int) -> bytes:
    if not 0 <= number < size:
        raise IqcError(f"{number} is no token of a vocabulary of {size}", remedy="use the tokenizer of the model")
    return known.get(number, b"")


def _library(text: str | bytes) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text if isinstance(text, str) else text.decode())
    except Exception as error:  # the library raises bare Exception on anything that it cannot read
        raise IqcError(f"not a tokenizer of the tokenizers library: {error}", remedy=REMEDY) from None
