"""What a run refuses, what an update computes, and that the chain of stages leads back to the data."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from iqc.errors import IqcError, UsageError
from iqc.model.checkpoint import load_model
from iqc.model.config import PRESETS, ModelConfig
from iqc.model.decoder import Decoder
from iqc.streams.container import read_index
from iqc.streams.lineage import Input, checked_lineage
from iqc.streams.reader import Source
from iqc.streams.runner import Settings, identity_factory, run_stage
from iqc.tokens.dataset import Dataset
from iqc.tokens.loader import Batch, Limits
from iqc.tokens.order import row_indices
from iqc.train.engines.engine import CLIP, Engine
from iqc.train.engines.local import Local
from iqc.train.losses import NextToken
from iqc.train.optimizer import make_optimizer
from iqc.train.ranks import Ranks
from iqc.train.run import find_checkpoint, read_metrics
from iqc.train.start import check_rows, check_tokenizer
from iqc.train.step import evaluate, update


def batch(rows=6, width=20, vocabulary=50):
    draw = np.random.Generator(np.random.PCG64(3))
    lengths = [np.array([5 + row, width - 5 - row - row % 3], np.int64) for row in range(rows)]
    weights = (draw.random((rows, width)) < 0.7).astype(np.float32)
    for row, (first, second) in enumerate(lengths):
        weights[row, [0, first]] = 0.0
        weights[row, first + second :] = 0.0
    return Batch(draw.integers(0, vocabulary, (rows, width)), weights, lengths)


def fresh():
    return Decoder(ModelConfig(50, 24, 40, 2, 6, 2, 32, loop_num=2, loop_window_size=8), seed=1).double()


def engine_of(model, rate=1e-3) -> Engine:
    return Local(model, make_optimizer(model, rate, "adamw"), Ranks(), CLIP, None)


def updated(model, data, rate=1e-3, **how):
    """The metrics of one update, and the gradients before they were clipped."""
    engine = engine_of(model, rate)
    gradients = []
    made = update(
        engine,
        NextToken(),
        data,
        rate,
        before=lambda: gradients.extend(g.clone() for _, g in engine.gradients()),
        **how,
    )
    return made, gradients


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_micro_batches_give_the_same_update(rows):
    whole, parts = fresh(), fresh()
    data = batch()
    (first, expected), (second, found) = updated(whole, data, 1e-2), updated(parts, data, 1e-2, micro_rows=rows)
    assert first == pytest.approx(second, rel=1e-12)
    # Adam divides by the root of the squared gradient, which is near 0 for some: compare what it divides too
    torch.testing.assert_close(list(whole.parameters()), list(parts.parameters()), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_loss_is_the_sum_over_the_count_of_the_whole_update():
    model, data = fresh(), batch()
    with torch.no_grad():
        lengths = [[int(n) for n in row] for row in data.lengths]
        logprobs = model.token_logprobs(torch.from_numpy(data.tokens), lengths).numpy()
    expected = -(logprobs * data.weights).sum() / data.weights.sum()
    found = updated(model, data, micro_rows=2)[0]
    assert found["loss"] == pytest.approx(expected, rel=1e-6) and found["tokens"] == data.weights.sum()


def test_gradients_are_clipped_and_the_norm_before_it_is_told():
    model = fresh()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    engine, clipped = engine_of(model), []
    engine.optimizer.register_step_pre_hook(lambda *_: clipped.extend(g.clone() for _, g in engine.gradients()))
    norm = update(engine, NextToken(), batch(), 1e-3)["grad_norm"]
    assert norm > CLIP and torch.nn.utils.get_total_norm(clipped).item() == pytest.approx(CLIP, rel=1e-4)
    assert not list(engine.gradients())


def test_an_update_that_cannot_be_is_said():
    model, empty = fresh(), batch()
    empty.weights[:] = 0
    with pytest.raises(IqcError, match="without a token to learn"):
        updated(model, empty)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(IqcError, match="loss nan"):
        updated(model, batch())


def test_weight_decay_is_on_matrices_alone():
    model = fresh()
    groups = make_optimizer(model, 1e-3, "adamw").param_groups
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    rest = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(p.ndim == 2 for p in decayed) and len(decayed) + len(rest) == len(names)
    kept = {names[id(p)] for p in rest}
    assert {n for n in names.values() if "norm" in n or "gate_projections" in n or "embed" in n} <= kept
    assert "lm_head.weight" not in kept and not any("mlp" in name for name in kept)


def test_training_lowers_the_loss(room, tmp_path):
    metrics = read_metrics(room.train(tmp_path / "run", steps=30, rate=1e-2))
    assert [line["step"] for line in metrics] == list(range(30))
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.5


@pytest.mark.parametrize(("precision", "kept"), [("bf16", torch.float32), ("bf16-pure", torch.bfloat16)])
def test_precisions_continue_bit_for_bit(room, tmp_path, precision, kept):
    """Weights and moments are kept as they are, and recompute changes nothing."""
    whole = room.train(tmp_path / "whole", precision=precision)
    cut = room.train(tmp_path / "cut", precision=precision, save_every=2, recompute="block:1,mlp")
    shutil.rmtree(cut / "step-00000004")
    room.train(cut, precision=precision, save_every=2)
    assert read_metrics(cut) == read_metrics(whole)
    weights = [find_checkpoint(run) / "model.safetensors" for run in (whole, cut)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert {p.dtype for p in load_model(weights[0].parent).parameters()} == {kept}
    exact = read_metrics(room.train(tmp_path / "exact"))
    for line, expected in zip(read_metrics(whole), exact):
        assert line["loss"] != expected["loss"] and line["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    lineage = json.loads((weights[0].parent / "lineage.json").read_text())
    assert lineage["stages"][lineage["stage"]]["options"]["precision"] == precision
    with pytest.raises(IqcError, match="precision"):
        room.train(cut)


def test_the_storage_of_the_rows_does_not_matter(room, tmp_path):
    """One file, a directory of shards, plain lines: the same updates, bit for bit; and from any of them on from any."""
    data = room.place / "sequences.zst"
    rows = [line for chunk in Source(str(data)).chunks() for line in chunk.lines()]
    plain = tmp_path / "rows.jsonl"
    plain.write_bytes(b"".join(line + b"\n" for line in rows))
    shards = Settings([str(plain)], f"{tmp_path}/rows/", jobs=1, quiet=True, shard_mib=0)
    run_stage("gather", {}, shards, identity_factory, reduce=iter)
    assert len(list((tmp_path / "rows").glob("part-*"))) >= len(rows) > 4
    runs = [room.train(tmp_path / f"run{n}", data=d) for n, d in enumerate((data, tmp_path / "rows", plain))]
    weights = {(find_checkpoint(run) / "model.safetensors").read_bytes() for run in runs}
    assert len(weights) == 1 and read_metrics(runs[0]) == read_metrics(runs[1]) == read_metrics(runs[2])


def test_a_run_goes_on_by_reading_its_own_rows(room, tmp_path, monkeypatch):
    run = room.train(tmp_path / "run", save_every=2)
    whole = read_metrics(run)
    shutil.rmtree(run / "step-00000004")
    asked = []
    real = Dataset.rows

    def rows_that_are_noted(self, indices):
        asked.append((len(self), indices.tolist()))
        return real(self, indices)

    monkeypatch.setattr(Dataset, "rows", rows_that_are_noted)
    room.train(run, save_every=2)
    assert read_metrics(run) == whole
    assert [rows for _, rows in asked[:2]] == [row_indices(asked[0][0], 0, 4 * step, 4).tolist() for step in (2, 3)]
    assert len(asked) <= 5  # those two, and what was made ahead


def test_a_damaged_row_ends_the_run_at_its_update_by_name(room, tmp_path):
    data = tmp_path / "rows.zst"
    shutil.copy(room.place / "sequences.zst", data)
    frames = read_index(str(data)).frames
    number = int(row_indices(len(frames), 0, 5, 1)[0])  # in the second update
    with open(data, "r+b") as file:
        file.seek(frames[number].offset + frames[number].compressed - 1)
        last = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([last ^ 1]))
    with pytest.raises(IqcError, match=rf"rows\.zst:{number + 1}: a damaged frame"):
        room.train(tmp_path / "run", data=data)
    assert len(read_metrics(tmp_path / "run")) == 1


def test_lineage_tells_before_a_row_is_read():
    """Of what was packed and mixed; not of what was packed to train the model that wrote the text."""

    def rows(**counts):
        older = {"command": "pack", "options": {"tokenizer": "older"}, "counts": {"longest": 999}, "inputs": []}
        written = {"command": "generate", "options": {}, "counts": {}, "inputs": [{"stage": "older"}]}
        pack = {"command": "pack", "options": {"tokenizer": "ours"}, "inputs": [{"stage": "written"}]}
        other = pack | {"counts": {"longest": 8, "learnt": 5}}
        mix = {"command": "mix", "options": {}, "counts": {}, "inputs": [{"stage": "pack"}, {"stage": "other"}]}
        stages = {"older": older, "written": written, "pack": pack | {"counts": counts}, "other": other, "mix": mix}
        return [Input("sha256:", lineage={"stage": "mix", "stages": stages}), Input(None)]

    limits = Limits(64, 400, 0)
    check_rows(rows(longest=64, learnt=0), limits)
    check_tokenizer(rows(), "ours")
    for match, counts in (("rows of 65 tokens", {"longest": 65}), ("tries", {"tries": 1})):
        with pytest.raises(IqcError, match=match):
            check_rows(rows(**counts), limits)
    with pytest.raises(IqcError, match="packed with tokenizer ours"):
        check_tokenizer(rows(), "another")


def test_refusals(room, made, tmp_path):
    text = Path(json.__file__).read_text()
    longer = room.pack("longer", [text], context=128)
    other = room.pack("other", [text], tokens="other")
    unlearnt = tmp_path / "unlearnt.jsonl"
    pack = {"lengths": [4], "tokens": [5, 6, 7, 8], "loss": [0, 0, 0, 0]}
    record = {"id": "a", "ids": ["a"]} | {
        key: encode(value, "u1" if key == "loss" else "<u4") for key, value in pack.items()
    }
    unlearnt.write_text(json.dumps(record) + "\n")
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text(
        json.dumps(record | {"tokens": encode([5, 6, 400, 8], "<u4"), "loss": encode([0, 1, 1, 1], "u1")}) + "\n"
    )
    trie = tmp_path / "trie.jsonl"
    trie.write_text(json.dumps(json.loads(foreign.read_text()) | {"parents": encode([-1, 0, 1, 1], "<i4")}) + "\n")
    for error, match, asked in (
        (IqcError, "trie.jsonl:1: a trie", {"data": trie}),
        (UsageError, "no stage", {"stage": "x"}),
        (UsageError, "starts from a checkpoint", {"stage": "anneal"}),
        (UsageError, "no model", {"model": None}),
        (IqcError, "no preset", {"model": "huge"}),
        (IqcError, "a checkpoint of stage pretrain", {"stage": "mid-32k", "start": made}),
        (IqcError, "no checkpoint", {"stage": "anneal", "start": tmp_path / "none"}),
        (IqcError, "for a model of", {"model": "nano"}),
        (IqcError, "of 128 tokens for a context of 64", {"data": longer}),
        (IqcError, "of 64 tokens for a context of 32", {"context": 32}),
        (IqcError, "a context of 128", {"context": 128}),
        (IqcError, "row of 128 tokens", {"valid": longer}),
        (IqcError, "packed with tokenizer", {"data": other}),
        (IqcError, "without a token to learn", {"data": unlearnt}),
        (IqcError, "token 400 for a vocabulary of 400", {"data": foreign}),
        (UsageError, "--loop folds a trained model", {"loop": True}),
        (IqcError, "looped already", {"stage": "anneal", "start": made, "loop": True}),
        (UsageError, "--yarn stretches a trained model", {"yarn": 2.0}),
        (IqcError, "a YaRN factor of 0.5", {"stage": "anneal", "start": made, "yarn": 0.5}),
        (UsageError, "--epochs", {"epochs": -1.0, "steps": 0}),
        (UsageError, "recompute 'all'", {"recompute": "all"}),
    ):
        with pytest.raises(error, match=match) as caught:
            room.train(tmp_path / "run", **asked)
        assert caught.value.remedy
        assert not list(tmp_path.glob("run/step-*"))


def encode(values, dtype):
    import base64

    return base64.b64encode(np.array(values, dtype).tobytes()).decode()


def test_a_dense_model_is_folded(room, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny-dense", ModelConfig(400, 32, 64, 2, 4, 2, 64))
    dense = room.train(tmp_path / "dense", model="tiny-dense")
    asked = {"stage": "anneal", "start": dense, "loop": True}
    folded = load_model(find_checkpoint(room.train(tmp_path / "start", **asked, steps=0, epochs=0.0)))
    before = load_model(find_checkpoint(dense))
    assert folded.config.loop_num == 2 and before.config.loop_num == 1
    assert all(torch.equal(p, folded.get_parameter(name)) for name, p in before.named_parameters())
    run = room.train(tmp_path / "run", **asked)
    told = []
    for made in (dense, run):
        lineage = json.loads((find_checkpoint(made) / "lineage.json").read_text())
        told.append(lineage["stages"][lineage["stage"]]["options"].get("loop"))
    assert told == [None, True]
    gates = [p for name, p in load_model(find_checkpoint(run)).named_parameters() if "gate_projections" in name]
    assert all(p.count_nonzero() for p in gates)  # weights have left 0


def test_a_context_is_stretched_by_yarn(room, made, tmp_path):
    longer = room.pack("stretched", [Path(json.__file__).read_text()], context=128)
    asked = {"stage": "anneal", "start": made, "steps": 2, "yarn": 2.0, "data": longer, "save_every": 1}
    run = room.train(tmp_path / "run", **asked)
    config = load_model(find_checkpoint(run)).config
    assert config.max_position_embeddings == 128 and config.rope_scaling["original_max_position_embeddings"] == 64
    lineage = json.loads((find_checkpoint(run) / "lineage.json").read_text())
    assert lineage["stages"][lineage["stage"]]["options"]["yarn"] == 2.0
    whole = (find_checkpoint(run) / "model.safetensors").read_bytes()
    shutil.rmtree(find_checkpoint(run))  # a killed run goes on with the stretched checkpoint, not stretched again
    room.train(run, **asked)
    assert (find_checkpoint(run) / "model.safetensors").read_bytes() == whole


def test_another_tokenizer_than_that_of_the_checkpoint_is_refused(room, made, tmp_path):
    from iqc.train.settings import TrainSettings
    from iqc.train.trainer import run_train

    settings = TrainSettings("anneal", None, str(made), steps=1)
    with pytest.raises(IqcError, match="not the tokenizer of --from"):
        run_train(
            settings,
            [str(room.pack("again", ["a b c"] * 9, tokens="other"))],
            str(tmp_path / "run"),
            str(room.place / "other"),
            [],
            None,
            True,
        )


def test_epochs_0_writes_the_starting_weights(room, tmp_path):
    run = room.train(tmp_path / "run", steps=0, epochs=0.0, seed=5)
    found = load_model(find_checkpoint(run))
    expected = Decoder(found.config, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters()))
    assert read_metrics(run) == []
    first = (find_checkpoint(run) / "model.safetensors").read_bytes()
    room.train(run, steps=0, epochs=0.0, seed=5)
    assert (find_checkpoint(run) / "model.safetensors").read_bytes() == first


def test_held_out_rows_are_scored_whole(room, tmp_path):
    from iqc.tokens.dataset import open_dataset
    from iqc.tokens.loader import Limits

    data = room.place / "sequences.zst"
    run = room.train(tmp_path / "run", valid=data)
    model = load_model(find_checkpoint(run))
    found = read_metrics(run)[-1]["valid_loss"]
    with open_dataset([str(data)])[0] as rows:
        for size in (1, 3, len(rows), len(rows) + 5):
            assert evaluate(engine_of(model), NextToken(), rows, Limits(64, 400, 0), size) == pytest.approx(
                found, rel=1e-5
            )
    assert model.training


def test_a_chain_of_stages_leads_back_to_the_data(room, made, tmp_path):
    previous, names = made, ["pretrain"]
    for stage in ("pretrain-code", "anneal", "mid-32k", "sft-instruct"):
        previous = room.train(tmp_path / stage, stage=stage, start=previous, steps=2)
        names.append(stage)
        metrics = read_metrics(previous)
        assert len(metrics) == 2 and all(math.isfinite(line["loss"]) for line in metrics)
    lineage = checked_lineage(json.loads((find_checkpoint(previous) / "lineage.json").read_text()))
    nodes = lineage["stages"]
    seen, node = [], nodes[lineage["stage"]]
    while True:
        seen.append(node["options"]["stage"])
        data = [nodes[item["stage"]]["command"] for item in node["inputs"] if item.get("label") != "checkpoint"]
        assert data == ["pack"]
        before = [item for item in node["inputs"] if item.get("label") == "checkpoint"]
        if not before:
            break
        node = nodes[before[0]["stage"]]
    assert seen == names[::-1]
    started = json.loads((find_checkpoint(made) / "lineage.json").read_text())
    assert started["output"]["digest"] in json.dumps(lineage)
