"""The shards of a stage as tasks of a Ray cluster; only references and lineages travel, records stay in files.

What it asks of the cluster: every node sees, under the same paths, the directory in which the command runs, its inputs
and its output (a probe finds out before the work starts), and can import this version of iqc from its own Python. A
shard made there has the bytes that it would have here.

When a node or a worker is lost, Ray gives its shards to others; making one again does no harm. A node that only seems
lost and still writes holds the lock of the shard's file, so the other one waits. Whatever ends a run, the shards that
are finished stay for the next one. What this does not do: move files, or retry a task that failed by itself.
"""

import _thread
import logging
import os
import secrets
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from iqc import __version__
from iqc.errors import IqcError
from iqc.streams.container import read_index
from iqc.streams.output import shard_name
from iqc.streams.pool import Deferred
from iqc.streams.progress import Progress
from iqc.streams.reader import is_regular, shown
from iqc.streams.runner import ItemInput, Job, Settings, StageInput, StreamInput
from iqc.streams.shards import make_shard, skip
from iqc.streams.worker import Items, Result
from iqc.streams.writer import write_file

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise IqcError("--ray needs Ray, which is not installed", remedy="pip install 'iqc[ray]'") from None

AHEAD = 4  # tasks in flight a CPU: one at work, others for the time that the first of the line takes longer
RETRIES = 3  # of a task whose worker or node was lost
CONNECT_SECONDS = 10
PROBE_SECONDS = 120  # a first worker starts within seconds, on a busy node within a minute
LOCK_SECONDS = 180  # NFSv4 gives a dead client's locks back after its lease, 90 s by default (RFC 8881, 8.4.3)
STORE_BYTES = 128 << 20  # object store of a cluster that is started here: it holds no records
WATCH_SECONDS = 0.1  # between a task's looks at whether it is still wanted
END_SECONDS = 0.7  # for tasks to remove their unfinished files; Ctrl-C ends a run within a second
SHARE = "--ray needs storage that every node sees under the same path: run the command there, with -o and INPUT there"


@dataclass(slots=True)
class Shard:
    """What a task needs to know of its shard. Chunks and lines count inputs from the first one that it touches."""

    number: int
    chunks: list[Any]
    inputs: list[str]  # names of the files that it touches; for items, what they are called
    lines: list[int]  # how many lines of each of them came before


