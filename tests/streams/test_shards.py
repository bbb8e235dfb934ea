"""Directories of shards: resume keeps what is finished and makes the same bytes; a mismatch is named."""

import gzip
import os
import signal
import subprocess
import time

import orjson
import pytest

from iqc.streams.container import read_index

OPTIONS = ("--shard-mib", 8, "--on-error", "skip", "-q")


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def identity(path):
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


@pytest.fixture(scope="module")
def whole(stages, samples, tmp_path_factory):
    """What an uninterrupted run makes: three shards."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert stages.run("make_pick", samples / "sample.zst", "-o", f"{out}/", *OPTIONS).returncode == 0
    assert sorted(contents(out)) == ["manifest.json", *(f"part-0000{n}.jsonl.zst" for n in range(3))]
    return out


@pytest.mark.parametrize("jobs", [1, 2])
def test_resume_keeps_the_finished_and_makes_the_missing(stages, samples, whole, tmp_path, jobs):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("part-00000.jsonl.zst", "part-00002.jsonl.zst"):
        (out / name).write_bytes((whole / name).read_bytes())
    (out / ".part-00001.jsonl.zst.partial").write_bytes(b"left by a killed run")
    before = {path.name: identity(path) for path in out.glob("part-*")}
    assert stages.run("make_pick", samples / "sample.zst", "-o", f"{out}/", "-j", jobs, *OPTIONS).returncode == 0
    assert contents(out) == contents(whole)
    assert all(identity(out / name) == kept for name, kept in before.items())
    again = {path.name: identity(path) for path in out.glob("part-*")}
    assert stages.run("make_pick", samples / "sample.zst", "-o", f"{out}/", *OPTIONS).returncode == 0
    assert {path.name: identity(path) for path in out.glob("part-*")} == again and contents(out) == contents(whole)


def test_a_killed_run_resumes(stages, samples, whole, tmp_path):
    out = tmp_path / "out"
    process = stages.start("make_pick", samples / "sample.zst", "-o", f"{out}/", "-j", 1, *OPTIONS)
    end = time.monotonic() + 30
    while not (out / "part-00000.jsonl.zst").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()  # it comes last
    kept = identity(out / "part-00000.jsonl.zst")
    assert stages.run("make_pick", samples / "sample.zst", "-o", f"{out}/", *OPTIONS).returncode == 0
    assert identity(out / "part-00000.jsonl.zst") == kept and contents(out) == contents(whole)


def test_a_mismatch_names_the_difference(stages, samples, whole, tmp_path):
    before = contents(whole)
    changed = stages.run("make_slow", samples / "sample.zst", "-o", f"{whole}/", *OPTIONS)
    assert changed.returncode == 1 and b"options.factory: make_pick, now make_slow" in changed.stderr
    changed = stages.run("make_pick", samples / "sample.zst", "-o", f"{whole}/", "--shard-mib", 16, "-q")
    assert changed.returncode == 1 and b"shard_mib: 8, now 16" in changed.stderr
    other = tmp_path / "other.jsonl"
    other.write_bytes(b'{"id":"a","n":1}\n')
    changed = stages.run("make_pick", other, "-o", f"{whole}/", *OPTIONS)
    assert changed.returncode == 1 and b"input: ['sha256:" in changed.stderr
    assert contents(whole) == before


@pytest.mark.parametrize("form", ["stream", "gzip"])
def test_a_pipe_resumes_with_its_digest_only(stages, samples, read, tmp_path, form):
    plain = (samples / "sample.jsonl").read_bytes()
    data = (samples / "sample.zst").read_bytes() if form == "stream" else gzip.compress(plain, 1)
    digest = read(samples / ("sample.zst" if form == "stream" else "sample.jsonl"))[1]
    out = tmp_path / "out"
    named = ["--input-digest", digest]
    assert stages.run("make_pick", "-o", f"{out}/", *OPTIONS, *named, stdin=data).returncode == 0
    expected = contents(out)
    (out / "part-00001.jsonl.zst").unlink()
    (out / "manifest.json").unlink()
    refused = stages.run("make_pick", "-o", f"{out}/", *OPTIONS, stdin=data)
    assert refused.returncode == 1 and b"give --input-digest" in refused.stderr
    kept = identity(out / "part-00002.jsonl.zst")
    assert stages.run("make_pick", "-o", f"{out}/", *OPTIONS, *named, stdin=data).returncode == 0
    assert contents(out) == expected and identity(out / "part-00002.jsonl.zst") == kept


def test_a_wrong_input_digest_is_noticed_at_the_end(stages, tmp_path):
    wrong = tmp_path / "wrong"
    options = [*OPTIONS, "--input-digest", "sha256:" + "0" * 64]
    done = stages.run("make_pick", "-o", f"{wrong}/", *options, stdin=b'{"id":"a","n":1}\n')
    assert done.returncode == 1 and b"the digest of the input is sha256:" in done.stderr
    assert not (wrong / "manifest.json").exists()


def test_two_writers_of_a_directory_are_refused(stages, samples, tmp_path):
    out = tmp_path / "out"
    first = stages.start(
        "make_slow", samples / "sample.zst", "-o", f"{out}/", "-j", 1, *OPTIONS, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 20
    while not (out / ".manifest.json.partial").exists() and time.monotonic() < end:
        time.sleep(0.01)
    second = stages.run("make_pick", samples / "sample.zst", "-o", f"{out}/", *OPTIONS)
    first.kill()
    first.wait()
    assert second.returncode == 1 and b"another process is writing it" in second.stderr


def test_side_streams_have_a_file_a_shard_and_are_made_again_when_missing(stages, samples, read, tmp_path):
    names = [tmp_path / name for name in ("out", "why", "bad")]
    out, why, bad = (f"{name}/" for name in names)
    options = ["--shard-mib", 8, "-q", "--explain", why, "--on-error", f"quarantine={bad}"]
    assert stages.run("make_pick", samples / "sample.jsonl", "-o", out, *options).returncode == 0
    made = [contents(name) for name in names]
    assert len(made[1]) == len(made[2]) == 3
    lines = (samples / "sample.jsonl").read_bytes().split(b"\n")
    for record in read(names[2] / "part-00002.jsonl.zst")[0]:
        assert lines[record["line"] - 1].decode() == record["raw"]
    (names[1] / "part-00001.jsonl.zst").unlink()
    (names[0] / "part-00000.jsonl.zst").unlink()
    assert stages.run("make_pick", samples / "sample.jsonl", "-o", out, *options).returncode == 0
    assert [contents(name) for name in names] == made


def test_the_manifest_counts_what_the_shards_hold(whole, stages, samples, tmp_path, iqc):
    manifest = orjson.loads((whole / "manifest.json").read_bytes())
    indexes = [read_index(str(whole / shard["file"])) for shard in manifest["shards"]]
    assert [index.lineage["output"] | {"file": shard["file"]} for index, shard in zip(indexes, manifest["shards"])] == [
        {key: shard[key] for key in ("digest", "records", "bytes", "file")} for shard in manifest["shards"]
    ]
    assert manifest["output"]["records"] == sum(shard["records"] for shard in manifest["shards"])
    one = tmp_path / "one.zst"
    assert stages.run("make_pick", samples / "sample.zst", "-o", one, "--on-error", "skip").returncode == 0
    node = manifest["stages"][manifest["stage"]]
    lineage = orjson.loads(iqc("lineage", "--json", one).stdout)
    assert lineage["stages"] == manifest["stages"] and node["counts"]["kept"] == lineage["output"]["records"]


def test_wrong_usage_of_a_directory(stages, samples, tmp_path):
    out = f"{tmp_path / 'out'}/"
    for options in (["--plain"], ["--explain", tmp_path / "file"], ["--on-error", f"quarantine={tmp_path / 'file'}"]):
        assert stages.run("make_pick", samples / "sample.zst", "-o", out, *options).returncode == 2
    assert stages.run("make_pick", samples / "sample.zst", "-o", tmp_path / "f", "--ray", "auto").returncode == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("pipe", [False, True])
def test_an_empty_stream_makes_an_empty_directory_of_shards(stages, make_stream, read, tmp_path, pipe, iqc):
    empty = make_stream(tmp_path / "empty.zst", [])
    where = {"stdin": empty.read_bytes()} if pipe else {}
    done = stages.run("make_pick", *([] if pipe else [empty]), "-o", f"{tmp_path / 'out'}/", **where)
    assert done.returncode == 0 and os.listdir(tmp_path / "out") == ["manifest.json"]
    done = iqc("head", "-n", "all", tmp_path / "out", "-o", tmp_path / "again.zst")
    assert done.returncode == 0 and read(tmp_path / "again.zst")[0] == []


def test_a_set_stage_refuses_the_shards_of_another_input(tmp_path, iqc):
    for name, text in (("a", "alpha"), ("b", "beta")):
        (tmp_path / name).write_text(f'{{"id":"{name}","text":"{text} one two three four five"}}\n')
    assert iqc("dedup", "-q", tmp_path / "a", "-o", f"{tmp_path}/out/").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = iqc("dedup", "-q", tmp_path / "b", "-o", f"{tmp_path}/out/")
    assert done.returncode == 1 and b"a shard of another run: input" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    done = iqc("dedup", "-q", tmp_path / "a", "-o", f"{tmp_path}/out/", "--on-error", "skip")
    assert done.returncode == 1 and b"on_error: fail, now skip" in done.stderr
    assert iqc("dedup", "-q", tmp_path / "a", "-o", f"{tmp_path}/out/").returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
