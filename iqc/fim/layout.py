"""How a sample is written as one text, and how source that names control tokens is made harmless in it.

The text is what iqc.tokens.render makes of the record, where the source names no control token. `pack` does not read
it: it encodes the raw parts as ordinary text between control ids.
"""

import re
from collections.abc import Sequence
from typing import TypedDict

from iqc.tokens.special import CONTROL

# psm is the layout of the IQuest-Coder-V1 report (section 3.1); spm puts the suffix first, with the same tokens.
LAYOUTS = {
    "psm": "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|im_end|>",
    "spm": "<|fim_suffix|>{suffix}<|fim_prefix|>{prefix}<|fim_middle|>{middle}<|im_end|>",
}

_CONTROL = re.compile("|".join(map(re.escape, CONTROL)))
_BARE = re.compile(r"(<\|?)(.*?)(\|?>)")


class Snippet(TypedDict):
    """Whole lines of another file of the repository; `line` is the number of the first, from 1."""

    path: str
    text: str
    line: int


def neutralise(text: str) -> tuple[str, int]:
    """Source that names a control token must not contain it: blanks go inside, `<| im_end |>`, `< /think >`.

    Returns the text and how many tokens were changed.
    """
    if not _CONTROL.search(text):
        return text, 0
    return _CONTROL.subn(lambda token: _BARE.sub(r"\1 \2 \3", token[0]), text)


def write(
    layout: str, prefix: str, middle: str, suffix: str, context: Sequence[Snippet] = (), repo: str = "", path: str = ""
) -> tuple[str, int]:
    """The parts in a layout, behind the context where there is one, and how many control tokens were neutralised."""
    texts = [prefix, middle, suffix]
    if context:
        texts += [repo, path, *(snippet[part] for snippet in context for part in ("path", "text"))]
    changed = 0
    for k, text in enumerate(texts):
        texts[k], count = neutralise(text)
        changed += count
    prefix, middle, suffix, *around = texts
    hole = LAYOUTS[layout].format(prefix=prefix, middle=middle, suffix=suffix)
    if not context:
        return hole, changed
    repo, path, *files = around
    shown = "".join(f"<|file_sep|>{name}\n{text}\n" for name, text in zip(files[::2], files[1::2]))
    return f"<|repo_name|>{repo}\n{shown}<|file_sep|>{path}\n{hole}", changed
