"""tasks, tokenizer, pack, train, rl, generate, eval and export: one chain, each link checked for what it means."""

import json

import pytest

from iqc.tokens import tokenizer
from iqc.tokens.sequence import decode_sequence


def test_tokenizer(world, server, read):
    loaded = tokenizer.load(world / "tokenizer")
    assert loaded.vocab_size == 512
    shown = server.make("tokenizer", "show", world / "tokenizer").stdout.decode()
    assert "512" in shown and loaded.digest in shown
    done = server.make("tokenizer", "check", world / "tokenizer", world / "documents.zst").stdout.decode()
    size = sum(len(record["text"].encode()) for record in read(world / "documents.zst"))
    assert f"{size:,} bytes" in done and "every round trip exact" in done and "loads the same tokenizer" in done
    rows = {line.split()[0]: line.split()[1:] for line in done.splitlines()}
    assert rows["all"][0] == f"{size:,}" and float(rows["python"][2]) > 1.5
    lineage = server.make("lineage", world / "tokenizer").stdout.decode()
    assert lineage.startswith("tokenizer") and "vocab_size=512" in lineage and "dedup" in lineage


def test_pack(world, read):
    loaded = tokenizer.load(world / "tokenizer")
    texts = {record["id"]: record["text"] for record in read(world / "few.zst")}
    seen = set()
    for record in read(world / "sequences.zst"):
        row = decode_sequence(record)
        assert row.tokens.size <= 384 and row.lengths.sum() == row.tokens.size and row.loss.any()
        seen |= set(record["ids"])
    assert seen <= set(texts) and len(seen) > len(texts) / 2
    chat = read(world / "chats.zst")[0]
    answer = chat["messages"][-1]["content"]
    rows = [decode_sequence(record) for record in read(world / "chat-sequences.zst")]
    learnt = [loaded.decode(row.tokens[row.loss > 0].tolist()) for row in rows]
    assert any(answer in text for text in learnt)
    question = chat["messages"][-2]["content"]
    assert not any(question in text for text in learnt)


def test_model_logprobs(world, read, server, shared, tmp_path):
    golden = shared / "golden/loop-tiny"
    if not golden.is_dir():
        pytest.skip(f"{golden} is absent")
    expected = json.loads((golden / "expected.json").read_text())
    record = {"id": "a", "ids": expected.pop("prompt_ids"), "more": [1.5]}
    (tmp_path / "in").write_text(json.dumps(record) + "\n")
    server.make("model", "logprobs", golden, tmp_path / "in", "-o", tmp_path / "out")
    (found,) = read(tmp_path / "out")
    assert found == record | {name: found[name] for name in expected}
    assert found["argmax_after_each"] == expected["argmax_after_each"]
    assert found["next_token_logprobs"] == pytest.approx(expected["next_token_logprobs"], abs=1e-4)


def test_model_logprobs_names_the_model_in_its_lineage(world, read, server, tmp_path):
    server.make("model", "logprobs", world / "run", world / "ids.zst", "-o", tmp_path / "out")
    found = read(tmp_path / "out")
    assert [len(r["ids"]) for r in found] == [len(r["next_token_logprobs"]) + 1 for r in found]
    assert all(value < 0 for r in found for value in r["next_token_logprobs"])
    lineage = server.make("lineage", tmp_path / "out").stdout.decode()
    assert "model-logprobs" in lineage and "train" in lineage and "tokenizer" in lineage


def test_model_list_and_show(world, server):
    listed = server.make("model", "list").stdout.decode()
    assert "39,794,696,320" in listed and "nano-experts" in listed
    shown = server.make("model", "show", "40b-loop", "--context", 8192, "--gpus", 64).stdout.decode()
    for published in ("39,794,696,320", "327,680", "20,971,520"):
        assert published in shown
    of_run = server.make("model", "show", world / "run").stdout.decode()
    assert "6 x 2 x" in of_run and "rows of 384" in of_run


