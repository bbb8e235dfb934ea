"""What the losses return: sums, with what they add for the metrics; z-loss through the whole model."""

import numpy as np
import pytest
import torch

from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.tokens.loader import Batch
from iqc.train.losses import NextToken
from iqc.train.step import micro_batches

SIZES = dict(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6)
SIZES |= dict(num_key_value_heads=2, max_position_embeddings=32)
LOOP = ModelConfig(**SIZES, loop_num=2, loop_window_size=8)
EXPERTS = ModelConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)


def batch() -> Batch:
    draw = np.random.Generator(np.random.PCG64(3))
    weights = (draw.random((4, 20)) < 0.7).astype(np.float32)
    weights[:, [0, 8]] = 0
    return Batch(draw.integers(0, 50, (4, 20)), weights, [np.array([8, 12], np.int64)] * 4)


@pytest.mark.parametrize("config", [LOOP, EXPERTS], ids=["loop", "experts"])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_what_is_minimised_is_the_sum_of_its_parts(config, z_loss):
    model, data = Decoder(config, seed=1).double(), batch()
    loss = NextToken(z_loss)
    total, sums = loss(model, data)
    assert ("z_loss" in sums, "balance" in sums) == (bool(z_loss), bool(config.num_experts))
    tokens, lengths = torch.from_numpy(data.tokens), [[8, 12]] * 4
    with torch.no_grad():
        logits = model.logits(model(tokens, lengths))[:, :-1]
    weights = torch.from_numpy(data.weights)[:, 1:]
    weights[:, 7] = 0
    nll = -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    squares = logits.logsumexp(-1) ** 2
    assert sums["loss"].item() == pytest.approx((nll * weights).sum().item(), rel=1e-6)
    if z_loss:
        assert sums["z_loss"].item() == pytest.approx(z_loss * (squares * weights).sum().item(), rel=1e-5)
    balance = config.router_aux_loss_coef * sums["balance"].item() if config.num_experts else 0.0
    parts = sums["loss"].item() + balance + (sums["z_loss"].item() if z_loss else 0.0)
    assert total.item() == pytest.approx(parts, rel=1e-7)
    assert loss.count(data) == float(data.weights.sum())
    evaluated, plain = loss(model.eval(), data)
    assert set(plain) == {"loss"} and evaluated.item() == pytest.approx(sums["loss"].item(), rel=1e-6)


def test_z_loss_does_not_depend_on_micro_batches_and_makes_the_denominator_smaller():
    model, data, loss = Decoder(LOOP, seed=1).double(), batch(), NextToken(0.5)
    loss(model, data)[0].backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    for part in micro_batches(data, 3):
        loss(model, part)[0].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=0, atol=1e-12, msg=name)
    first = loss(model, data)[1]["z_loss"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss(model, data)[0].backward()
        optimizer.step()
    assert loss(model, data)[1]["z_loss"] < 0.5 * first


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_a_batch_of_padding_alone_gives_zero_with_a_graph(z_loss):
    model, data = Decoder(LOOP, seed=1).double(), batch()
    data.weights[:] = 0
    data.lengths[:] = [np.zeros(0, np.int64)] * 4
    total, sums = NextToken(z_loss)(model, data)
    total.backward()
    assert total.item() == 0 and not any(value.item() for value in sums.values())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
