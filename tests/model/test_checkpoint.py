import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from iqc.errors import IqcError
from iqc.model.checkpoint import load_model, save_model


def test_golden_log_probabilities(golden):
    """A loop checkpoint in released names, with log-probabilities that another implementation (vLLM) agreed with."""
    expected = json.loads((golden / "expected.json").read_text())
    model = load_model(golden)
    tokens = torch.tensor([expected["prompt_ids"]])
    with torch.inference_mode():
        ours = model.token_logprobs(tokens)[0, 1:]
        best = model.logits(model(tokens))[0].argmax(-1)
    torch.testing.assert_close(ours, torch.tensor(expected["next_token_logprobs"]), rtol=0, atol=1e-4)
    assert best.tolist() == expected["argmax_after_each"]


def test_golden_names_survive_a_save(golden, tmp_path):
    save_model(tmp_path / "again", load_model(golden))
    ours, theirs = load_file(tmp_path / "again/model.safetensors"), load_file(golden / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_with_tokenizer_files(tiny, tmp_path, dtype):
    model = tiny(dtype=dtype)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_model(tmp_path / "m", model, files=[tmp_path / "tokenizer.json"])
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters()):
        assert a.dtype == b.dtype == dtype
        assert b.requires_grad
        assert torch.equal(a, b), name
    assert load_model(tmp_path / "m", dtype=torch.float64).lm_head.weight.dtype == torch.float64


def test_a_save_replaces_and_leaves_nothing_else(tiny, tmp_path):
    save_model(tmp_path / "m", tiny(1), files=[])
    save_model(tmp_path / "m", tiny(2))
    assert load_model(tmp_path / "m").config.loop_num == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_model(tiny, tmp_path):
    save_model(tmp_path / "m", tiny(1))
    with pytest.raises(FileNotFoundError):
        save_model(tmp_path / "m", tiny(2), files=[tmp_path / "absent.json"])
    assert load_model(tmp_path / "m").config.loop_num == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_shards_are_read(tiny, tmp_path):
    model = tiny()
    save_model(tmp_path / "m", model)
    tensors = load_file(tmp_path / "m/model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, keys in parts.items():
        save_file({k: tensors[k] for k in keys}, tmp_path / "m" / file)
    index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "m/model.safetensors").unlink()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_model(tmp_path / "m").parameters()))
    (tmp_path / "m/b.safetensors").unlink()
    with pytest.raises(IqcError, match=r"no b\.safetensors"):
        load_model(tmp_path / "m")


def test_wrong_tensors_are_named(tiny, tmp_path):
    save_model(tmp_path / "m", tiny())
    tensors = load_file(tmp_path / "m/model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.extra"] = torch.zeros(1)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:7].clone()
    save_file(tensors, tmp_path / "m/model.safetensors")
    with pytest.raises(IqcError) as error:
        load_model(tmp_path / "m")
    for part in ("missing model.norm.weight", "unexpected model.extra", "lm_head.weight is [7, 24]", "[50, 24]"):
        assert part in str(error.value)


def test_a_dense_config_over_loop_weights_is_refused(tiny, tmp_path):
    """Relabelling a loop as a Llama would run one pass of it without a word."""
    save_model(tmp_path / "loop", tiny(2))
    save_model(tmp_path / "dense", tiny(1))
    shutil.copy(tmp_path / "dense/config.json", tmp_path / "loop/config.json")
    with pytest.raises(IqcError, match=r"unexpected model\.gate_projections\.0\.weight"):
        load_model(tmp_path / "loop")


def test_a_directory_without_a_model_is_an_error(tmp_path):
    with pytest.raises(IqcError, match=r"no config\.json"):
        load_model(tmp_path)
