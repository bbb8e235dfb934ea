"""Where a stage's records go: one file, the standard output, or a directory of shards that resumes.

Beside the records a stage may write those it dropped (--explain) and those that were bad (--on-error quarantine=FILE);
they are streams of the same form, and directories when the output is one.
"""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from iqc.errors import IqcError, UsageError
from iqc.streams.container import Frame
from iqc.streams.lineage import Input, Stage, line_digest, lineage_of
from iqc.streams.stage import Dropped, Record
from iqc.streams.worker import Bad, Result, explain
from iqc.streams.writer import AtomicFile, Direct, StreamWriter, open_target

if TYPE_CHECKING:
    from iqc.streams.runner import Counts, Settings


class Outputs:
    """The stream of records and its side streams, as one file each."""

    def __init__(self, settings: "Settings", name: str | None = None):
        """`name`: that of a shard, the same in the directories of all three streams."""
        plain = settings.plain
        if plain and not settings.quiet:
            print("iqc: --plain drops the lineage", file=sys.stderr)
        self.writers: list[StreamWriter] = []
        try:
            self.explained = None if settings.explain is None else self._open(settings.explain, name)
            self.quarantined = None if settings.quarantine is None else self._open(settings.quarantine, name)
            self.main = self._open(settings.output or "-", name, plain)
        except BaseException:
            self.discard()
            raise

    def _open(self, path: str, name: str | None, plain: bool = False) -> StreamWriter:
        if name is not None:
            Path(path).mkdir(parents=True, exist_ok=True)
            path = os.path.join(path, name)
        writer = StreamWriter(open_output(path, plain), plain)
        self.writers.append(writer)
        return writer

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        for writer in self.writers:
            writer.discard()

    def add(self, result: Result) -> None:
        for packed, records, digests in result.output:
            if isinstance(packed, Frame):
                self.main.add_frame(packed, digests)
            else:
                self.main.add_text(packed, records, digests)
        if self.explained:
            for line in result.explained:
                self.explained.add_text(line + b"\n", 1, line_digest(line))
        if self.quarantined:
            for bad in result.bad:
                self.quarantined.add_record(quarantine_record(bad))

    def add_record(self, record: Record) -> None:
        self.main.add_record(record)

    def drop(self, dropped: Dropped) -> None:
        if self.explained:
            line = explain(dropped)
            self.explained.add_text(line + b"\n", 1, line_digest(line))

    def finish(self, stage: Stage, inputs: list[Input], counts: "Counts", extra: dict | None = None) -> dict:
        """Publish; `extra` goes beside the lineage. Returns the lineage of the records."""
        counts.kept += self.main.records
        counts.bytes_out += self.main.bytes
        for writer in self.writers:  # the records last: a shard that is there has its side streams
            lineage = lineage_of(stage, inputs, counts.json(), writer.output())
            writer.finish(lineage | (extra or {}))
        return lineage


def quarantine_record(bad: Bad) -> Record:
    raw = bad.raw.decode("utf-8", "backslashreplace")
    return {"error": bad.what, "remedy": bad.remedy, "file": bad.file, "line": bad.line, "raw": raw}


def open_output(path: str, plain: bool) -> AtomicFile | Direct:
    """The file, or the standard output for `-`."""
    if path == "-":
        if sys.stdout is None:
            raise IqcError("standard output is closed", remedy="name a file: -o FILE")
        if sys.stdout.isatty() and not plain:
            raise UsageError(
                "compressed records do not belong on a terminal", remedy="use -o FILE, a pipe, or --plain to read them"
            )
        return Direct(os.dup(sys.stdout.fileno()), "standard output")
    check_parent(path)
    return open_target(path)


def check_parent(path: str) -> None:
    """IqcError when the directory that a file is to be in does not exist."""
    parent = Path(path).parent
    if parent.exists() and not parent.is_dir():
        raise IqcError("a file, not a directory", where=str(parent), remedy=f"name another place than {path}")
    if not parent.is_dir():
        raise IqcError("no such directory", where=str(parent), remedy=f"mkdir -p {shlex.quote(str(parent))}")


class RollingOutputs:
    """A directory of shards cut from what a set stage puts out: a new shard every `shard_mib`."""

    def __init__(self, settings: "Settings", finish: Callable[[Outputs, int], None]):
        self.settings = settings
        self.finish_shard = finish
        self.number = 0
        self.current = Outputs(settings, shard_name(0))

    def __enter__(self) -> "RollingOutputs":
        return self

    def __exit__(self, *_: object) -> None:
        self.current.discard()

    def add(self, result: Result) -> None:
        self.current.add(result)

    def drop(self, dropped: Dropped) -> None:
        self.current.drop(dropped)

    def add_record(self, record: Record) -> None:
        if self.current.main.bytes >= self.settings.shard_mib << 20:
            self.finish_shard(self.current, self.number)
            self.number += 1
            self.current = Outputs(self.settings, shard_name(self.number))
        self.current.add_record(record)


def shard_name(number: int) -> str:
    return f"part-{number:05d}.jsonl.zst"
