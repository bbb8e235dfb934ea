"""A byte-level BPE tokenizer: trained here, saved so that Transformers loads it, and deaf to control tokens in text.

Any text round-trips exactly: every byte is a token and nothing is normalised. Text that happens to contain
`<|im_end|>` is encoded as ordinary pieces: `encode_ordinary` works on a copy of the model that has no added tokens,
and control ids are placed by iqc.tokens.render alone. (`encode_special_tokens` of the tokenizers library is not enough:
it still matches added tokens that are not special, such as `<think>`.)
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from iqc.errors import IqcError
from iqc.streams.writer import write_file
from iqc.tokens.chat import CHAT_TEMPLATE
from iqc.tokens.special import EOS, PAD, RELEASED_PIECES, RELEASED_VOCAB_SIZE, SPECIAL, VISIBLE, pieces, special_ids

# The split of Qwen2: contractions, words with one leading sign, single digits, runs of signs, line ends, white space.
# Kept letter for letter, because llama.cpp refuses a pre-tokenizer that it does not know.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text <-> token ids. `control` maps each control token to its id; `digest` names the mapping of text to ids."""

    def __init__(self, full: tokenizers.Tokenizer):
        """`full`: a byte-level BPE with the control tokens as its last ids. Raises IqcError where it is another."""
        state = json.loads(full.to_str())
        if state["model"].get("type") != "BPE" or state.get("normalizer") is not None:
            raise IqcError(
                "not a byte-level BPE without normaliser", remedy="use a tokenizer made by `iqc tokenizer train`"
            )
        size = len(state["model"]["vocab"])
        self.vocab_size = RELEASED_VOCAB_SIZE if size == RELEASED_PIECES else full.get_vocab_size()
        self.control = special_ids(self.vocab_size)
        found = {token["content"]: token["id"] for token in state["added_tokens"]}
        absent = [token for token in self.control if token not in found]
        if absent or found != self.control:
            what = f"lacks {absent[0]}" if absent else f"has others, or other ids: {found}"
            raise IqcError(
                f"a tokenizer whose control tokens are not the {len(self.control)} expected last ids: it {what}",
                remedy="use a tokenizer made by `iqc tokenizer train`",
            )
        self.full = full
        meaning = {key: state[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
        self.digest = hashlib.sha256(canonical.encode()).hexdigest()
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))

    def __reduce__(self):
        return _from_json, (self.full.to_str(),)

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of the text, none of them a control token whatever the text says."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_ordinary_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_ordinary` of each text, on all cores."""
        return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included. Bytes that are not UTF-8 become U+FFFD."""
        return self.full.decode(list(ids), skip_special_tokens=False)

    def save(self, directory: Path, *, context: int | None = None) -> None:
        """Writes tokenizer.json and tokenizer_config.json; `context` is the model's longest input, in tokens."""
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
        write_file(directory / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
        write_file(directory / "tokenizer.json", self.full.to_str(pretty=True).encode())  # last: it makes a tokenizer


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE of `vocab_size` tokens, control tokens included: the same texts give the same tokenizer
    whatever the number of threads. Raises IqcError when the texts hold too few distinct pairs for that size."""
    wanted = pieces(vocab_size)
    full = tokenizers.Tokenizer(models.BPE())
    full.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    full.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=wanted, initial_alphabet=alphabet, show_progress=False)
    full.train_from_iterator(texts, trainer)
    if full.get_vocab_size() != wanted:
        raise IqcError(
            f"the texts give {full.get_vocab_size()} pieces, a vocabulary of {vocab_size} needs {wanted}",
            remedy="train on more text, or choose a smaller vocabulary",
        )
    full.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    full.add_tokens([AddedToken(token, special=False, normalized=False) for token in VISIBLE])
    return Tokenizer(full)


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
        return _from_json(text)
    except IqcError as error:
        raise IqcError(error.what, where=str(file), remedy=error.remedy) from None
    except Exception as error:  # the library raises bare Exception on anything that it cannot read
        raise IqcError(
            f"not a tokenizer: {error}", where=str(file), remedy="name a tokenizer.json of the tokenizers library"
        ) from None


def _from_json(text: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text))
