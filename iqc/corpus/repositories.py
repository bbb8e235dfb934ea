"""A repository's state to records: its files in the order of their dependencies, whole or cut to a size.

Files of the languages whose imports are resolved (`syntax.imports.ORDERED`) come behind what they import. The others
(documents, data, markup, scripts) have no order of their own: they are shuffled, by the seed, and come first. So code
stands behind the data, templates and headers that it reads, the end of a long record is where most is known about what
comes next, and no position in a folder tells what a document says.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from iqc.corpus.parts import Size, cut, fits, split
from iqc.corpus.scores import Scores
from iqc.corpus.snapshots import Snapshot
from iqc.corpus.trees import MAX_BYTES
from iqc.errors import UsageError
from iqc.streams.container import MAX_RECORD
from iqc.streams.stage import Dropped, Record, rng
from iqc.syntax.imports import ORDERED, Resolver
from iqc.syntax.order import components, order

if TYPE_CHECKING:
    from iqc.tokens.tokenizer import Tokenizer

LARGEST = MAX_RECORD - (4 << 20)  # bytes of JSON of a record's files: the rest is for its metadata


@dataclass(frozen=True, slots=True)
class Options:
    """How records are made.

    whole           one record for a repository, or for a part of it; otherwise one a file
    max_file_bytes  size of a file, in bytes as it is stored
    max_bytes       bytes of JSON of a record's files
    max_tokens      tokens of a record as it is packed, control tokens included; None for any number
    cut_files       cut a file that is larger than a record at line ends, instead of dropping it
    min_quality     mean score below which a repository is dropped; one without a score is, too
    """

    whole: bool = True
    max_file_bytes: int = MAX_BYTES
    max_bytes: int = 32 << 20
    max_tokens: int | None = None
    cut_files: bool = False
    min_quality: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.max_bytes <= LARGEST:
            raise UsageError(f"{self.max_bytes} bytes a record", remedy=f"give 1 to {LARGEST}")


@dataclass(slots=True)
class Arranged:
    """A snapshot's files in order, and their independent parts as numbers of files in that order."""

    files: list[Record]
    groups: list[list[int]]
    dependencies: dict[str, int] = field(default_factory=dict)


def arrange(snapshot: Snapshot, seed: int) -> Arranged:
    """The order of a record. `dependencies` counts: `edges` between files (a package that is imported whole is a node
    between them), those of them `against` the order, inside cycles, `unresolved` imports that look like the
    repository's own, and files `unparsed` because they keep the parser busy."""
    by_path = {file["path"]: file for file in snapshot.files}
    left_out = [dropped.record["path"] for dropped in snapshot.dropped]  # an import of one is not unresolved

    def read(path: str) -> bytes | None:
        return by_path[path]["text"].encode() if path in by_path else None

    resolver = Resolver([*by_path, *left_out], read, snapshot.name)
    graph: dict[str, list[str]] = {}
    counts = Counter(edges=0, against=0, unresolved=0, unparsed=0)
    for path, file in by_path.items():
        if file["lang"] in ORDERED:
            found = resolver.targets(path, file["text"].encode(), file["lang"])
            graph[path] = [name for name in found.names if name in by_path or name in resolver.groups]
            counts["unresolved"] += len(found.unresolved)
            counts["unparsed"] += not found.parsed
    graph |= {name: [path for path in paths if path in by_path] for name, paths in resolver.groups.items()}
    placed = order(graph)
    place = {name: number for number, name in enumerate(placed)}
    counts["edges"] = sum(map(len, graph.values()))
    counts["against"] = sum(place.get(other, 0) > place[name] for name in graph for other in graph[name])
    others = [path for path in by_path if path not in graph]
    rng(seed, "repos", snapshot.id).shuffle(others)
    names = [*others, *(name for name in placed if name in by_path)]
    numbers = {name: number for number, name in enumerate(names)}
    alone: dict[str, list[str]] = {name: [] for name in others}
    parts = components(alone | graph, names)
    groups = [[numbers[name] for name in part] for part in parts]
    return Arranged([by_path[name] for name in names], groups, dict(counts))


def documents(snapshot: Snapshot, options: Options, scores: Scores) -> Iterator[Record]:
    """A record a file, in order; the id is that of `crawl-clean`, a hash of name, path and bytes."""
    quality = {} if scores.mean is None else {"quality": scores.mean}
    for file in arrange(snapshot, options.seed).files:
        path, data = file["path"], file["text"].encode(file["encoding"])
        identity = b"\0".join((snapshot.name.encode(), path.encode(), data))
        metadata = {"path": path, "lang": file["lang"], "bytes": len(data), "repo": snapshot.name}
        metadata |= {"commit": snapshot.commit, "mode": file["mode"], "encoding": file["encoding"]} | quality
        if path in scores.of:
            metadata["score"] = scores.of[path]
        record_id = hashlib.sha256(identity).hexdigest()[:32]
        yield {"id": record_id, "text": file["text"], "source": snapshot.name, "metadata": metadata}


