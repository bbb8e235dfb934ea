"""Dense to loop: the same weights and names, and what a loop computes when its gates are forced."""

import math

import pytest
import torch

from iqc.errors import IqcError
from iqc.model.config import preset
from iqc.model.decoder import Decoder
from iqc.model.fold import fold

TOKENS = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(0))


def test_a_folded_40b_has_the_released_names_and_sizes():
    folded = fold(Decoder(preset("40b"), device="meta"))
    released = Decoder(preset("40b-loop"), device="meta")
    assert folded.config == released.config
    assert {n: p.shape for n, p in folded.named_parameters()} == {n: p.shape for n, p in released.named_parameters()}
    assert sum(p.numel() for p in folded.parameters()) == 39_794_696_320


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_the_same_and_gates_are_open(tiny, dtype):
    dense = tiny(1, dtype=dtype)
    looped = fold(dense, loop_num=3, loop_window_size=5)
    assert (looped.config.loop_num, looped.config.loop_window_size) == (3, 5) and dense.config.loop_num == 1
    for name, p in looped.named_parameters():
        assert p.requires_grad and p.dtype == dtype and not p.is_meta
        if "gate_projections" not in name:
            assert torch.equal(p, dense.get_parameter(name)), name
    for gate in looped.model.gate_projections:
        assert gate.weight.count_nonzero() == 0 and gate.bias.tolist() == [2.0] * 6
    assert 1 / (1 + math.exp(-2.0)) == pytest.approx(0.8808, abs=1e-4)  # the released gates' mean is 0.8746 to 0.8843


def test_one_pass_is_the_dense_model(tiny):
    """What a loop writes into its second pass comes after a first pass that is the dense model's."""
    dense = tiny(1)
    looped = fold(dense)
    looped.config.loop_num = 1
    torch.testing.assert_close(looped(TOKENS), dense(TOKENS), rtol=0, atol=0)
    looped.config.loop_num = 2
    assert not torch.allclose(looped(TOKENS), dense(TOKENS), atol=1e-2)


def test_closed_gates_and_a_wide_window_are_the_layers_twice(tiny):
    dense, window = tiny(1), TOKENS.shape[1]
    twice = tiny(1, num_hidden_layers=4)
    state = dense.state_dict()
    again = {name.replace(f".layers.{i}.", f".layers.{i + 2}."): t for i in (0, 1) for name, t in state.items()}
    twice.load_state_dict(state | again)
    looped = fold(dense, loop_window_size=window)
    with torch.no_grad():
        for gate in looped.model.gate_projections:
            gate.bias.fill_(-1e9)
        torch.testing.assert_close(looped(TOKENS), twice(TOKENS), rtol=0, atol=1e-10)
        narrow = fold(dense, loop_window_size=3)
        for gate in narrow.model.gate_projections:
            gate.bias.fill_(-1e9)
        assert not torch.allclose(narrow(TOKENS)[:, 3:], twice(TOKENS)[:, 3:], atol=1e-3)


def test_open_gates_do_not_see_the_window(tiny):
    dense = tiny(1)
    found = []
    for window in (1, 4, 100):
        looped = fold(dense, loop_window_size=window)
        with torch.no_grad():
            for gate in looped.model.gate_projections:
                gate.bias.fill_(1e9)
            found.append(looped(TOKENS))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-12)


def test_silent_blocks_fold_into_the_same_model(tiny):
    dense = tiny(1)
    with torch.no_grad():
        for name, p in dense.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.zero_()
    torch.testing.assert_close(fold(dense)(TOKENS), dense(TOKENS), rtol=0, atol=0)


def test_gates_learn(tiny):
    looped = fold(tiny(1)).train()
    loss, count = looped.loss(TOKENS)
    (loss / count).backward()
    assert all(p.grad.abs().sum() > 0 for p in looped.parameters())


def test_what_cannot_be_folded(tiny):
    with pytest.raises(IqcError, match="looped already"):
        fold(tiny(2))
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    with pytest.raises(IqcError, match="loop_num is 2 in a model of 4 experts"):
        fold(tiny(1, **experts))
