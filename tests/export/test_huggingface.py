"""Exported directories, loaded by Transformers without a network and compared with our own decoder."""

import json

import pytest
import torch

from iqc.errors import IqcError
from iqc.export.huggingface import export, remote_code
from iqc.model.checkpoint import load_model, save_model
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.model.generate import generate

torch.set_num_threads(1)


@pytest.fixture
def transformers(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    import transformers

    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture
def saved(tmp_path):
    """A model directory, dense or looped, with rotary base and end-of-text ids that are nobody's default."""

    def make(loops, **fields):
        config = ModelConfig(
            60, 32, 48, 2, 4, 2, 256, rope_theta=123_456.0, loop_num=loops, loop_window_size=5, **fields
        )
        config.bos_token_id, config.eos_token_id = 1, [2, 7]
        model = Decoder(config)
        g = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(
                    torch.randn(p.shape, generator=g) * (1.0 if "gate_projections" in name else 0.2) + ("norm" in name)
                )
        (tmp_path / "tokenizer.json").write_text("{}")
        save_model(tmp_path / "model", model, files=[tmp_path / "tokenizer.json"])
        return tmp_path / "model", tmp_path / "out"

    return make


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
KINDS = [(1, "LlamaForCausalLM"), (2, "IQuestLoopCoderForCausalLM")]


@pytest.mark.parametrize("scaling", [None, YARN])
@pytest.mark.parametrize(("loops", "kind"), KINDS)
def test_transformers_gives_our_logits_and_our_greedy_text(transformers, saved, loops, kind, scaling):
    source, out = saved(loops, rope_scaling=scaling)
    export(source, out)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, trust_remote_code=loops > 1, output_loading_info=True
    )
    assert type(theirs).__name__ == kind
    assert not any(info.values()), info
    ours = load_model(source)
    tokens = torch.randint(8, 60, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, ours.logits(ours(tokens)), rtol=0, atol=2e-5)
    prompts = [tokens[0, :30].tolist(), tokens[1, :22].tolist()]
    padded = torch.tensor([prompts[0], [0] * 8 + prompts[1]])
    mask = torch.tensor([[1] * 30, [0] * 8 + [1] * 22])
    expected = generate(ours, prompts, max_new_tokens=10, temperature=0, stop=[2, 7])
    got = theirs.generate(padded, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)
    for row, completion in zip(got[:, 30:].tolist(), expected):
        assert row[: len(completion.tokens)] == completion.tokens


def test_loss_of_the_remote_model_is_the_mean_of_ours(transformers, saved):
    source, out = saved(2)
    export(source, out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    tokens = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(0))
    loss, count = load_model(source).loss(tokens)
    torch.testing.assert_close(theirs(tokens, labels=tokens).loss, loss / count)


def test_files_of_an_export(saved):
    source, out = saved(2)
    export(source, out)
    record = json.loads((out / "config.json").read_text())
    assert record["architectures"] == ["IQuestLoopCoderForCausalLM"]
    assert record["auto_map"]["AutoModelForCausalLM"] == "modeling_iquestloopcoder.IQuestLoopCoderForCausalLM"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    with pytest.raises(IqcError, match="exists"):
        export(source, out)
    assert load_model(out).config == load_model(source).config


def test_a_dense_export_has_no_code(saved):
    source, out = saved(1)
    export(source, out)
    assert not list(out.glob("*.py"))
    assert "auto_map" not in json.loads((out / "config.json").read_text())


def test_remote_code_imports_nothing_of_ours():
    files = remote_code()
    assert {"configuration_iquestloopcoder.py", "modeling_iquestloopcoder.py"} <= files.keys()
    for name, text in files.items():
        compile(text, name, "exec")
        lines = [line for line in text.splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in lines if "iqc" in line], name
        for line in lines:
            if line.startswith("from ."):
                assert line.split()[1].removeprefix(".") + ".py" in files