@dataclass(slots=True)
class Storage:
    """The places that a node must see as the driver does, and how it can tell that they are the same."""

    home: str  # the driver's working directory, from which relative paths go
    directories: list[str]
    token: str

    def file(self, directory: str, author: str) -> Path:
        return Path(directory, f".probe-{self.token}-{author}")

    def enter(self) -> None:
        """Go to the driver's working directory and read what it wrote; IqcError when that is not there."""
        place = self.home
        try:
            os.chdir(self.home)
            for directory in self.directories:
                place = directory
                self.file(directory, "driver").read_bytes()
        except OSError as error:
            what = f"node {socket.gethostname()} does not see it as the driver does ({error.strerror})"
            raise IqcError(what, where=place, remedy=SHARE) from None

    def leave(self) -> None:
        """On the driver: remove the probes, which ends the tasks that still run."""
        for directory in self.directories:
            for probe in Path(directory).glob(f".probe-{self.token}-*"):
                probe.unlink(missing_ok=True)

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """On a node: KeyboardInterrupt in the main thread when the driver's probe is gone.

        (ray.cancel does the same, but Ray 2.60 aborts the driver when a task that it cancelled ends at that moment:
        "Tried to complete task that was not pending".)
        """
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                if not all(self.file(directory, "driver").exists() for directory in self.directories):
                    _thread.interrupt_main()
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def make_on_ray(
    job: Job,
    source: StageInput,
    shards: Iterator[tuple[int, Iterator[Any]]],
    made_by: dict,
    finished: dict[int, dict],
) -> list[dict]:
    """Make the shards that are not `finished`; the lineages of all of them, in order.

    `job.settings.ray` is the address: `auto`, `local` (a cluster of this machine, for this run), HOST:PORT or
    ray://HOST:PORT. Raises the error that a local run would meet first, and IqcError when a node does not see what it
    must, or when a shard was lost more than RETRIES times.
    """
    sizes = input_sizes(source)
    with (
        connected(job.settings),
        shared_storage(job.settings) as storage,
        Progress(job.stage.command, job.settings) as progress,
    ):
        probe_nodes(storage, sizes)
        settings = replace(job.settings, jobs=1, ray=None, quiet=True)
        common = ray.put((replace(job, settings=settings), made_by, storage))
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(make)

        def started() -> Iterator[tuple[int, Any]]:
            lines: Counter = Counter()
            for number, chunks in shards:
                if number in finished:
                    skip(source, chunks, lines)
                    yield number, finished[number]
                else:
                    yield number, task.remote(common, departing(source, number, list(chunks), lines))

        deferred = Deferred(started())
        tasks = iter(deferred)
        waiting: deque[tuple[int, Any]] = deque()
        lineages = []
        try:
            while True:
                cores = int(ray.cluster_resources().get("CPU", 1))
                waiting.extend(islice(tasks, max(0, AHEAD * cores - len(waiting))))
                if not waiting:
                    break
                lineage = wait_for(*waiting[0])
                waiting.popleft()
                lineages.append(lineage)
                progress.update(Result(0, read=lineage["stages"][lineage["stage"]]["counts"]["read"]))
        finally:
            given_up = [found for _, found in waiting if isinstance(found, ray.ObjectRef)]
            if given_up:
                storage.leave()
                ray.wait(given_up, num_returns=len(given_up), timeout=END_SECONDS)
        if deferred.failure is not None:
            raise deferred.failure
        return lineages


def input_sizes(source: StageInput) -> dict[str, int]:
    """The size in bytes of every input file; IqcError for an input that a task could not read for itself."""
    if isinstance(source, ItemInput):
        return {}
    for item in source.sources:
        if item.name == "-" or not is_regular(item.name) or read_index(item.name) is None:
            raise IqcError(
                "--ray reads stream files only, whose parts every node can read for itself",
                where=shown(item.name),
                remedy=f"write it to one first: iqc head -n all {item.name} -o FILE.jsonl.zst",
            )
    return {item.name: os.stat(item.name).st_size for item in source.sources}


