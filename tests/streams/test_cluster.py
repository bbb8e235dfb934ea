"""A directory of shards from a cluster of two nodes is the one that a local run makes, whatever happens on the way."""

import importlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from iqc import __version__
from iqc.errors import BadRecord, IqcError
from iqc.streams import shards as shard_module
from iqc.streams.lineage import Stage
from iqc.streams.runner import ItemInput, Job, Settings, StreamInput, identity_factory, run_stage
from iqc.streams.worker import Work
from iqc.streams.writer import AtomicFile

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray without its test cluster")
cluster_module = importlib.import_module("iqc.streams.cluster")

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
FAST_HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # what the nodes import iqc from
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": FAST_HEALTH})
        started.add_node(**NODE)
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """About 40 MB of records in a stream file: five shards of 8 MiB."""
    directory = tmp_path_factory.mktemp("records")
    rng = random.Random(0)
    with open(directory / "plain.jsonl", "w", encoding="utf-8") as file:
        for number in range(1000):
            file.write(json.dumps({"id": str(number), "text": rng.randbytes(20_000).hex()}) + "\n")
    stream = directory / "in.jsonl.zst"
    run(identity_factory, [directory / "plain.jsonl"], stream)
    return stream


@pytest.fixture(scope="module")
def local(records, tmp_path_factory):
    """What a local run makes of them."""
    directory = tmp_path_factory.mktemp("local")
    run(identity_factory, [records], f"{directory}/")
    return contents(directory)


def run(factory, inputs, output, ray=None, **settings):
    names = [str(name) for name in inputs]
    return run_stage(
        "head",
        {"count": "all"},
        Settings(names, str(output), ray=ray, shard_mib=8, jobs=1, quiet=True, **settings),
        factory,
    )


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def test_same_bytes_then_resume(cluster, records, local, tmp_path, monkeypatch):
    monkeypatch.chdir(records.parent)  # relative paths mean the same on every node
    first = run(identity_factory, [records.name], f"{tmp_path}/out/", ray=cluster.address)
    assert contents(tmp_path / "out") == local  # and neither probes nor partial files beside them
    assert len(local) == 6 and first.kept == 1000

    removed = tmp_path / "out/part-00002.jsonl.zst"
    kept = {path: path.stat().st_ino for path in removed.parent.glob("part-*") if path != removed}
    removed.unlink()
    again = run(identity_factory, [records], f"{tmp_path}/out/", ray=cluster.address)
    assert contents(tmp_path / "out") == local and again.kept == 1000
    assert {path: path.stat().st_ino for path in kept} == kept


def test_lost_node(cluster, records, local, tmp_path):
    """The node is removed when it has begun a shard, which another one then makes."""
    log = tmp_path / "log"
    victim = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    doomed = victim.node_id

    def factory():
        import ray

        node = ray.get_runtime_context().get_node_id()
        seen = []

        def transform(record):
            if not seen:
                seen.append(record["id"])
                with open(log, "a", encoding="utf-8") as file:
                    file.write(f"{node} {record['id']}\n")
                time.sleep(20 if node == doomed else 1)
            yield record

        return transform

    def begun():
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        return [tuple(line.split()) for line in lines]

    lost = []

    def remove():
        until = time.monotonic() + 30
        while not lost and time.monotonic() < until:
            lost.extend(first for node, first in begun() if node == doomed)
            time.sleep(0.05)
        cluster.remove_node(victim, allow_graceful=False)

    thread = threading.Thread(target=remove)
    thread.start()
    run(factory, [records], f"{tmp_path}/out/", ray=cluster.address)
    thread.join()
    assert lost
    assert any(first == lost[0] and node != doomed for node, first in begun())
    made = contents(tmp_path / "out")
    assert {name: made[name] for name in local} == local
    assert made.keys() == local.keys()


def test_unseen_storage(cluster, records, tmp_path):
    """A path below /proc/self/fd leads to a directory in this process and nowhere in another: storage of one node."""
    handle = os.open(tmp_path, os.O_RDONLY)
    os.dup2(handle, 900)
    os.close(handle)
    try:
        with pytest.raises(IqcError, match=r"node .* does not see it") as output_error:
            run(identity_factory, [records], "/proc/self/fd/900/out/", ray=cluster.address)
        assert output_error.value.where == "/proc/self/fd/900/out/"
        assert "storage that every node sees" in output_error.value.remedy
        assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".zst" or "probe" in path.name]

        os.link(records, tmp_path / "in.jsonl.zst")
        with pytest.raises(IqcError, match=r"node .* sees nothing, the driver [0-9]+ bytes") as input_error:
            run(identity_factory, ["/proc/self/fd/900/in.jsonl.zst"], f"{tmp_path}/seen/", ray=cluster.address)
        assert input_error.value.where == "/proc/self/fd/900/in.jsonl.zst"
    finally:
        os.close(900)


