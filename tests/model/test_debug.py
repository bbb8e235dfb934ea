"""IQC_DEBUG=1: the layer and the pass that make a number which is not finite are named."""

import math

import pytest
import torch

from iqc.errors import IqcError
from iqc.model.generate import generate

TOKENS = torch.randint(1, 50, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _debug(monkeypatch):
    monkeypatch.setenv("IQC_DEBUG", "1")


def spoil(model, name, value=math.nan):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("model.layers.0.mlp.up_proj.weight", math.nan, "model.layers.0 in pass 1"),
        ("model.layers.1.self_attn.v_proj.weight", math.inf, "model.layers.1 in pass 1"),
        ("model.gate_projections.1.bias", math.nan, "model.layers.1 in pass 2"),  # no gate is used in pass 1
        ("model.norm.weight", math.inf, "lm_head"),
        ("lm_head.weight", math.inf, "lm_head"),
    ],
)
def test_the_layer_is_named(tiny, name, value, place):
    model = spoil(tiny(2), name, value)
    for forward in (
        lambda: model.logits(model(TOKENS)),
        lambda: model.loss(TOKENS),
        lambda: model.token_logprobs(TOKENS),
        lambda: generate(model, TOKENS.tolist(), max_new_tokens=2),
    ):
        with pytest.raises(IqcError, match=f"not finite after {place}") as caught:
            forward()
        assert caught.value.remedy


def test_an_embedding_is_named_where_it_is_used(tiny):
    model = spoil(tiny(1), "model.embed_tokens.weight")  # of token 0
    model(TOKENS)
    used = TOKENS.clone()
    used[0, 4] = 0
    with pytest.raises(IqcError, match=r"1 of 624 values are not finite after model\.embed_tokens"):
        model(used)


def test_padding_is_not_looked_at(tiny):
    model = spoil(tiny(2), "model.embed_tokens.weight")
    padded = TOKENS.clone()
    padded[0, 6:] = 0
    assert torch.isfinite(model.loss(padded, [[6], [13]])[0])


def test_training_with_recompute_names_it_too(tiny):
    from iqc.model.decoder import Recompute

    model = spoil(tiny(2), "model.layers.1.mlp.down_proj.weight").train()
    model.model.recompute = Recompute.parse("block")
    with pytest.raises(IqcError, match=r"layers\.1 in pass 1"):
        model.loss(TOKENS)


def test_without_the_variable_nothing_stops(tiny, monkeypatch):
    monkeypatch.delenv("IQC_DEBUG")
    assert torch.isnan(spoil(tiny(2), "model.layers.0.mlp.up_proj.weight").loss(TOKENS)[0])
