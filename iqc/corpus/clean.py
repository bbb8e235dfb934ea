"""The cleaning stage: normalise line ends, ask the rules, parse.

Lines end in LF afterwards (CRLF and lone CR are rewritten) and a leading byte order mark is gone; nothing else of a
text is changed. A record that names a language (`metadata.lang`, or a path from which it follows) is asked the code
rules and must parse; any other is taken for web text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from iqc.corpus.rules import CODE_SETS, WEB_SETS, Measured, decide, load_rules, measure
from iqc.errors import BadRecord
from iqc.streams.stage import Dropped, Record, Transform, metadata_of
from iqc.syntax.languages import language_of_record, languages


@dataclass(frozen=True, slots=True)
class CleanOptions:
    """`code`, `web`: names of rule sets, () for none. `measured` keeps every measured value in `metadata.measured`."""

    code: tuple[str, ...] = CODE_SETS
    web: tuple[str, ...] = WEB_SETS
    rules_file: str | None = None
    syntax: bool = True
    measured: bool = False


def normalise(text: str) -> str:
    """The text with LF line ends and without a leading byte order mark."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def clean(options: CleanOptions = CleanOptions()) -> Transform:
    """The stage. IqcError for rule sets that do not exist; BadRecord for a record without text.

    A dropped record's rule is a rule's name, or `syntax`: the share of bytes under error nodes, against the language's
    `max_error_share`.
    """
    code_rules = load_rules(options.code, options.rules_file)
    web_rules = load_rules(options.web, options.rules_file)

    def transform(record: Record) -> Iterable[Record | Dropped]:
        text = record.get("text")
        if not isinstance(text, str):
            raise BadRecord(
                "record without a string `text`", remedy="clean reads documents: id, text, source, metadata"
            )
        text = normalise(text)
        metadata = metadata_of(record)
        lang = language_of_record({"text": text, "metadata": metadata}) or ""
        rules = code_rules if lang else web_rules
        measured = Measured(text, lang)
        if options.measured:
            metadata = {**metadata, "measured": measure(measured, rules)}
        record = {**record, "text": text, "metadata": metadata}

        broken = decide(measured, rules)
        if broken:
            rule, value, threshold = broken
            yield Dropped(record, rule.name, value, threshold)
            return
        if options.syntax and lang:
            checked = _syntax(text, lang)
            if checked:
                share, limit = checked
                if options.measured:
                    metadata["measured"]["syntax"] = share
                if share > limit:
                    yield Dropped(record, "syntax", share, limit)
                    return
        yield record

    return transform


def _syntax(text: str, lang: str) -> tuple[float, float] | None:
    """(share of error bytes, the most that is kept), or None for a language without a grammar."""
    from iqc.syntax.parse import error_share

    row = languages().get(lang)
    return (error_share(text, lang), row.max_error_share) if row else None
