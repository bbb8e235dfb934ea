"""Rows that ranks share (context parallelism), and long rows' feed-forward in tiles: losses and gradients of the whole
model against one rank's, float64."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from iqc.model.config import extend_context
from iqc.model.decoder import Recompute

torch.set_num_threads(1)


def gradients(model, rows, ring=None):
    """(loss, weight, gradients by name) of this rank."""
    model = copy.deepcopy(model)
    model.ring = ring

    def together(own):
        others = [rank for rank in range(ring.size) if rank != ring.rank]
        came = [torch.empty_like(own) for _ in others]
        ring.transfer([(own, rank) for rank in others], list(zip(came, others)))()
        return own + sum(came)

    model.together = together if ring is not None else None
    loss, weight = model.loss(*rows)
    loss.backward()
    return loss.detach(), weight, {name: p.grad for name, p in model.named_parameters()}


def compare(on_ring, ranks, model, rows):
    loss, weight, true = gradients(model, rows)
    losses, weights, parts = zip(*on_ring(ranks, lambda ring: gradients(model, rows, ring)))
    torch.testing.assert_close(sum(losses), loss, rtol=1e-13, atol=1e-13)
    assert sum(weights) == pytest.approx(weight.item(), rel=1e-6)  # float32
    for name, want in true.items():
        torch.testing.assert_close(sum(part[name] for part in parts), want, rtol=1e-11, atol=1e-12, msg=name)


def packed_rows(lengths, spare, seed):
    width = max(1, max(map(sum, lengths)) + spare)
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (len(lengths), width), generator=g)
    weights = (torch.rand(len(lengths), width, generator=g) * 2).round()  # 0, 1 and 2
    return tokens, lengths, weights


packed = st.lists(st.lists(st.integers(1, 14), max_size=4), min_size=1, max_size=2)
shapes = st.sampled_from([(1, 3), (2, 3), (2, 20), (3, 4)])  # (passes, window)


@settings(max_examples=15)
@given(packed, st.integers(0, 3), st.integers(2, 4), shapes, st.integers(0, 9))
def test_losses_and_gradients_add_up_to_one_ranks(tiny, on_ring, lengths, spare, ranks, shape, seed):
    """Packed documents, padding, weights of 0, rows shorter than the ranks are many; dense and looped."""
    compare(on_ring, ranks, tiny(*shape).train(), packed_rows(lengths, spare, seed))


@pytest.mark.parametrize("recompute", ["none", "block", "mlp:3,tile:7", "block:3,tile:6"])
@pytest.mark.parametrize("loops", [1, 2])
def test_whole_rows_under_every_recompute(tiny, on_ring, loops, recompute):
    """A block's recompute sends its keys round again; gradients of pass 1's keys come a pass later."""
    model = tiny(loops, 3).train()
    model.model.recompute = Recompute.parse(recompute)
    compare(on_ring, 2, model, (torch.randint(50, (2, 37), generator=torch.Generator().manual_seed(0)),))


def test_tokens_at_the_edge_of_a_chunk_predict_the_next_ranks_first(tiny, on_ring):
    """One weighted token after another: each is in the loss of exactly one rank, that of the token before it."""
    model = tiny(2, 3).eval()
    tokens = torch.randint(50, (1, 16), generator=torch.Generator().manual_seed(1))
    logprobs = model.token_logprobs(tokens)[0].detach()
    for place in range(16):
        weights = torch.zeros(1, 16)
        weights[0, place] = 1.0
        losses = on_ring(2, lambda ring: gradients(model, (tokens, None, weights), ring)[0])  # noqa: B023
        holder = 0 if place - 1 in (0, 1, 2, 3, 12, 13, 14) else 1
        want = [0.0, 0.0]
        if place:
            want[holder] = -logprobs[place].item()
        assert [loss.item() for loss in losses] == pytest.approx(want, abs=1e-12)


def test_a_context_stretched_by_yarn(tiny, on_ring):
    """Rotary positions are of the row, not of the shard, in the stretched part too."""
    model = tiny(2, 3, max_position_embeddings=16).train()
    extend_context(model.config, 4.0)
    compare(on_ring, 3, model, (torch.randint(50, (1, 60), generator=torch.Generator().manual_seed(2)),))


def test_documents_stay_apart_whoever_holds_them(tiny, on_ring):
    """A document's loss does not change with its neighbours in the row."""
    model = tiny(2, 3).eval()
    g = torch.Generator().manual_seed(3)
    own, others = torch.randint(50, (1, 12), generator=g), [torch.randint(50, (1, 20), generator=g) for _ in range(2)]
    weights = torch.zeros(1, 32)
    weights[:, 9:21] = 1.0
    found = []
    for other in others:
        tokens = torch.cat([other[:, :9], own, other[:, 9:]], dim=1)
        rows = tokens, [[9, 12, 11]], weights
        found.append(sum(on_ring(4, lambda ring: gradients(model, rows, ring)[0])).item())  # noqa: B023
    assert found[0] == pytest.approx(found[1], abs=1e-12)


