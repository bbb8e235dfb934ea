"""kill -9 at random moments of every command that writes, and of the stage before it in a pipe: nothing incomplete
appears under the target's name, no process stays, and the rerun gives the bytes of a run that was left alone."""

import os
import random
import shutil
import time

import pytest

from iqc.train.run import damage

# name -> (arguments with {world}, whether the target is a FILE, a directory of shards DIR/, or a directory)
COMMANDS = {
    "crawl-clean": ("crawl-clean {world}/tree -j 2", "FILE DIR/"),
    "dedup": ("dedup {world}/documents.zst -j 2", "FILE DIR/"),
    "triplets": ("triplets {world}/repository --density 20 --min-score 0.1 -j 2", "FILE DIR/"),
    "fim": ("fim {world}/unique.zst -j 2 --shard-mib 1", "FILE DIR/"),
    "tasks": ("tasks -n 300", "FILE"),
    "mix": (
        "mix {world}/documents.zst x={world}/unique.zst --weight x=2 --max-epochs 30 --languages python=1 -j 2 "
        "--shard-mib 1",
        "FILE DIR/",
    ),
    "pack": ("pack {world}/documents.zst --tokenizer {world}/tokenizer --context 128 -j 2 --shard-mib 1", "FILE DIR/"),
    "head": ("head -n all {world}/documents.zst -j 2", "FILE DIR/"),
    "head-n": ("head -n 9 {world}/documents.zst", "FILE"),
    "tokenizer": ("tokenizer train {world}/documents.zst --vocab-size 512", "TREE"),
    "model": ("model logprobs {world}/run {world}/ids.zst {world}/ids.zst -j 2 --shard-mib 1", "FILE DIR/"),
    "prompts": ("eval prompts tasks --data {world}/held-out.zst", "FILE"),
    "generate": ("generate {world}/prompts.zst --model {world}/run --max-new-tokens 4 -n 2", "FILE"),
    "eval-run": ("eval run tasks --data {world}/held-out.zst --model {world}/run --max-new-tokens 8", "FILE"),
    "export": ("export {world}/run", "TREE"),
    "train": (
        "train a={world}/sequences.zst b={world}/sequences.zst --tokenizer {world}/tokenizer --model tiny --steps 16 "
        "--batch-rows 2 --micro-rows 1 --save-every 1 --valid a={world}/held-out-rows.zst "
        "--valid b={world}/held-out-rows.zst --valid-every 3 --adapt --reference a=1 --reference b=5",
        "RUN",
    ),
    "rl": (
        "rl {world}/tasks.zst --from {world}/run --updates 6 --tasks 2 --group 2 --max-new-tokens 8 --save-every 1",
        "RUN",
    ),
}
CASES = [(name, kind) for name, (_, kinds) in COMMANDS.items() for kind in kinds.split()]
KILLS = 5
RUN_KILLS = 10  # of a run that goes on where it was killed


def check(kind, found, whole, target):
    """What a kill has left under the target's name is complete: part of what the run that was left alone has made."""
    if kind in ("FILE", "TREE") and "tokenizer.json" not in whole:
        assert found in ({}, whole)
    elif kind == "DIR/":
        assert all(whole[name] == data for name, data in found.items())
        assert "manifest.json" not in found or found == whole
    elif kind == "TREE":  # a tokenizer: its files are whole, and tokenizer.json, which makes it one, comes last
        assert all(whole[name] == data for name, data in found.items())
        assert "tokenizer.json" not in found or found == whole
    else:
        for checkpoint in target.glob("step-*"):
            assert damage(checkpoint) is None
        lines = found.get("metrics.jsonl", b"").splitlines(keepends=True)
        expected = whole["metrics.jsonl"].splitlines(keepends=True)
        assert lines == expected[: len(lines)] or lines[:-1] == expected[: len(lines) - 1]  # the last may be cut
        newest = max((int(path.name[5:]) for path in target.glob("step-*")), default=0)
        assert len(lines) >= newest


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda value: value.strip("/"))
def test_kill_9(server, world, contents, wait_for_end, tmp_path, request, name, kind):
    if name in ("rl", "eval-run"):
        request.getfixturevalue("isolation")
    draw = random.Random(f"{name} {kind}")
    place = tmp_path / "killed"
    place.mkdir()
    slash = "/" if kind == "DIR/" else ""
    command = [word.format(world=world) for word in COMMANDS[name][0].split()]
    started = time.monotonic()
    server.make(*command, "-o", f"{tmp_path / 'whole'}{slash}")
    duration = time.monotonic() - started
    whole = contents(tmp_path / "whole")
    target, killed = place / "out", 0
    for number in range(RUN_KILLS if kind == "RUN" else KILLS):
        child = server.start(*command, "-o", f"{target}{slash}")
        time.sleep(draw.uniform(0, duration * (0.35 if kind == "RUN" or number == 0 else 1)))
        child.kill(group=number % 2 == 0)
        done = child.wait()
        killed += done.returncode == -9
        assert done.returncode in (0, -9), done.stderr
        assert wait_for_end(child.pid) == []
        check(kind, contents(target) if target.exists() else {}, whole, target)
        if done.returncode == 0 and kind in ("DIR/", "TREE"):
            shutil.rmtree(target)  # what is finished is kept, so there would be no more to kill
    assert killed
    if name != "export" or not target.exists():
        server.make(*command, "-o", f"{target}{slash}")
    final = contents(target)
    if kind == "RUN":
        check(kind, final, whole, target)
    assert final == whole
    if kind == "FILE":
        assert [path.name for path in place.iterdir()] == ["out"]


