"""The text that a tokenizer is trained on or measured on: that of records of any kind, by language, within limits."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from iqc import __version__
from iqc.errors import BadRecord
from iqc.streams.lineage import Input, Stage, lineage_of
from iqc.streams.stage import Record
from iqc.syntax.languages import language_of_record
from iqc.tokens.chat import chat_segments
from iqc.tokens.render import KINDS, kind_of, render
from iqc.tokens.segments import Segment
from iqc.tokens.split import Split

if TYPE_CHECKING:
    from iqc.tokens.tokenizer import Tokenizer

OTHER = "other"  # the language of a record that tells none


@dataclass(slots=True)
class Texts:
    """The text of records of any kind, without control tokens; afterwards `records` and `bytes` of it by language.

    `total` and `each` are bytes of UTF-8, of all text and of the text of one language. A record that starts below a
    limit is taken whole; reading stops at `total`.
    Iterating raises BadRecord, with the number of the record, for one that no command can lay out."""

    source: Iterable[Record]
    total: int = 1 << 62
    each: int = 1 << 62
    records: int = 0
    bytes: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[str]:
        for _, text in self.by_language():
            yield text

    def by_language(self) -> Iterator[tuple[str, str]]:
        """(language, text) of each stretch of ordinary text."""
        if self.total <= 0:
            return
        for number, record in enumerate(self.source, 1):
            try:
                language = language_of_record(record) or OTHER
                segments = _segments(record) if self.bytes[language] < self.each else []
            except BadRecord as error:
                raise BadRecord(error.what, where=f"record {number}", remedy=error.remedy) from None
            self.records += bool(segments)
            for segment in segments:
                if not segment.is_control:
                    self.bytes[language] += len(segment.value.encode())
                    yield language, segment.value
            if self.bytes.total() >= self.total:
                return


def _segments(record: Record) -> list[Segment]:
    """All that a record says, once: of a pair the prompt and both answers, of a tree the nodes. Nothing of a
    conversation without messages, which `iqc pack` drops."""
    kind = kind_of(record)
    if kind not in ("chat", "preference", "tree"):
        return render(record).segments
    parts = [record[name] for name in KINDS[kind]]
    said = [[{"role": "user", "content": part}] if isinstance(part, str) else part for part in parts]
    return [segment for part in said if part != [] for segment in chat_segments(record | {"messages": part})]


def lineage(made: "Tokenizer", texts: Texts, inputs: list[Input], limits: dict) -> dict:
    """Where a trained tokenizer comes from. Its output is the digest that `iqc pack` notes of its tokenizer."""
    options = {"vocab_size": made.vocab_size} | asdict(made.split or Split()) | limits
    counts = {"read": texts.records, "kept": texts.records, "bytes": dict(sorted(texts.bytes.items()))}
    output = {"digest": f"sha256:{made.digest}", "tokens": made.vocab_size}
    return lineage_of(Stage("tokenizer", __version__, options), inputs, counts, output)