@pytest.mark.parametrize("recompute", ["none", "block,tile:8"])
def test_experts_are_balanced_over_whole_rows(tiny, on_ring, recompute):
    model = tiny(1, 3, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8).train()
    model.config.router_aux_loss_coef = 0.5
    model.model.recompute = Recompute.parse(recompute)
    compare(on_ring, 3, model, packed_rows([[9, 13, 2], [20]], 3, 0))
    with pytest.raises(ValueError, match="give the model `together`"):
        model.ring = on_ring(1, lambda ring: ring)[0]
        model.loss(torch.zeros(1, 8, dtype=torch.int64))


@pytest.mark.parametrize("tile", [1, 5, 8, 1000])
@pytest.mark.parametrize("loops", [1, 2])
def test_tiles_change_no_gradient(tiny, loops, tile):
    model, rows = tiny(loops, 3).train(), packed_rows([[9, 3], [13]], 0, 0)
    true = gradients(model, rows)
    model.model.recompute = Recompute(tile=tile)
    torch.testing.assert_close(gradients(model, rows), true, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("recompute", ["tile:8", "block,tile:8"])
def test_of_the_mlp_a_tile_exists_at_a_time(tiny, recompute):
    """Of what the MLP makes, forward and backward, counted by the storages that are alive."""
    model = tiny(2, 3).train()
    model.model.recompute = Recompute.parse(recompute)
    made: list[tuple[int, StorageWeakRef]] = []
    alive: list[int] = []

    def note(module, args, out):
        made.append((out.shape[0] * out.shape[1], StorageWeakRef(out.untyped_storage())))
        alive.append(sum(tokens for tokens, storage in made if not storage.expired()))

    for block in model.model.layers:
        block.mlp.gate_proj.register_forward_hook(note)
    loss, _ = model.loss(torch.randint(50, (1, 64), generator=torch.Generator().manual_seed(0)))
    loss.backward()
    times = {"tile:8": 2, "block,tile:8": 3}[recompute]
    assert max(alive) == 8 and 4 * 8 * (times - 1) < len(alive) <= 4 * 8 * times


def test_real_processes_send_what_arrives(environment, tmp_path):
    """Rings of two and of four gloo ranks; every message of theirs is told to an observer at both ends."""
    worker, place, output = Path(__file__).with_name("context_worker.py"), tmp_path / "store", tmp_path / "found.json"
    alone = environment | {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, worker, str(rank), place, output] for rank in range(4)]
    ranks = [subprocess.Popen(command, env=alone, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * 4, errors
    found = json.loads(output.read_text())
    assert set(found) == {"dense 2", "dense 4", "loop 2", "loop 4"}
    for result in found.values():
        assert result["worst"] < 1e-12 and result["agree"] and result["messages"]
