"""A stage into a directory of shards: what is finished is kept, the rest is made, here or on a Ray cluster.

Shard k of a map holds what became of a fixed run of input chunks (`--shard-mib` of text), so it depends on nothing but
the stage and its input; the lineage in it says which, and a later run keeps it when they are the same. The manifest is
written when all shards are there: a directory without one is not finished.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import orjson

from iqc.errors import IqcError, UsageError
from iqc.streams.container import CHUNK, read_index
from iqc.streams.lineage import Digest, Input, differences, line_digest, lineage_of
from iqc.streams.output import Outputs, RollingOutputs, shard_name
from iqc.streams.reader import MANIFEST
from iqc.streams.runner import Counts, Job, Reduce, StageInput, StreamInput, run_chunks
from iqc.streams.worker import Items
from iqc.streams.writer import AtomicFile


def run_sharded(job: Job, source: StageInput, reduce: Reduce | None = None) -> Counts:
    """Run a map stage into a directory of shards."""
    if reduce is not None:
        raise UsageError(
            f"--ray with {job.stage.command}", remedy="this stage needs all records in one place: run it without --ray"
        )
    directory = prepare(job)
    with AtomicFile(directory / MANIFEST) as manifest:  # its lock: one writer a directory
        made_by = maker(job, source)
        finished = find_finished(directory, made_by, [job.settings.explain, job.settings.quarantine])
        shards = groups(source.chunks(), max(1, (job.settings.shard_mib << 20) // CHUNK))
        if job.settings.ray:
            from iqc.streams.cluster import make_on_ray

            lineages = make_on_ray(job, source, shards, made_by, finished)
        else:
            lineages = make_here(job, source, shards, made_by, finished)
        counts = Counts()
        for lineage in lineages:
            counts.merge(lineage["stages"][lineage["stage"]]["counts"])
            counts.bytes_out += lineage["output"]["bytes"]
        inputs = source.results() if isinstance(source, StreamInput) else [items_input(lineages)]
        given = source.given_digest if isinstance(source, StreamInput) else None
        if given and [item.digest for item in inputs] != [given]:
            found = ", ".join(str(item.digest) for item in inputs)
            raise IqcError(
                f"the digest of the input is {found}, not {given}",
                where=str(directory),
                remedy="--input-digest says what is piped in: remove the directory and give the right one",
            )
        publish(job, manifest, lineages, inputs, counts)
    return counts


def run_rolling(job: Job, source: StageInput, reduce: Reduce, measure: Callable[[], dict] | None) -> Counts:
    """Run a set stage into a directory of shards, cut from its output."""
    directory = prepare(job)
    counts = Counts()
    lineages: list[dict] = []

    def finish(outputs: Outputs, number: int) -> None:
        shard_counts = Counts(read=outputs.main.records)
        inputs = [Input(digest) for digest in made_by["input"]]
        shard = {"number": number, "made_by": made_by}
        lineages.append(outputs.finish(job.stage, inputs, shard_counts, {"shard": shard}))

    with AtomicFile(directory / MANIFEST) as manifest:
        made_by = maker(job, source)
        find_finished(directory, made_by, [])  # those of another run are not written over
        manifest.path.unlink(missing_ok=True)  # it speaks of the shards that go now
        for stale in directory.glob("part-*.jsonl.zst"):
            stale.unlink()
        with RollingOutputs(job.settings, finish) as outputs:
            run_chunks(job, source, source.chunks(), outputs, counts, Counter(), reduce)
            finish(outputs.current, outputs.number)
        counts.extra = measure() if measure else {}
        counts.kept = sum(lineage["output"]["records"] for lineage in lineages)
        counts.bytes_out = sum(lineage["output"]["bytes"] for lineage in lineages)
        publish(job, manifest, lineages, source.results(), counts)
    return counts


def maker(job: Job, source: StageInput) -> dict:
    """All that a shard's bytes depend on, as JSON: what a resume compares."""
    known = {"input": source.identity(), "shard_mib": job.settings.shard_mib, "on_error": job.settings.on_error_mode}
    return orjson.loads(orjson.dumps(job.stage.node() | known))


