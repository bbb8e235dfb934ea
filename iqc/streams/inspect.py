"""Looking at streams: what is in them (`stats`) and where they come from (`lineage_text`)."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from iqc.streams.stage import Record

BARS = " ▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Stats:
    """Counts, sizes and fields of records; `lengths[k]` counts records of 2^k up to 2^(k+1) characters."""

    records: int = 0
    characters: int = 0
    lengths: Counter = field(default_factory=Counter)
    fields: dict[str, Counter] = field(default_factory=dict)  # name -> JSON types
    languages: Counter = field(default_factory=Counter)

    def json(self) -> dict:
        return {
            "records": self.records,
            "characters": self.characters,
            "lengths": {str(2**power): count for power, count in sorted(self.lengths.items())},
            "fields": {name: dict(types) for name, types in sorted(self.fields.items())},
            "languages": dict(self.languages.most_common()),
        }


TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def length_of(record: Record) -> int:
    """The characters of content in a record: of its `text`, or of all strings in it."""
    text = record.get("text")
    if isinstance(text, str):
        return len(text)
    total, stack = 0, list(record.values())
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return total


def measure(records: Iterable[Record]) -> Stats:
    stats = Stats()
    for record in records:
        length = length_of(record)
        stats.records += 1
        stats.characters += length
        stats.lengths[int(math.log2(length)) if length else 0] += 1
        for name, value in record.items():
            stats.fields.setdefault(name, Counter())[TYPES.get(type(value), "null")] += 1
        metadata = record.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("lang"), str):
            stats.languages[metadata["lang"]] += 1
    return stats


def stats_text(stats: Stats) -> str:
    """The statistics as a person reads them, with a picture of the lengths."""
    lines = [f"records     {stats.records:,}", f"characters  {stats.characters:,}"]
    if stats.languages:
        lines.append("languages   " + ", ".join(f"{name} {count:,}" for name, count in stats.languages.most_common(12)))
    lines.append("fields")
    for name, types in sorted(stats.fields.items()):
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in types.most_common())
        lines.append(f"  {name:<14} {kinds}")
    if stats.lengths:
        lines.append("length of a record, characters")
        most = max(stats.lengths.values())
        for power in range(min(stats.lengths), max(stats.lengths) + 1):
            count = stats.lengths[power]
            lines.append(f"  {2**power:>10,} {_bar(count / most, 40)} {count:,}")
    return "\n".join(lines)


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (BARS[rest] if rest else "")).ljust(width)


def lineage_text(lineage: dict) -> str:
    """The DAG of a lineage, the newest stage first, each input below what was made of it."""
    lines: list[str] = []
    shown: set[str] = set()

    def show(stage_id: str, depth: int) -> None:
        node = lineage["stages"][stage_id]
        counts = node["counts"]
        dropped = sum(counts.get("dropped", {}).values())
        seed = f" seed {node['seed']}" if "seed" in node else ""
        pad = "  " * depth
        lines.append(f"{pad}{node['command']} {node['version']} [{stage_id}]{seed}")
        if stage_id in shown:
            lines[-1] += ", as above"
            return
        shown.add(stage_id)
        if "read" in counts and "kept" in counts:
            kept = f"{pad}  read {counts['read']:,}, kept {counts['kept']:,}"
            lines.append(kept + (f", dropped {dropped:,}" if dropped else ""))
        options = ", ".join(f"{key}={value}" for key, value in sorted(node["options"].items()))
        if options:
            lines.append(f"{pad}  {options}")
        for item in node["inputs"]:
            label = f"{item['label']}: " if "label" in item else ""
            lines.append(f"{pad}  from {label}{item['digest'] or 'an input that was not read to its end'}")
            if "stage" in item:
                show(item["stage"], depth + 2)

    show(lineage["stage"], 0)
    return "\n".join(lines)