def test_first_bad_record_in_shard_order(cluster, records, tmp_path):
    """The error is that of a local run: file and line, though a later shard fails sooner."""

    def factory():
        from iqc.errors import BadRecord

        def transform(record):
            if record["id"] in ("450", "900"):
                time.sleep(1 if record["id"] == "450" else 0)
                raise BadRecord("not wanted")
            yield record

        return transform

    errors = []
    for address in (None, cluster.address):
        with pytest.raises(BadRecord) as caught:
            run(factory, [records], f"{tmp_path}/{address is None}/", ray=address)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert f"{records}:451: not wanted" in errors[1]
    assert not (tmp_path / "False/manifest.json").exists()


def test_items_with_side_streams(cluster, tmp_path):
    """A source stage: its items travel, whatever makes them stays; the side streams are directories as well."""

    def factory():
        from iqc.errors import BadRecord
        from iqc.streams.stage import Dropped

        def transform(item):
            if item % 10 == 3:
                raise BadRecord("a three")
            yield Dropped({"id": str(item)}, "even", item, 2) if item % 2 == 0 else {"id": str(item)}

        return transform

    made = []
    for address in (None, cluster.address):
        place = tmp_path / ("ray" if address else "local")
        side = {"explain": f"{place}/explain/", "on_error": f"quarantine={place}/bad/"}
        source = ItemInput(iter(range(100)), "numbers", batch=20, listing=lambda: "0 to 99")
        settings = Settings([], f"{place}/out/", ray=address, shard_mib=16, quiet=True, **side)
        counts = run_stage("count", {}, settings, factory, source)
        made.append([contents(place / name) for name in ("out", "explain", "bad")])
        assert (counts.read, counts.kept, counts.skipped, counts.dropped["even"]) == (100, 40, 10, 50)
    assert made[0] == made[1]
    assert [len(files) for files in made[0]] == [4, 3, 3]


def test_interrupt(cluster, records, tmp_path):
    """Ctrl-C ends the run at once, and its tasks, which leave no unfinished files."""
    begun = tmp_path / "begun"

    def factory():
        def transform(record):
            begun.touch()
            time.sleep(0.05)
            yield record

        return transform

    sent = []

    def interrupt():
        until = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.05)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(factory, [records], f"{tmp_path}/out/", ray=cluster.address)
    seconds = time.monotonic() - sent[0]
    thread.join()
    assert begun.exists() and seconds < 5  # a second on an idle machine
    assert list((tmp_path / "out").iterdir()) == []


def test_waits_for_a_writer_given_up_for_lost(records, local, tmp_path, monkeypatch):
    """The lock of a shard's file is held for a while by somebody else: the task waits, then makes the shard."""
    monkeypatch.chdir(tmp_path)
    settings = Settings([str(records)], f"{tmp_path}/", shard_mib=8, jobs=1, quiet=True)
    source = StreamInput(settings.inputs)
    chunks = list(source.chunks())
    job = Job(Stage("head", __version__, {"count": "all"}), settings, Work(identity_factory))
    made_by = shard_module.maker(job, source)
    lines = Counter()
    shard_module.skip(source, iter(chunks[:1]), lines)
    shard = cluster_module.departing(source, 1, chunks[1:2], lines)
    common = (job, made_by, cluster_module.Storage(str(tmp_path), [], "token"))

    other = AtomicFile(tmp_path / "part-00001.jsonl.zst")
    thread = threading.Timer(1.5, other.discard)
    thread.start()
    started = time.monotonic()
    lineage = cluster_module.make(common, shard)
    assert time.monotonic() - started >= 1
    thread.join()
    assert isinstance(lineage, dict)
    assert (tmp_path / "part-00001.jsonl.zst").read_bytes() == local["part-00001.jsonl.zst"]

    with AtomicFile(tmp_path / "part-00001.jsonl.zst"):
        monkeypatch.setattr(cluster_module, "LOCK_SECONDS", 0)
        refused = cluster_module.make(common, shard)
    assert isinstance(refused, IqcError) and "another process" in refused.what


def test_text_is_refused(records, tmp_path):
    """Before anything is connected."""
    with pytest.raises(IqcError, match="stream files only") as caught:
        run(identity_factory, [records.parent / "plain.jsonl"], f"{tmp_path}/out/", ray="127.0.0.1:1")
    assert "iqc head -n all" in caught.value.remedy


def test_no_cluster(records, tmp_path):
    with pytest.raises(IqcError, match="no connection") as caught:
        run(identity_factory, [records], f"{tmp_path}/out/", ray="127.0.0.1:1")
    assert caught.value.where == "127.0.0.1:1"