def prepare(job: Job) -> Path:
    """Check the options that go with a directory, and make it."""
    settings = job.settings
    if settings.output is None or not settings.sharded:
        raise UsageError("--ray needs a directory as -o", remedy="-o DIR/")
    for path in (settings.explain, settings.quarantine):
        if path is not None and not path.endswith("/"):
            raise UsageError(f"{path} must be a directory when -o is one", remedy=f"write {path}/ (one file a shard)")
    if settings.plain:
        raise UsageError("--plain with a directory as -o", remedy="shards need their lineage to resume")
    directory = Path(settings.output)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def find_finished(directory: Path, made_by: dict, sides: list[str | None]) -> dict[int, dict]:
    """The lineages of the shards that are there, by number; IqcError when one was made by something else.

    A shard is there when it is there in the directories of the side streams, `sides`, too.
    """
    finished = {}
    for path in sorted(directory.glob("part-*.jsonl.zst")):
        index = read_index(str(path))
        if index is None:
            raise IqcError(
                "not a whole stream: it was cut or altered", where=str(path), remedy="remove it, and it is made again"
            )
        lineage = index.lineage
        shard = lineage.get("shard", {})
        if shard.get("made_by") != made_by or None in made_by["input"]:
            changes = differences(shard.get("made_by") or {}, made_by)
            if None in made_by["input"]:
                changes = ["the digest of the piped input is not known: give --input-digest"]
            raise IqcError(
                f"a shard of another run: {'; '.join(changes)}",
                where=str(path),
                remedy="name another -o, or remove the directory to make it anew",
            )
        if all((Path(side) / path.name).is_file() for side in sides if side):
            finished[shard["number"]] = lineage
    return finished


def groups(chunks: Iterator[Any], size: int) -> Iterator[tuple[int, Iterator[Any]]]:
    """The chunks of each shard with its number; a group must be used up before the next one is asked for."""
    for number in count():
        first = list(islice(chunks, 1))
        if not first:
            return
        yield number, chain(first, islice(chunks, size - 1))


def make_here(
    job: Job, source: StageInput, shards: Iterator[tuple[int, Iterator[Any]]], made_by: dict, finished: dict[int, dict]
) -> list[dict]:
    lines: Counter = Counter()
    lineages = []
    for number, chunks in shards:
        if number in finished:
            skip(source, chunks, lines)
            lineages.append(finished[number])
        else:
            lineages.append(make_shard(job, source, number, chunks, made_by, lines))
    return lineages


def skip(source: StageInput, chunks: Iterator[Any], lines: Counter) -> None:
    """Pass over chunks whose shard is there already, which still count as read."""
    for chunk in chunks:
        lines[chunk.source] += len(chunk.items) if isinstance(chunk, Items) else chunk.count_lines()
        if isinstance(source, StreamInput) and source.digest_input(chunk):
            found = [line_digest(line) for line in chunk.lines() if line and not line.isspace()]
            source.sources[chunk.source].add(len(found), b"".join(found))


def make_shard(job: Job, source: StageInput, number: int, chunks: Iterable[Any], made_by: dict, lines: Counter) -> dict:
    """Make one shard; returns its lineage."""
    counts = Counts()
    with Outputs(job.settings, shard_name(number)) as outputs:
        run_chunks(job, source, chunks, outputs, counts, lines)
        if isinstance(source, StreamInput):
            inputs = [Input(digest) for digest in made_by["input"]]
        else:
            inputs = source.results()
            source.source.digest, source.source.records = Digest(), 0
        return outputs.finish(job.stage, inputs, counts, {"shard": {"number": number, "made_by": made_by}})


def items_input(lineages: list[dict]) -> Input:
    """The items of all shards as one input: the digest of the shards' digests."""
    nodes = [lineage["stages"][lineage["stage"]]["inputs"][0] for lineage in lineages]
    digest = Digest()
    for node in nodes:
        digest.add_digest(node["digest"])
    label = nodes[0].get("label") if nodes else None
    return Input(digest.text(), sum(node.get("records", 0) for node in nodes), label=label)


def publish(job: Job, manifest: AtomicFile, lineages: list[dict], inputs: list[Input], counts: Counts) -> None:
    """Write the manifest: the directory's lineage and its shards."""
    digest = Digest()
    shards = []
    for number, lineage in enumerate(lineages):
        digest.add_digest(lineage["output"]["digest"])
        shards.append({"file": shard_name(number)} | lineage["output"])
    output = {"digest": digest.text(), "records": counts.kept, "bytes": counts.bytes_out}
    whole = lineage_of(job.stage, inputs, counts.json(), output) | {"shards": shards}
    manifest.write(orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")
    manifest.commit()
