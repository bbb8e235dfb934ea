"""Fill-in-the-middle records: from documents at file level, from repositories with context from their other files.

A document is cut into prefix, middle and suffix, and written for a causal model to predict the middle (Bavarian et al.,
arXiv 2207.14255). At repository level similar snippets of other files stand in front (IQuest-Coder-V1 report, section
3.1). Where the cuts fall is iqc.fim.cuts, which snippets are chosen iqc.fim.snippets.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from iqc.errors import BadRecord, UsageError
from iqc.fim.cuts import LEVELS, Cutter
from iqc.fim.layout import LAYOUTS, Snippet, write
from iqc.streams.stage import Dropped, Record, metadata_of, rng
from iqc.syntax.languages import language_of_record, languages

# Half of the documents early in training, a tenth later: Seed-Coder (section 2.2.6), 0.5 and then 0.1.
PHASES = {"early": 0.5, "late": 0.1}

# The context of a hole: given the prefix, middle and suffix, the snippets, or why there are none.
Context = Callable[[str, str, str], list[Snippet] | str]


@dataclass(frozen=True, slots=True)
class FillInTheMiddle:
    """The stage `document -> fim records`, or the document itself, unchanged, for the share that is not drawn.

    rate      share of documents that become samples, in [0, 1]
    rates     the same for some languages, by the name that `languages.toml` gives them
    weights   relative weight of each of LEVELS; a missing level has weight 0
    layout    a key of LAYOUTS
    samples   samples of a drawn document; fewer when the same cut is drawn again
    limit     most characters of a middle; 0 for no limit
    """

    rate: float = PHASES["early"]
    rates: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 1.0))
    layout: str = "psm"
    samples: int = 1
    limit: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for rate in (self.rate, *self.rates.values()):
            if not 0 <= rate <= 1:
                raise UsageError(f"the rate of fill-in-the-middle is {rate}", remedy="give a share from 0 to 1")
        if unknown := sorted(set(self.rates) - set(languages())):
            raise UsageError(f"no language named {unknown[0]!r}", remedy=f"use {', '.join(languages())}")
        if self.layout not in LAYOUTS:
            raise UsageError(f"no layout named {self.layout!r}", remedy=f"use one of {', '.join(LAYOUTS)}")
        if unknown := sorted(set(self.weights) - set(LEVELS)):
            raise UsageError(f"no level named {unknown[0]!r}", remedy=f"use {', '.join(LEVELS)}")
        weights = self.weights.values()
        if not all(0 <= weight < float("inf") for weight in weights) or sum(weights) <= 0:
            raise UsageError("the weights of the levels are not positive", remedy="give one level a weight above 0")
        if self.samples < 1:
            raise UsageError(f"{self.samples} samples a document", remedy="ask for at least 1")
        if self.limit < 0:
            raise UsageError(f"middles of {self.limit} characters", remedy="give a positive number, or 0 for no limit")

    def transform(self, record: Record, context: Context | None = None) -> Iterator[Record | Dropped]:
        """Samples keep the document's fields; `text` is the formatted sample; prefix + middle + suffix is the source.

        `middle` is never blank. A level that the file cannot give (unknown language, no such node) becomes a line, and
        `metadata.fim_fallback` names the level and the reason. With `context`, `metadata.fim_scope` is "repository", or
        "file" where no snippet was found, with the reason in `metadata.fim_no_context`. `metadata.fim_neutralised`
        counts the control tokens that the source and its context named. A drawn document without a visible character is
        dropped by rule `fim.blank`.
        """
        source, name = record.get("text"), record.get("id")
        if not isinstance(source, str) or not isinstance(name, str):
            raise BadRecord("a document needs `id` and `text`, both strings", remedy="give document records")
        random = rng(self.seed, "fim", name)
        rate = self.rates.get(language_of_record(record) or "", self.rate) if self.rates else self.rate
        if random.random() >= rate:
            yield record
            return
        if not source or source.isspace():
            yield Dropped(record, "fim.blank", 0, 1)
            return
        cutter = Cutter(source, language_of_record(record), self.limit)
        levels = [level for level in LEVELS if self.weights.get(level, 0) > 0]
        weights = [self.weights[level] for level in levels]
        drawn = set()
        for _ in range(self.samples):
            wanted = random.choices(levels, weights)[0]
            level, (start, end), reason = cutter.cut(wanted, random)
            if (start, end) in drawn:
                continue
            drawn.add((start, end))
            sample = self._sample(record, source[:start], source[start:end], source[end:], context)
            sample |= {"id": f"{name}#fim{len(drawn) - 1}", "level": level}
            if reason:
                sample["metadata"]["fim_fallback"] = {"level": wanted, "reason": reason}
            yield sample

    def _sample(self, record: Record, prefix: str, middle: str, suffix: str, context: Context | None) -> Record:
        metadata = dict(metadata_of(record))
        snippets: list[Snippet] = []
        if context:
            found = context(prefix, middle, suffix)
            metadata["fim_scope"] = "file" if isinstance(found, str) else "repository"
            if isinstance(found, str):
                metadata["fim_no_context"] = found
            else:
                snippets = found
        text, changed = write(
            self.layout, prefix, middle, suffix, snippets, metadata.get("repo", ""), metadata.get("path", "")
        )
        if changed:
            metadata["fim_neutralised"] = changed
        return record | {
            "text": text,
            "prefix": prefix,
            "suffix": suffix,
            "middle": middle,
            "layout": self.layout,
            "context": snippets,
            "metadata": metadata,
        }