@contextmanager
def connected(settings: Settings) -> Iterator[None]:
    """A connection to the cluster, for as long as the run."""
    address = settings.ray or "auto"
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is ours reports to nobody
        options |= {"num_cpus": settings.jobs, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray itself tries a dead address for many minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise IqcError(
            f"no connection to the Ray cluster: {str(error).strip().splitlines()[0]}",
            where=address,
            remedy="ray status tells whether it runs; --ray takes auto, local, HOST:PORT or ray://HOST:PORT",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def shared_storage(settings: Settings) -> Iterator[Storage]:
    """The places of a run with the driver's probe in each, which stays as long as the run."""
    paths = [settings.output, settings.explain, settings.quarantine]
    storage = Storage(os.getcwd(), [path for path in paths if path is not None], secrets.token_hex(8))
    try:
        for directory in storage.directories:
            Path(directory).mkdir(parents=True, exist_ok=True)
            write_file(storage.file(directory, "driver"), b"")
        yield storage
    finally:
        storage.leave()


def probe_nodes(storage: Storage, sizes: dict[str, int]) -> None:
    """Let every node that can be given a shard show that it sees what the driver sees, and the other way round."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise IqcError("no node of the cluster has a CPU for tasks", remedy="start one: ray start --address=HOST:PORT")
    task, common = ray.remote(num_cpus=0)(probe), ray.put((storage, sizes))
    asked = []
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append(task.options(scheduling_strategy=here).remote(common, node["NodeID"]))
    for node, answer in zip(nodes, asked):
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            found = ray.get(answer, timeout=PROBE_SECONDS)
        except ray.exceptions.RayError as error:
            raise IqcError(
                f"{name} failed the probe: {str(error).strip().splitlines()[-1]}",
                remedy="its Python must import iqc and ray of the same versions as here",
            ) from None
        if isinstance(found, IqcError):
            raise found
        if found != __version__:
            raise IqcError(f"{name} has iqc {found}, here is {__version__}", remedy="install the same one on all nodes")
        for directory in storage.directories:
            if not storage.file(directory, node["NodeID"]).exists():
                raise IqcError(f"what {name} writes does not arrive here", where=directory, remedy=SHARE)


def probe(common: tuple[Storage, dict[str, int]], author: str) -> str | IqcError:
    """On a node: see what the driver sees, write as a shard is written; the version of iqc there, or what failed."""
    storage, sizes = common
    name = f"node {socket.gethostname()}"
    try:
        storage.enter()
        for path, size in sizes.items():
            found = os.stat(path).st_size if os.path.exists(path) else None
            if found != size:
                seen = "nothing" if found is None else f"{found} bytes"
                return IqcError(f"{name} sees {seen}, the driver {size} bytes", where=path, remedy=SHARE)
        for directory in storage.directories:
            write_file(storage.file(directory, author), b"")
    except IqcError as error:
        return error if name in error.what else IqcError(f"{name}: {error.what}", where=error.where, remedy=SHARE)
    return __version__


def departing(source: StageInput, number: int, chunks: list[Any], lines: Counter) -> Shard:
    """A shard as it travels; moves `lines` past its chunks."""
    first, last = chunks[0].source, chunks[-1].source
    before = [lines[position] for position in range(first, last + 1)]
    skip(source, iter(chunks), lines)
    moved = [replace(chunk, source=chunk.source - first) for chunk in chunks]
    return Shard(number, moved, [source.name(position) for position in range(first, last + 1)], before)


def make(common: tuple[Job, dict, Storage], shard: Shard) -> dict | IqcError | OSError:
    """On a node: make one shard; its lineage, or the error that ends the run (Ray would wrap a raised one)."""
    job, made_by, storage = common
    give_up = time.monotonic() + LOCK_SECONDS
    try:
        storage.enter()
        while True:
            try:
                lines = Counter(dict(enumerate(shard.lines)))
                with storage.wanted():
                    return make_shard(job, arrived(shard), shard.number, shard.chunks, made_by, lines)
            except IqcError as error:
                locked = isinstance(error.__context__, BlockingIOError)  # by a worker that was given up for lost
                if not locked or time.monotonic() > give_up:
                    return error
                time.sleep(1)
    except (IqcError, OSError) as error:
        return error
    except KeyboardInterrupt:
        return IqcError("the run was ended")


def arrived(shard: Shard) -> StageInput:
    """The input of a shard, on the node that makes it."""
    if isinstance(shard.chunks[0], Items):
        return ItemInput([], shard.inputs[0])
    source = StreamInput(shard.inputs)
    for item in source.sources:
        item.ours = True  # the driver saw so: their digests are known
    return source


def wait_for(number: int, found: Any) -> dict:
    """The lineage of a shard that was there or is made now."""
    if isinstance(found, dict):
        return found
    try:
        lineage = ray.get(found)
    except ray.exceptions.RayTaskError:  # a fault of the stage, with its traceback
        raise
    except ray.exceptions.RayError as error:
        raise IqcError(
            f"lost {RETRIES + 1} times: {str(error).strip().splitlines()[0]}",
            where=shard_name(number),
            remedy="run the same command again, finished shards are kept; out of memory, try a smaller --shard-mib",
        ) from None
    if isinstance(lineage, Exception):
        raise lineage
    return lineage
