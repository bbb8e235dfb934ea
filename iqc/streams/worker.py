"""What one worker does with one chunk, in this process or another: parse, transform, serialise, compress."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from iqc.errors import BadRecord
from iqc.streams.container import GATHER, MAX_RECORD, Frame, compress
from iqc.streams.lineage import line_digest
from iqc.streams.reader import OVERSIZED, Chunk
from iqc.streams.stage import Dropped, Noted, Raw, Transform
from iqc.streams.writer import Texts, dump

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
LONG_INTEGER = re.compile(rb"(?<=[:\[,\s])(-?[0-9]{19,})(?=[\s,}\]])")


@dataclass(slots=True)
class Work:
    """What to do with every chunk. `factory` makes the transform once a process, so that heavy parts load once."""

    factory: Callable[[], Transform]
    values: bool = False  # hand back what the transform yields instead of serialising it (for a set stage)
    plain: bool = False
    explain: bool = False
    stop_at_error: bool = True


@dataclass(slots=True)
class Items:
    """A chunk of a source stage: things that are not records yet, such as the paths of files."""

    items: list
    source: int = 0


@dataclass(slots=True)
class Bad:
    """A record that could not be used: where in its chunk, why, and its bytes."""

    line: int  # from 1, in the chunk
    what: str
    remedy: str | None
    raw: bytes
    file: str = ""  # filled in by the runner


@dataclass(slots=True)
class Result:
    """What became of one chunk. Digests are those of the lines, 32 bytes each, joined."""

    source: int
    lines: int = 0
    read: int = 0
    size: int = 0  # bytes of input text
    input_digests: bytes = b""
    output: list[tuple[Frame | bytes, int, bytes]] = field(default_factory=list)  # frame or text, records, digests
    values: list = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    noted: Counter = field(default_factory=Counter)
    explained: list[bytes] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


def parse(line: bytes) -> dict[str, Any]:
    """A line to its record; BadRecord says what is wrong with it."""
    if len(line) > MAX_RECORD or line.endswith(OVERSIZED):
        raise BadRecord(f"a record over {MAX_RECORD >> 20} MiB", remedy="split the record")
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if line.startswith(b"\xef\xbb\xbf"):
            raise BadRecord("begins with a byte order mark", remedy="remove it: sed '1s/^\\xef\\xbb\\xbf//'") from None
        if b"\0" in line[:1024]:
            raise BadRecord("binary data, not JSON", remedy="INPUT must be JSON lines") from None
        raise BadRecord(f"not JSON: {error}", remedy="each line must be one JSON object in UTF-8") from None
    if type(record) is not dict:
        raise BadRecord(f"a JSON {type(record).__name__}, not an object", remedy="each line must be one JSON object")
    if holds_huge_float(record) and any(beyond_64_bits(text) for text in LONG_INTEGER.findall(STRING.sub(b"0", line))):
        raise BadRecord("an integer beyond 64 bits", remedy="write such numbers as strings")
    return record


def beyond_64_bits(integer: bytes) -> bool:
    return len(integer) > 20 or not -(2**63) <= int(integer) < 2**64


def holds_huge_float(record: dict[str, Any]) -> bool:
    """Whether there is a float of 2^63 or more: the parser makes one, rounded, of an integer beyond 64 bits."""
    stack: list[Any] = [record]
    while stack:
        item = stack.pop()
        for value in item.values() if type(item) is dict else item:
            kind = type(value)
            if kind is float:
                if abs(value) >= 2**63:
                    return True
            elif kind is dict or kind is list:
                stack.append(value)
    return False


def explain(dropped: Dropped) -> bytes:
    """The record with the rule that dropped it, the value measured and the threshold."""
    why = {"rule": dropped.rule, "value": dropped.value, "threshold": dropped.threshold}
    return dump(dropped.record | {"dropped": why})


def process(chunk: Chunk | Items, work: Work, transform: Transform, digest_input: bool) -> Result:
    """Run the transform over the records of one chunk."""
    result = Result(chunk.source)
    texts = Texts()
    in_digests: list[bytes] = []
    for number, item in enumerate(_items(chunk), start=1):
        result.lines = number
        if item is None:
            continue
        record, line = item
        result.read += 1
        try:
            if isinstance(line, bytes):
                result.size += len(line) + 1
                if digest_input:
                    in_digests.append(line_digest(line))
                record = parse(line)
            for out in transform(record):
                if type(out) is Dropped:
                    result.dropped[out.rule] += 1
                    if work.explain:
                        result.explained.append(explain(out))
                elif type(out) is Raw:
                    in_digests.append(out.digest)
                    result.size += out.size
                elif type(out) is Noted:
                    result.noted[out.what] += 1
                elif work.values:
                    result.values.append(out)
                else:
                    texts.add(dump(out))
        except BadRecord as error:
            where = f"{error.where}: " if error.where else ""
            result.bad.append(
                Bad(number, where + error.what, error.remedy, line or str(record).encode("utf-8", "backslashreplace"))
            )
            if work.stop_at_error:
                break
    result.input_digests = b"".join(in_digests)
    for text, records, digests in texts.finish():
        packed = compress(text, records) if len(text) >= GATHER and not work.plain else text
        result.output.append((packed, records, digests))
    return result


def _items(chunk: Chunk | Items) -> Iterator[tuple[Any, bytes | None] | None]:
    """(record to be parsed, line) or (item, None); None for a blank line."""
    if isinstance(chunk, Items):
        for item in chunk.items:
            yield item, None
        return
    for line in chunk.lines():
        yield (None, line) if line and not line.isspace() else None
