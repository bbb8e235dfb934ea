"""Is a tokenizer exact, does it give what Transformers gives, and how many bytes of each language does a token hold."""

from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iqc.errors import IqcError
from iqc.tokens.chat import chat_segments
from iqc.tokens.texts import Texts
from iqc.tokens.tokenizer import Tokenizer

_FAULT = "report this as a fault of iqc, with the text"


@dataclass(slots=True)
class Measured:
    """Bytes of UTF-8 and tokens, by language; `compared`: bytes of texts that the tokenizers library encoded too."""

    bytes: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    compared: int = 0

    def rows(self) -> list[tuple[str, int, int, float]]:
        """(language, bytes, tokens, bytes a token), the largest first, and `all` at the end."""
        order = sorted(self.bytes, key=lambda language: (-self.bytes[language], language))
        sizes = [(language, self.bytes[language], self.tokens[language]) for language in order]
        sizes.append(("all", self.bytes.total(), self.tokens.total()))
        return [(name, size, tokens, size / max(1, tokens)) for name, size, tokens in sizes]


def measure(tokenizer: Tokenizer, texts: Texts, compare: int = 0) -> Measured:
    """Encodes and decodes each text, and where the engine is not the tokenizers library, lets that encode the first
    `compare` bytes as well. Raises IqcError at a text that does not come back, or whose ids differ."""
    found = Measured()
    for language, text in texts.by_language():
        ids = tokenizer.encode_ordinary(text)
        if tokenizer.bytes(ids) != text.encode():
            raise IqcError(f"the round trip of {text[:60]!r} is not exact", remedy=_FAULT)
        found.bytes[language] += len(text.encode())
        found.tokens[language] += len(ids)
        if found.compared < compare:
            if tokenizer.engine != "tokenizers" and tokenizer.encode_by_library(text) != ids:
                raise IqcError(f"{tokenizer.engine} gives other ids of {text[:60]!r}", remedy=_FAULT)
            found.compared = found.bytes.total()
    return found


# One of each thing that the chat template lays out.
_CALL = {"type": "function", "function": {"name": "run", "arguments": {"code": "print('\u00e9')\n"}}}
_CONVERSATION: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What does it print?"},
        {"role": "assistant", "content": "", "reasoning_content": "Run it.", "tool_calls": [_CALL, _CALL]},
        {"role": "tool", "content": "\u00e9"},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "An e with an acute."},
    ],
    "tools": [{"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}],
}


def transformers_parity(tokenizer: Tokenizer, directory: Path) -> str:
    """What Transformers makes of the directory, in words. A chat template other than ours is a remark: a model from
    elsewhere has its own. Raises IqcError where it loads another tokenizer, or none."""
    if find_spec("transformers") is None:
        return "not installed, not compared"
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        same = Tokenizer(theirs.backend_tokenizer.to_str())
    except Exception as error:  # whatever it raises, the user sees the reason
        what = f"Transformers cannot load it: {str(error).splitlines()[0] if str(error) else error!r}"
        raise IqcError(what, where=str(directory), remedy="keep tokenizer_config.json beside tokenizer.json") from None
    if same.digest != Tokenizer(tokenizer.full.to_str()).digest:  # an older file may leave out what the library adds
        what = "Transformers loads another vocabulary, merges or pre-tokenizer from the same files"
        raise IqcError(what, where=str(directory), remedy="take tokenizer_config.json from `iqc tokenizer train`")
    if not theirs.chat_template:
        return "loads the same tokenizer, without a chat template"
    try:
        drawn = theirs.apply_chat_template(_CONVERSATION["messages"], tools=_CONVERSATION["tools"], tokenize=False)
    except Exception as error:  # templates raise what they like
        drawn = f"refused: {error}"
    ours = "".join(segment.value for segment in chat_segments(_CONVERSATION))
    if drawn != ours:
        return "loads the same tokenizer, with another chat template than `iqc pack` has"
    return "loads the same tokenizer and chat template"
