"""`fim` as a stage: documents, or stretches of them for a model whose context a file does not fit, and repositories."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from iqc.errors import BadRecord, UsageError
from iqc.fim.embeddings import Embeddings, Endpoint
from iqc.fim.ranking import Bm25, Ranking
from iqc.fim.samples import FillInTheMiddle
from iqc.fim.snippets import BUDGET, LINES, Snippets
from iqc.streams.stage import Dropped, Noted, Record, Transform, metadata_of, require

_OF_THE_WHOLE = frozenset(("bytes", "tokens", "part", "parts", "scored", "unscored"))  # as `iqc repos` writes them


@dataclass(frozen=True, slots=True)
class Around:
    """What stands in front of a sample of a repository: snippets of so many lines, so many characters in all, ranked by
    BM25 or, with an endpoint, by its embeddings. A budget of 0: nothing."""

    budget: int = BUDGET
    lines: int = LINES
    endpoint: Endpoint | None = None

    def snippets(self, files: Sequence[Record]) -> Snippets:
        rank: Callable[[Sequence[str]], Ranking] = partial(Embeddings, self.endpoint) if self.endpoint else Bm25
        return Snippets(files, rank, self.budget, self.lines)


def fim(maker: FillInTheMiddle, around: Around | None = None, stretch: int = 0) -> Callable[[], Transform]:
    """The factory of the stage. `stretch`: most characters of a part that is cut, 0 for whole files."""
    around = around or Around()
    if around.lines < 2:
        raise UsageError(f"snippets of {around.lines} lines", remedy="give at least 2")
    return partial(_transform, maker, around, stretch)


def _transform(maker: FillInTheMiddle, around: Around, stretch: int) -> Transform:
    def transform(record: Record) -> Iterator[Record | Dropped | Noted]:
        if "files" not in record or "text" in record:
            for part in stretches(record, stretch):
                yield from _counted(maker.transform(part))
            return
        snippets = around.snippets(require(record, "files", list))
        for number, document in documents(record):
            context = partial(snippets.similar, number) if around.budget else None
            for part in stretches(document, stretch):
                yield from _counted(maker.transform(part, context))

    return transform


def _counted(found: Iterable[Record | Dropped]) -> Iterator[Record | Dropped | Noted]:
    """Every sample that is not what was asked for is counted with the reason."""
    for out in found:
        if isinstance(out, dict) and "level" in out:
            about = out["metadata"]
            if fallback := about.get("fim_fallback"):
                yield Noted(f"{fallback['level']} became {out['level']}: {fallback['reason']}")
            if reason := about.get("fim_no_context"):
                yield Noted(f"no context: {reason}")
        yield out


def documents(repository: Record) -> Iterator[tuple[int, Record]]:
    """The files of a repository record that are text, each with its number: documents with the id `ID:PATH`, or
    `ID:PATH:LINE` for a piece of a file that was cut. What is known of the repository in one value (licence, stars)
    is known of each of its files, but for what counts the whole record."""
    repo, name = require(repository, "repo"), require(repository, "id")
    known = {key: value for key, value in metadata_of(repository).items() if not isinstance(value, dict | list)}
    about = {key: value for key, value in known.items() if key not in _OF_THE_WHOLE} | {"repo": repo}
    if repository.get("commit"):
        about["commit"] = repository["commit"]
    for number, file in enumerate(require(repository, "files", list)):
        if not isinstance(file, dict) or not isinstance(file.get("path"), str):
            raise BadRecord(f"file {number} of a repository without `path`", remedy="give files as {path, text, lang}")
        if file.get("text") is None:
            continue  # a binary file, which is only listed
        if not isinstance(file["text"], str):
            raise BadRecord(f"the text of {file['path']} is no string", remedy="give null for a file that is not text")
        metadata = about | {key: value for key, value in file.items() if key != "text"}
        place = f"{name}:{file['path']}" + (f":{file['line']}" if "line" in file else "")
        source = repository.get("source", repo)
        yield number, {"id": place, "text": file["text"], "source": source, "metadata": metadata}


def stretches(record: Record, size: int) -> Iterator[Record]:
    """A document as consecutive runs of whole lines of at most `size` characters, `id~0`, `id~1`, ...; 0: as it is.

    A run ends, where it can past its middle, before a line that begins a new definition: one at column 0 behind a blank
    line. A line that is longer than `size` is a run of its own.
    """
    if not size or len(text := require(record, "text")) <= size:
        yield record
        return
    start = number = 0
    while start < len(text):
        end = _end(text, start, size)
        metadata = {**metadata_of(record), "offset": start}
        yield record | {"id": f"{record['id']}~{number}", "text": text[start:end], "metadata": metadata}
        start, number = end, number + 1


def _end(text: str, start: int, size: int) -> int:
    """Where the run that begins at `start` ends: just behind a line end, or at the end of the text."""
    limit = start + size
    if limit >= len(text):
        return len(text)
    at = limit
    while (blank := text.rfind("\n\n", start + size // 2, at)) >= 0:
        if not text[blank + 2].isspace():
            return blank + 2
        at = blank + 1
    line = text.rfind("\n", start, limit)
    if line < 0:
        line = text.find("\n", limit)
    return len(text) if line < 0 else line + 1
