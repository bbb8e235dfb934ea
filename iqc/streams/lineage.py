"""Where a stream comes from: a DAG of stages that travels in the stream.

    {"iqc": 1, "stage": ID, "stages": {ID: NODE, ...}, "output": {"digest", "records", "bytes"}}

A node has the stage's name, version, the options that change its output, its seed, its inputs (each with the digest of
its records and the node that made it) and its counts: no paths, times or job counts, so that the same work gives the
same bytes. A node's ID is a digest of the node.

The digest of a stream does not depend on how the stream was stored or cut: it is the SHA-256 of the SHA-256s of its
lines (without line ends; blank lines do not count), so that many workers can compute it at once.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import orjson

FORMAT = 1
DIGEST = re.compile("sha256:[0-9a-f]{64}")


def checked_lineage(value: Any) -> dict:
    """The parsed JSON of a lineage; ValueError, KeyError or TypeError when it lacks what its readers use."""
    output, stages = value["output"], value["stages"]
    if not DIGEST.fullmatch(output["digest"]):
        raise ValueError("no digest of the output")
    known = [value["stage"]]
    for name, node in stages.items():
        if identity(node) != name:  # which also rules out cycles
            raise ValueError(f"stage {name} was altered")
        counts = [node["counts"].get(count, 0) for count in ("read", "kept")]
        counts += node["counts"].get("dropped", {}).values()
        if not all(type(count) is int for count in counts) or not isinstance(node["options"], dict):
            raise ValueError("a stage without options or counts")
        node["command"], node["version"]
        for item in node["inputs"]:
            known += [item["stage"]] if "stage" in item else []
            item["digest"]
    if any(name not in stages for name in known):
        raise ValueError("a stage that it does not have")
    return value


class Digest:
    """The digest of a stream, from the digests of its lines in order."""

    def __init__(self) -> None:
        self._outer = hashlib.sha256()

    def add(self, line_digests: bytes) -> None:
        self._outer.update(line_digests)

    def add_digest(self, text: str) -> None:
        """The digest of a shard, for that of its directory."""
        self.add(bytes.fromhex(text.removeprefix("sha256:")))

    def text(self) -> str:
        return "sha256:" + self._outer.hexdigest()


def line_digest(line: bytes) -> bytes:
    return hashlib.sha256(line).digest()


@dataclass(slots=True)
class Input:
    """One input of a stage: its digest when it was read whole, and the lineage it came with, if any."""

    digest: str | None
    records: int | None = None
    lineage: dict | None = None
    label: str | None = None  # what a source calls it: "source tree", "WARC", a repository's name

    def node(self) -> dict:
        entry = {"digest": self.digest, "records": self.records, "label": self.label}
        if self.lineage:
            entry["stage"] = self.lineage["stage"]
        return {key: value for key, value in entry.items() if value is not None or key == "digest"}


@dataclass(slots=True)
class Stage:
    """A stage as lineage names it: `options` are those that change the output."""

    command: str
    version: str
    options: dict = field(default_factory=dict)
    seed: int | None = None

    def node(self) -> dict:
        node = {"command": self.command, "version": self.version, "options": self.options}
        return node if self.seed is None else node | {"seed": self.seed}


def identity(value: object) -> str:
    """A short digest of a JSON value."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def lineage_of(stage: Stage, inputs: list[Input], counts: dict, output: dict) -> dict:
    """The lineage of what `stage` made from `inputs`."""
    node = stage.node() | {"inputs": [item.node() for item in inputs], "counts": counts}
    stages: dict[str, dict] = {}
    for item in inputs:
        if item.lineage:
            stages |= item.lineage["stages"]
    node_id = identity(node)
    return {"iqc": FORMAT, "stage": node_id, "stages": stages | {node_id: node}, "output": output}


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """The leaves in which two JSON objects differ, as `name: old, now new`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before}, now {after}")
    return found