def test_tasks(world, read, server, tmp_path):
    tasks = read(world / "tasks.zst")
    assert len({task["id"] for task in tasks}) == 60
    server.make("tasks", "-n", 10, "--skip", 20, "-o", tmp_path / "part")
    assert read(tmp_path / "part") == tasks[20:30]
    assert server.make("tasks", "-n", 60).stdout == (world / "tasks.zst").read_bytes()
    held_out = {task["messages"][-1]["content"] for task in read(world / "held-out.zst")}
    assert held_out.isdisjoint(task["messages"][-1]["content"] for task in tasks)


def test_train_and_its_lineage(world, server, tmp_path):
    lines = [json.loads(line) for line in (world / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and lines[-1]["loss"] < lines[0]["loss"]
    done = server.make(
        "train", world / "chat-sequences.zst", "--stage", "anneal", "--from", world / "run", "--steps", 2,
        "--batch-rows", 2, "-o", tmp_path / "anneal", "--summary", tmp_path / "summary",
    )  # fmt: skip
    assert "anneal: update 2/2" in done.stderr
    assert json.loads((tmp_path / "summary").read_text())["updates"] == 2
    shown = server.make("lineage", tmp_path / "anneal/step-00000002", "--json").stdout
    commands = sorted(node["command"] for node in json.loads(shown)["stages"].values())
    assert commands == ["crawl-clean", "dedup", "fim", "head", "pack", "pack", "tasks", "train", "train"]
    asked = [node["options"] for node in json.loads(shown)["stages"].values() if node["command"] == "train"]
    assert {options.get("model") for options in asked} == {"tiny", None}
    assert all(options["optimizer"] == "adamw" for options in asked)


def test_a_dense_run_is_folded_and_stretched_on_its_way(world, server, tmp_path):
    asked = ["--stage", "anneal", "--from", world / "dense", "--steps", 2, "--batch-rows", 2, "-q"]
    server.make("train", world / "sequences.zst", *asked, "--loop", "--yarn", 2, "-o", tmp_path / "run")
    shown = server.make("model", "show", tmp_path / "run").stdout.decode()
    assert "gates" in shown and "rows of 768" in shown
    lineage = server.make("lineage", tmp_path / "run").stdout.decode()
    assert "loop" in lineage and "yarn" in lineage
    server.make("model", "logprobs", tmp_path / "run", world / "ids.zst", "-o", tmp_path / "scored")


def test_generate(world, server, read, tmp_path):
    command = ["generate", world / "prompts.zst", "--model", world / "run", "--max-new-tokens", 6, "--temperature", 1]
    server.make(*command, "-n", 3, "-o", tmp_path / "three")
    made = read(tmp_path / "three")
    prompts = [record["id"] for record in read(world / "prompts.zst")]
    assert [record["id"] for record in made] == [f"{prompt}#{n}" for prompt in prompts for n in range(3)]
    assert {record["finish_reason"] for record in made} <= {"stop", "length"}
    assert all(record["usage"]["completion_tokens"] <= 6 for record in made)
    server.make(*command, "-n", 3, "--batch", 4, "-o", tmp_path / "small")
    assert (tmp_path / "small").read_bytes() == (tmp_path / "three").read_bytes()
    server.make(*command, "-n", 3, "--seed", 1, "-o", tmp_path / "other")
    assert [r["text"] for r in read(tmp_path / "other")] != [r["text"] for r in made]
    lineage = json.loads(server.make("lineage", tmp_path / "three", "--json").stdout)
    assert {"train", "eval-prompts", "tasks"} <= {node["command"] for node in lineage["stages"].values()}


def test_bad_prompts_are_skipped_or_kept_apart(world, server, read, tmp_path):
    lines = ['{"id":"a","prompt":"x = "}', '{"id":"b"}', '{"id":"c","prompt":"%s"}' % ("word " * 900), "broken",
             '{"id":"d","prefix":"%s","suffix":"y"}' % ("word " * 900)]  # fmt: skip
    (tmp_path / "prompts").write_text("\n".join(lines) + "\n")
    command = ["generate", tmp_path / "prompts", "--model", world / "run", "--max-new-tokens", 3]
    done = server.make(*command, "--on-error", f"quarantine={tmp_path / 'bad'}", "-o", tmp_path / "out")
    assert [record["task_id"] for record in read(tmp_path / "out")] == ["a", "d"] and "skipped 3" in done.stderr
    assert [(record["line"], record["raw"]) for record in read(tmp_path / "bad")] == [
        (number + 1, lines[number]) for number in (1, 2, 3)
    ]
    assert "skipped 3" in server.make(*command, "--on-error", "skip", "-o", tmp_path / "out").stderr


def test_eval(world, server, read, tmp_path, isolation):
    """References pass, others fail, missing ones count; a run is prompts, generate and score in one."""
    tasks = read(world / "held-out.zst")
    chats = tmp_path / "chats"
    server.make("tasks", "-n", 6, "--split", "test", "--as", "chat", "-o", chats)
    answers = [record["messages"][-1]["content"] for record in read(chats)]
    records = [
        {"id": task["id"], "task_id": task["id"], "text": text if number < 4 else "def f(x): return x"}
        for number, (task, text) in enumerate(zip(tasks, answers))
    ]
    (tmp_path / "done").write_text("".join(json.dumps(record) + "\n" for record in records[:5]))
    score = ["eval", "score", "tasks", "--data", world / "held-out.zst"]
    server.make(*score, tmp_path / "done", "--summary", tmp_path / "figures")
    figures = json.loads((tmp_path / "figures").read_text())
    assert figures["pass@1"]["mean"] == pytest.approx(4 / 6) and figures["missing"] == 1
    sampled = ["--model", world / "run", "--max-new-tokens", 5, "--temperature", 1, "-n", 2]
    run = ["eval", "run", "tasks", "--data", world / "held-out.zst", *sampled]
    server.make(*run, "-o", tmp_path / "scored", "--summary", tmp_path / "one")
    server.make("generate", world / "prompts.zst", *sampled, "-o", tmp_path / "completions")
    server.make(*score, tmp_path / "completions", "--summary", tmp_path / "two")
    assert json.loads((tmp_path / "one").read_text()) == json.loads((tmp_path / "two").read_text())
    made = read(tmp_path / "scored")
    assert [record["text"] for record in made] == [record["text"] for record in read(tmp_path / "completions")]
    assert all("score" in record for record in made)
    lineage = json.loads(server.make("lineage", tmp_path / "scored", "--json").stdout)
    inputs = lineage["stages"][lineage["stage"]]["inputs"]
    assert [lineage["stages"][item["stage"]]["command"] for item in inputs] == ["tasks", "train"]


def test_rl(world, server, tmp_path, isolation):
    command = ["rl", world / "tasks.zst", "--from", world / "run", "--tasks", 2, "--group", 2, "--max-new-tokens", 6]
    done = server.make(*command, "--updates", 2, "-o", tmp_path / "rl")
    lines = [json.loads(line) for line in (tmp_path / "rl/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1] and all(0 <= line["reward"] <= 1 for line in lines)
    assert "update 2/2" in done.stderr
    lineage = json.loads(server.make("lineage", tmp_path / "rl/step-00000002", "--json").stdout)
    assert {"tasks", "train", "rl", "pack"} <= {node["command"] for node in lineage["stages"].values()}
    done = server.run(*command, "--updates", 3, "-o", tmp_path / "rl")
    assert done.returncode == 1 and "updates: 2, now 3" in done.stderr


@pytest.mark.parametrize("run", ["run", "dense"])
def test_export(world, server, tmp_path, read, run):
    """What is exported generates what the checkpoint does."""
    server.make("export", world / run, "-o", tmp_path / "model")
    assert ((tmp_path / "model/configuration_iquestloopcoder.py").exists()) is (run == "run")
    texts = []
    for model in (world / run, tmp_path / "model"):
        server.make("generate", world / "prompts.zst", "--model", model, "--max-new-tokens", 8, "-o", tmp_path / "out")
        texts.append([record["text"] for record in read(tmp_path / "out")])
    assert texts[0] == texts[1] and len(texts[0]) == 6
    origins = [server.make("lineage", place).stdout for place in (world / run, tmp_path / "model")]
    assert origins[0] == origins[1]
