"""Sums against what is published, what a module holds, what PyTorch counts and what autograd keeps."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iqc.model.config import PRESETS, ModelConfig, parameter_count, preset
from iqc.model.decoder import Decoder, Recompute
from iqc.model.describe import STATES, activations, cache, flops, head, parameters, presets, ring, show, states

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "num_shared_experts": 2, "moe_intermediate_size": 16}
SHAPES = [{}, {"loop_num": 2, "loop_window_size": 8}, EXPERTS, EXPERTS | {"first_k_dense_replace": 1}]


def small(**fields) -> ModelConfig:
    return ModelConfig(50, 64, 96, 3, 4, 2, 64, **fields)


def total(addends):
    return sum(addend.value for addend in addends)


@pytest.mark.parametrize("name", PRESETS)
def test_formulas_give_their_values(name):
    config = preset(name)
    found = [*parameters(config), *flops(config, 4096), *cache(config, 4096)]
    for precision in STATES:
        for compiled in (False, True):
            for blocks, mlps, tile in ((0, 0, 0), (1, 2, 0), (0, 99, 0), (99, 0, 0), (2, 0, 512)):
                found += activations(config, precision, 4096, blocks, mlps, tile, compiled)
        found += head(config, precision, 4096, 1 << 29) + ring(config, precision, 4096)
        for zero in range(4):
            found += states(config, precision, 7, zero)
    for addend in found:
        assert re.fullmatch(r"[0-9 x^+()/]+", addend.formula), addend
        value = eval(addend.formula.replace("x", "*").replace("^", "**").replace(" / ", " // -"))
        assert addend.value == abs(value), addend


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_sum_to_those_of_the_module(name):
    config = preset(name)
    module = Decoder(config, device="meta")
    assert total(parameters(config)) == parameter_count(config) == sum(p.numel() for p in module.parameters())


def test_cache_of_the_released_loop_is_what_was_measured():
    """327,680 bytes a token and 21.0 MB once; 2.50 GiB at 8,192 tokens with both."""
    whole, windows = cache(preset("40b-loop"), 8192)
    assert whole.value == 8192 * 327_680 and windows.value == 20_971_520
    assert total([whole]) / 2**30 == 2.5


def test_memory_by_stage_is_that_of_the_zero_paper(monkeypatch):
    """7.5 B parameters, mixed, 64 GPUs: 120, 31.4, 16.6 and 1.9 GB (Rajbhandari et al. 2020, figure 1)."""
    monkeypatch.setattr("iqc.model.describe.parameter_count", lambda config: 7_500_000_000)
    found = [total(states(preset("7b"), "mixed", 64, zero)) / 1e9 for zero in range(4)]
    assert found == [pytest.approx(gb, abs=0.05) for gb in (120, 31.4, 16.6, 1.9)]


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_of_matrices_are_those_that_pytorch_counts(shape):
    config = small(**shape)
    model, tokens = Decoder(config).train(), torch.arange(40)[None]
    with FlopCounterMode(display=False) as counter:
        model.model(tokens, model.documents(tokens, None)).sum().backward()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    vectors = sum(a.value for a in parameters(config) if a.name in ("norms", "gates"))
    blocks = flops(config, 40)[0].value - 6 * config.loop_num * vectors
    assert counted == 40 * blocks


def test_operations_of_attention_are_half_of_the_square():
    config = small()
    model, tokens = Decoder(config), torch.arange(40)[None]
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.model(tokens, model.documents(tokens, None))
    squares = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op))
    assert 40 * flops(config, 40)[1].value == 3 * squares / 2 > 0


def kept_bytes(config: ModelConfig, recompute: bool, tokens: torch.Tensor) -> int:
    """What autograd holds between forward and backward of the blocks, without the weights."""
    model = Decoder(config).train()
    model.model.recompute = Recompute.parse("block" if recompute else "none")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), x)  # held, so that no other takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model.model(tokens, model.documents(tokens, None))
    assert out.requires_grad
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", [{}, {"loop_num": 2, "loop_window_size": 64}, EXPERTS])
def test_activations_are_what_autograd_keeps(shape, recompute):
    """Of three layers more, so that what does not grow with the layers is not in it; within a fifth."""
    tokens = torch.randint(50, (1, 64), generator=torch.Generator().manual_seed(0))
    shallow, deep = small(**shape), replace(small(**shape), num_hidden_layers=6)
    measured = kept_bytes(deep, recompute, tokens) - kept_bytes(shallow, recompute, tokens)
    # the first addend: keys and values of pass 1 are checkpoint's in a tuple, which autograd does not see
    more, less = (activations(config, "fp32", 64, 99 * recompute)[0].value for config in (deep, shallow))
    assert 0.8 < measured / (more - less) < 1.2


def test_keys_and_values_of_pass_1_stay_as_long_as_a_cache():
    found = {addend.name: addend.value for addend in activations(preset("40b-loop"), "bf16", 1, 160)}
    assert found["K and V of pass 1"] == cache(preset("40b-loop"), 1)[0].value == 327_680


def test_text():
    shown = show(preset("40b-loop"), 8, 4096, "bf16-pure")
    assert "39,794,696,320" in shown and "2 x 39794696320, / 8 from stage 3" in shown
    assert len(show(preset("nano"), 1, 512, "fp32").splitlines()) < len(shown.splitlines())
    assert len(presets().splitlines()) == len(PRESETS) + 1
