"""crawl-clean, dedup, triplets, fim and head on real source files and a real history: the output means something."""

import ast
import json
import subprocess

import pytest

JOBS = {
    "crawl-clean": "crawl-clean {world}/tree",
    "dedup": "dedup {world}/documents.zst",
    "triplets": "triplets {world}/repository again={world}/repository --density 20 --min-score 0.1",
    "fim": "fim {world}/unique.zst --rate 1 --stretch 900 --seed 3",
    "pack": "pack {world}/unique.zst {world}/chats.zst --tokenizer {world}/tokenizer --context 128",
    "head": "head -n all {world}/unique.zst {world}/fim.zst",
    "model": "model logprobs {world}/run {world}/ids.zst {world}/ids.jsonl",
}


@pytest.mark.parametrize("name", JOBS)
def test_jobs_do_not_change_a_byte(server, world, tmp_path, name):
    made = {}
    for jobs in (1, 2):
        out = [tmp_path / f"{jobs}.zst", tmp_path / f"{jobs}.explained"]
        server.make(*JOBS[name].format(world=world).split(), "-j", jobs, "-o", out[0], "--explain", out[1])
        made[jobs] = [path.read_bytes() for path in out]
    assert made[1] == made[2] and len(made[1][0]) > 1000


@pytest.mark.parametrize("name", JOBS)
def test_a_pipe_and_a_file_and_shards_have_the_same_records(server, world, tmp_path, read, name):
    command = JOBS[name].format(world=world).split()
    (tmp_path / "piped").write_bytes(server.make(*command).stdout)
    server.make(*command, "-o", tmp_path / "file")
    server.make(*command, "-o", f"{tmp_path}/shards/")
    assert (tmp_path / "piped").read_bytes() == (tmp_path / "file").read_bytes()
    assert read(tmp_path / "shards") == read(tmp_path / "file") != []


def test_crawl_clean(world, server, read, tmp_path):
    records = {record["metadata"]["path"]: record for record in read(world / "documents.zst")}
    for path, record in records.items():
        assert record["text"] == (world / "tree" / path).read_text() and record["source"] == "stdlib"
        assert record["metadata"]["lang"].lower() == "python"
        ast.parse(record["text"])
    done = server.make("crawl-clean", world / "tree", "--explain", tmp_path / "dropped", "--summary", tmp_path / "s")
    dropped = {record["metadata"]["path"]: record["dropped"] for record in read(tmp_path / "dropped")}
    files = {path.name for path in (world / "tree").iterdir()}
    assert files == set(records) | set(dropped) and not set(records) & set(dropped)
    assert "broken.py" in dropped and all(entry["rule"] for entry in dropped.values())
    summary = json.loads((tmp_path / "s").read_text())
    assert summary["kept"] == len(records) and sum(summary["dropped"].values()) == len(dropped)
    assert f"kept {len(records)}" in done.stderr


def test_dedup(world, read, server, tmp_path):
    before, after = read(world / "documents.zst"), read(world / "unique.zst")
    texts = [record["text"] for record in before]
    assert len(set(texts)) == len(texts) - 1 and len(after) == len(before) - 1
    assert {record["text"] for record in after} == set(texts)
    paths = [record["metadata"]["path"] for record in after]
    assert "again.py" in paths and "textwrap.py" not in paths  # the first in the order of the input stays
    server.make("dedup", world / "documents.zst", world / "documents.zst", "--exact", "-o", tmp_path / "out")
    assert read(tmp_path / "out") == after


def test_triplets(world, read, tmp_path):
    records = read(world / "triplets.zst")
    assert len({record["id"] for record in records}) == len(records) > 0
    commits = subprocess.run(
        ["git", "log", "--format=%H"], cwd=world / "repository", capture_output=True, check=True, text=True
    ).stdout.split()
    for number, record in enumerate(records):
        assert {record["old"]["commit"], record["new"]["commit"]} <= set(commits)
        place = tmp_path / str(number)
        for file in record["old"]["files"]:
            (place / file["path"]).parent.mkdir(parents=True, exist_ok=True)
            (place / file["path"]).write_text(file["text"])
        command = ["git", "apply", "--unsafe-paths", f"--directory={place}", "-"]
        subprocess.run(command, input=record["patch"].encode(), check=True, cwd=tmp_path)
        found = {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}
        assert found == {file["path"]: file["text"] for file in record["new"]["files"]}


def test_fim(world, read):
    texts = [record["text"] for record in read(world / "unique.zst")]
    samples = [record for record in read(world / "fim.zst") if "middle" in record]
    assert samples and {sample["level"] for sample in samples} >= {"character", "line", "statement"}
    for sample in samples:
        whole = sample["prefix"] + sample["middle"] + sample["suffix"]
        assert any(whole in text for text in texts) and sample["middle"]


def test_head(world, read, server, tmp_path):
    records = read(world / "documents.zst")
    server.make("head", "-n", 3, world / "documents.zst", "-o", tmp_path / "three")
    assert read(tmp_path / "three") == records[:3]
    lines = server.make("head", "-n", "all", world / "documents.zst", "--plain").stdout.splitlines()
    assert [json.loads(line) for line in lines] == records


def test_an_empty_stream_passes_through(server, world, tmp_path, read):
    (tmp_path / "empty").write_text("")
    for command in ("crawl-clean", "dedup", "fim", f"pack --tokenizer {world}/tokenizer", "head -n all", "head"):
        server.make(*command.split(), tmp_path / "empty", "-o", tmp_path / "out")
        assert read(tmp_path / "out") == []
    server.make("generate", tmp_path / "empty", "--model", world / "run", "-o", tmp_path / "out")
    assert read(tmp_path / "out") == []
