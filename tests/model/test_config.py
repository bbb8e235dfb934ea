import pytest
import torch

from iqc.errors import IqcError
from iqc.model.config import PRESETS, ModelConfig, parameter_count, preset
from iqc.model.decoder import Decoder

REPORT = {"7b": 7_612_810_240, "14b": 14_439_183_360, "40b": 39_794_283_520, "40b-loop": 39_794_696_320}


@pytest.mark.parametrize(("name", "count"), REPORT.items())
def test_the_report_sizes_have_the_published_parameter_counts(name, count):
    module = Decoder(preset(name), device="meta")
    assert sum(p.numel() for p in module.parameters()) == parameter_count(preset(name)) == count


@pytest.mark.parametrize("name", PRESETS)
def test_the_formula_counts_what_a_module_holds(name):
    module = Decoder(preset(name), device="meta")
    assert sum(p.numel() for p in module.parameters()) == parameter_count(preset(name))


def test_the_40b_loop_has_the_released_tensors():
    names = [name for name, _ in Decoder(preset("40b-loop"), device="meta").named_parameters()]
    assert len(names) == 883  # the header audit of the released shards
    assert "model.gate_projections.79.bias" in names
    assert "model.layers.0.self_attn.q_proj.weight" in names


@pytest.mark.parametrize("name", PRESETS)
def test_config_json_round_trip(name):
    assert ModelConfig.from_hf(preset(name).to_hf()) == preset(name)


def test_a_preset_is_a_copy():
    preset("nano").vocab_size = 1
    assert preset("nano").vocab_size == 4_096


def test_an_unknown_preset_lists_the_others():
    with pytest.raises(IqcError, match=r"(?s)no preset 'giant'.*nano.*40b-loop"):
        preset("giant")


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"model_type": "mamba"},
        {"head_dim": 48},
        {"num_key_value_heads": 3},
        {"hidden_size": None},
        {"loop_window_size": 0},
    ],
)
def test_what_the_decoder_would_not_compute_is_refused(change):
    with pytest.raises(IqcError):
        ModelConfig.from_hf(preset("nano-loop").to_hf() | change)


def test_transformers_5_spelling_of_rotary_base():
    record = preset("nano").to_hf()
    del record["rope_theta"]
    record["rope_parameters"] = {"rope_type": "default", "rope_theta": 250_000.0}
    assert ModelConfig.from_hf(record).rope_theta == 250_000.0


def test_released_defaults_of_the_loop():
    record = preset("nano-loop").to_hf()
    del record["loop_num"], record["loop_window_size"]
    config = ModelConfig.from_hf(record)
    assert (config.loop_num, config.loop_window_size) == (2, 64)


def test_initialisation_depends_on_the_seed_alone():
    config = preset("nano-loop")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b, c = Decoder(config, seed=3), Decoder(config, seed=3), Decoder(config, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert a.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert a.model.gate_projections[0].bias.tolist() == [2.0] * 4
    assert a.model.gate_projections[0].weight.abs().sum().item() == 0
    assert a.model.layers[0].self_attn.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # 2 x 4 x 2