FILTERS = {
    "crawl-clean": ("documents.zst", "crawl-clean -j 2"),
    "dedup": ("documents.zst", "dedup"),
    "fim": ("documents.zst", "fim -j 2"),
    "mix": ("documents.zst", "mix --epochs stdin=2 --languages python=1 -j 2"),
    "pack": ("documents.zst", "pack --tokenizer {world}/tokenizer"),
    "head": ("documents.zst", "head -n all"),
    "generate": ("prompts.zst", "generate --model {world}/run --max-new-tokens 4"),
    "model": ("ids.zst", "model logprobs {world}/run"),
    "tokenizer": ("documents.zst", "tokenizer train --vocab-size 512"),
    "train": ("sequences.zst", "train --model tiny --tokenizer {world}/tokenizer --steps 1"),
    "rl": ("tasks.zst", "rl --from {world}/run --updates 1 --tasks 2 --group 2 --max-new-tokens 4"),
}


def fed(server, command, data):
    """Run a command whose standard input is a pipe with these bytes."""
    source, sink = os.pipe()
    child = server.start(*command, stdin=source)
    os.close(source)
    try:
        with open(sink, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass
    return child.wait()


@pytest.mark.parametrize("name", FILTERS)
def test_kill_9_of_the_stage_before(server, world, tmp_path, request, name):
    """The stream that a killed stage has written so far: cut at any byte, it is refused and nothing is published."""
    if name == "rl":
        request.getfixturevalue("isolation")
    stream, command = FILTERS[name]
    data = (world / stream).read_bytes()
    draw = random.Random(name)
    target = tmp_path / "out"
    for size in (0, 1, *(draw.randrange(2, len(data)) for _ in range(3)), len(data) - 1):
        done = fed(server, [*command.format(world=world).split(), "-o", target], data[:size])
        assert done.returncode == 1 and done.stderr.startswith(f"iqc {name}: "), (size, done)
        assert not target.exists() and list(tmp_path.iterdir()) == []
    done = fed(server, [*command.format(world=world).split(), "-o", target], data)
    assert done.returncode == 0, done.stderr


def test_kill_9_of_a_real_stage_before(server, world, tmp_path):
    """Two processes and a pipe between them."""
    draw = random.Random(1)
    target, outcomes = tmp_path / "out", set()
    started = time.monotonic()
    server.make("crawl-clean", world / "tree", "-j", 1)
    duration = time.monotonic() - started
    for _ in range(8):
        source, sink = os.pipe()
        before = server.start("crawl-clean", world / "tree", "-j", 1, "-q", stdout=sink)
        after = server.start("fim", "-j", 1, "-q", "-o", target, stdin=source)
        os.close(source)
        os.close(sink)
        time.sleep(draw.uniform(0, duration))
        before.kill(group=True)
        died = before.wait().returncode == -9
        done = after.wait()
        outcomes.add(died)
        assert target.exists() is not died and done.returncode == (1 if died else 0), done.stderr
        target.unlink(missing_ok=True)
    assert True in outcomes
