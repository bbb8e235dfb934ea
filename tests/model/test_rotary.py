"""YaRN against Transformers' own code, its config.json in both spellings, and a stretched model against Llama."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.model.checkpoint import load_model, save_model
from iqc.model.config import ModelConfig, extend_context, preset
from iqc.model.rotary import attention_factor, frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def config(scaling, theta=10_000.0, head=32, context=None):
    context = context or scaling["original_max_position_embeddings"]
    return ModelConfig(60, 2 * head, 48, 2, 2, 1, context, rope_theta=theta, rope_scaling=scaling)


@settings(max_examples=60)
@given(
    factor=st.floats(1, 64),
    original=st.sampled_from([64, 512, 4096, 32_768, 262_144]),
    theta=st.sampled_from([1e4, 5e5, 1e7]),
    head=st.sampled_from([8, 32, 128]),
    more=st.fixed_dictionaries(
        {},
        optional={
            "beta_fast": st.floats(8, 64),
            "beta_slow": st.floats(0.5, 4),
            "attention_factor": st.floats(0.5, 2),
            "mscale": st.floats(0.5, 2),
            "mscale_all_dim": st.floats(0.5, 2),
            "truncate": st.booleans(),
        },
    ),
)
def test_equals_transformers(factor, original, theta, head, more):
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours = config(YARN | {"factor": factor, "original_max_position_embeddings": original} | more, theta, head)
    theirs = LlamaConfig(**{k: v for k, v in ours.to_hf().items() if k not in ("architectures", "model_type")})
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    found, ours_scale = frequencies(ours, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert ours_scale == pytest.approx(scale, rel=1e-12)


def test_fast_pairs_stay_and_slow_pairs_are_divided():
    plain, _ = frequencies(config(None, head=128, context=512), torch.float64)
    stretched, scale = frequencies(config(YARN, head=128), torch.float64)
    share = stretched / plain
    assert share[0] == 1 and share[-1] == pytest.approx(0.25, rel=1e-12) and (share.diff() <= 0).all()
    assert scale == attention_factor(YARN) == pytest.approx(1.1386294361)


@pytest.mark.parametrize("spelling", ["both", "rope_scaling", "type", "rope_parameters"])
def test_config_json_of_either_transformers(spelling):
    ours = config(YARN | {"beta_fast": 16}, theta=5e5, context=2048)
    record = json.loads(json.dumps(ours.to_hf()))
    assert record["rope_scaling"]["type"] == record["rope_parameters"]["rope_type"] == "yarn"
    assert record["rope_parameters"]["rope_theta"] == record["rope_theta"] == 5e5
    if spelling in ("rope_scaling", "type"):
        del record["rope_parameters"]
    if spelling == "type":  # Transformers before 4.43
        del record["rope_scaling"]["rope_type"]
    if spelling == "rope_parameters":
        del record["rope_scaling"], record["rope_theta"]
    assert ModelConfig.from_hf(record) == ours


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"factor": None}, "factor is missing"),
        ({"original_max_position_embeddings": None}, "original_max_position_embeddings is missing"),
        ({"factor": 0.5}, "factor is 0.5"),
        ({"factor": "4"}, "factor is '4'"),
        ({"factor": True}, "factor is True"),
        ({"beta_fast": 1, "beta_slow": 2}, "beta_fast is not above beta_slow"),
        ({"original_max_position_embeddings": 256}, "2048 is not between"),
        ({"original_max_position_embeddings": 4096}, "2048 is not between"),
        ({"short_factor": [1.0]}, "short_factor is unknown"),
        ({"type": "linear"}, "rope_type and type differ"),
        ({"rope_type": "llama3"}, "rope_type llama3"),
        ({"rope_theta": 7.0}, "two values of rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_missing_or_contradicts_is_refused(change, what):
    record = config(YARN, context=2048).to_hf()
    del record["rope_parameters"], record["rope_scaling"]["type"]
    record["rope_scaling"] |= change
    with pytest.raises(IqcError, match=what):
        ModelConfig.from_hf(record)


def test_two_scalings_that_differ_are_refused():
    record = config(YARN, context=2048).to_hf()
    record["rope_parameters"] = record["rope_parameters"] | {"factor": 8.0}
    with pytest.raises(IqcError, match="rope_parameters and rope_scaling differ"):
        ModelConfig.from_hf(record)


def test_extending_counts_from_the_original_context():
    made = preset("nano")
    extend_context(made, 4)
    assert made.max_position_embeddings == 2048 and made.rope_scaling == YARN
    extend_context(made, 8)
    assert made.max_position_embeddings == 4096
    assert made.rope_scaling == YARN | {"factor": 8.0}
    for factor in (4, 1, 0.5, -1):
        with pytest.raises(IqcError, match="YaRN factor"):
            extend_context(made, factor)
    assert preset("nano").rope_scaling is None


def test_a_stretched_model_is_transformers_llama(tiny, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny(1, dtype=torch.float32, max_position_embeddings=16)
    before = model(torch.arange(40)[None] % 50)
    extend_context(model.config, 4)
    save_model(tmp_path / "m", model)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    ours = load_model(tmp_path / "m")
    assert ours.config.rope_scaling == model.config.rope_scaling == YARN | {"original_max_position_embeddings": 16}
    tokens = torch.randint(50, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=0, atol=2e-5)
        assert not torch.allclose(model(torch.arange(40)[None] % 50), before, atol=1e-3)  # it does something
