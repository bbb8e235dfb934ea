"""Compiled pieces against the plain ones. The backend traces, differentiates and partitions as the one for a GPU does,
and runs the graphs as they are: generating code would take minutes here."""

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from iqc.model.compiled import compile_blocks
from iqc.model.decoder import Block, Pieces, Recompute

BACKEND = "aot_eager_decomp_partition"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def gradients(model, tokens, lengths=None):
    model.zero_grad(set_to_none=True)
    loss, count = model.loss(tokens, lengths)
    (loss / count).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("recompute", ["none", "mlp:3", "block:1,mlp:1"])
@pytest.mark.parametrize("loops", [1, 2, 3])
def test_compiled_blocks_give_the_same_gradients(tiny, loops, recompute):
    tokens = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(0))
    model = tiny(loops).train()
    expected = gradients(model, tokens, [[6, 7], [10]])
    model.model.recompute = Recompute.parse(recompute)
    compile_blocks(model, backend=BACKEND)
    found = gradients(model, tokens, [[6, 7], [10]])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)
    # Once for all layers and passes: before, and after with and without its MLP kept.
    ways = {model.model.recompute.of(number) == "mlp" for number in range(loops * 2)}
    assert counters["stats"]["unique_graphs"] == 1 + len(ways)
    assert not counters["graph_break"]


def test_other_shapes_compile_once_more_and_generation_never(tiny):
    model = tiny().train()
    compile_blocks(model, backend=BACKEND)
    for length in (9, 11, 12, 17, 23, 31, 64):
        tokens = torch.zeros(2, length, dtype=torch.int64)
        gradients(model, tokens)
        with torch.no_grad():
            model.token_logprobs(tokens)
    assert counters["stats"]["unique_graphs"] <= 6  # of 14: each piece for the first shape, and for any length


def test_where_memory_is_short_pieces_keep_the_fewest_bytes(tiny):
    """Of the MLP two up-projections, not their product; nothing wider than the weights."""
    kept = {how: bytes_kept(tiny, how) for how in ("none", "block:1")}
    assert kept["block:1"] <= 2 * 64 * (2 * 96 + 3 * 24) + 1000
    assert kept["none"] > kept["block:1"] + 2 * 64 * 96


def bytes_kept(tiny, recompute) -> int:
    """By the second piece for backward, weights aside."""
    torch._dynamo.reset()
    model = tiny(1, dtype=torch.bfloat16, intermediate_size=96).train()
    model.model.recompute = Recompute.parse(recompute)
    compile_blocks(model, backend=BACKEND)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    h, mixed = (torch.randn(shape).bfloat16().requires_grad_() for shape in ((1, 64, 24), (1, 64, 6, 4)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model.model.pieces.after(model.model.layers[0], h, mixed)
    assert out.requires_grad
    return sum(kept.values())


def test_environment_turns_it_off(tiny, monkeypatch):
    monkeypatch.setenv("IQC_COMPILE", "0")
    model = tiny()
    compile_blocks(model)
    assert model.model.pieces == Pieces(Block.before, Block.after)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recompute", ["none", "mlp:3", "block:1,mlp"])
@pytest.mark.parametrize("loops", [1, 2])
def test_on_a_gpu_compiled_blocks_agree_with_plain_ones(tiny, loops, recompute):
    """With a GPU's own code and kernels, in bfloat16, packed rows: about as far from float64 as the plain blocks."""
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 160}
    tokens = torch.randint(50, (2, 200), generator=torch.Generator().manual_seed(0))
    lengths = [[60, 140], [150]]
    exact = gradients(tiny(loops, 16, **sizes).train(), tokens, lengths)
    model = tiny(loops, 16, torch.bfloat16, **sizes).train().cuda()
    plain = gradients(model, tokens.cuda(), lengths)
    model.model.recompute = Recompute.parse(recompute)
    compile_blocks(model)
    found = gradients(model, tokens.cuda(), lengths)
    for name, expected in exact.items():
        far = (plain[name].cpu() - expected).norm()
        assert (found[name].cpu() - expected).norm() <= 2 * far + 2e-2 * expected.norm(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("loops", [1, 2])
def test_on_a_gpu_kernels_under_autocast_are_as_near_float64_as_plain_pytorch(tiny, loops, monkeypatch):
    """What `iqc train` does there by default: float32 weights, products in bfloat16."""
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 160}
    tokens = torch.randint(50, (2, 200), generator=torch.Generator().manual_seed(0))
    lengths = [[60, 140], [150]]
    exact_model, model = tiny(loops, 16, **sizes).train(), tiny(loops, 16, torch.float32, **sizes).train()
    with torch.no_grad():  # of the size that this width asks for: larger ones make 0.4 of bfloat16's rounding
        for p in (*exact_model.parameters(), *model.parameters()):
            p.mul_(1 / 3 if p.shape[-1] >= 96 else 1)
    exact = gradients(exact_model, tokens, lengths)
    model.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        found = gradients(model, tokens.cuda(), lengths)
        monkeypatch.setenv("IQC_ATTENTION", "reference")
        with pytest.warns(UserWarning, match="IQC_ATTENTION=reference"):
            plain = gradients(model, tokens.cuda(), lengths)
    for name, expected in exact.items():
        far = (plain[name].cpu() - expected).norm()
        assert (found[name].cpu() - expected).norm() <= 2 * far + 2e-2 * expected.norm(), name