def repositories(
    snapshot: Snapshot, options: Options, scores: Scores, tokenizer: "Tokenizer | None" = None
) -> Iterator[Record | Dropped]:
    """The record of a snapshot, or of each of its parts where it is larger than one record may be (ids then end in #0,
    #1, ...); before them, the files that no record can hold. `tokenizer` is needed for `max_tokens`."""
    arranged = arrange(snapshot, options.seed)
    measure = _Measure(snapshot.name, options, tokenizer)
    files: list[Record] = []
    sizes: list[Size] = []
    pieces: list[range] = []  # of each file, its numbers in `files`
    for file in arranged.files:
        size = measure.size(file)
        found = [(file, size)] if fits(size, measure.limit) else measure.cut(file) if options.cut_files else []
        if not found:
            yield snapshot.dropped_file(file["path"], *measure.excess(size))
        pieces.append(range(len(files), len(files) + len(found)))
        files += [piece for piece, _ in found]
        sizes += [size for _, size in found]
    groups = [[number for file in group for number in pieces[file]] for group in arranged.groups]
    parts = split(groups, sizes, measure.limit)
    if not parts:
        record: Record = {"id": snapshot.id, "repo": snapshot.name, "commit": snapshot.commit, "files": []}
        yield Dropped(record, "no_files", 0, 1)
    for number, part in enumerate(parts):
        inside = [files[index] for index in part]
        metadata = _metadata(inside, scores) | {"dependencies": arranged.dependencies}
        if measure.tokenizer:
            metadata["tokens"] = measure.base + sum(sizes[index][1] for index in part)
        record_id = snapshot.id
        if len(parts) > 1:
            metadata |= {"part": number, "parts": len(parts)}
            record_id += f"#{number}"
        yield {"id": record_id, "repo": snapshot.name, "commit": snapshot.commit, "files": inside, "metadata": metadata}


def _metadata(files: list[Record], scores: Scores) -> Record:
    languages = Counter(file["lang"] or "none" for file in files)
    metadata: Record = {"languages": dict(sorted(languages.items()))}
    metadata["bytes"] = sum(len(file["text"].encode()) for file in files)
    if (quality := scores.mean) is not None:
        scored = sum(file["path"] in scores.of for file in files)
        metadata |= {"quality": quality, "scored": scored, "unscored": len(files) - scored}
    return metadata


class _Measure:
    """Sizes of files in a record: bytes of JSON and, where they are limited, tokens.

    Tokens are those of the packed layout, <|repo_name|>{repo}\\n, for each file <|file_sep|>{path}\\n{text}, and
    <|endoftext|>: each piece between control tokens is encoded by itself, so the sum is exact.
    """

    def __init__(self, name: str, options: Options, tokenizer: "Tokenizer | None"):
        self.tokenizer = tokenizer if options.max_tokens is not None else None
        self.base = 0  # tokens beside the files'
        self.limit: Size = (options.max_bytes,)
        if self.tokenizer and options.max_tokens is not None:
            self.base = 2 + len(self.tokenizer.encode_ordinary(f"{name}\n"))
            self.limit = (options.max_bytes, options.max_tokens - self.base)

    def size(self, file: Record) -> Size:
        size = len(orjson.dumps(file)) + 1  # the comma
        if not self.tokenizer:
            return (size,)
        return size, 1 + len(self.tokenizer.encode_ordinary(f"{file['path']}\n{file['text']}"))

    def excess(self, size: Size) -> tuple[str, int, int]:
        """Rule, value and threshold of a file that does not fit."""
        rules = zip(("record_bytes", "record_tokens"), size, self.limit, strict=False)
        return next(row for row in rules if row[1] > row[2])

    def cut(self, file: Record) -> list[tuple[Record, Size]]:
        """Pieces that fit, each with `line`, the number of its first line; none when a line alone does not fit."""
        last = file["text"].count("\n") + 1

        def piece(text: str, line: int = last) -> Record:
            return file | {"text": text, "line": line}

        found = cut(file["text"], lambda text: self.size(piece(text)), self.limit)
        return [(piece(text, line), self.size(piece(text, line))) for line, text in found]
