import json

import pytest
import torch

from iqc.errors import BadRecord
from iqc.model import score as module
from iqc.model.checkpoint import load_model, save_model
from iqc.model.score import logprobs_stage, score


def test_golden(golden):
    expected = json.loads((golden / "expected.json").read_text())
    record = {"id": "a", "ids": expected["prompt_ids"]}
    (found,) = logprobs_stage(golden)(record)
    assert found["next_token_logprobs"] == pytest.approx(expected["next_token_logprobs"], abs=1e-4)
    assert found["argmax_after_each"] == expected["argmax_after_each"]
    assert found["ids"] == record["ids"] and "next_token_logprobs" not in record


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_equals_the_decoder_whatever_the_logits_at_a_time(tiny, monkeypatch, rows):
    monkeypatch.setattr(module, "CHUNK_LOGITS", rows * 50)
    model = tiny(dtype=torch.float32)
    ids = torch.randint(50, (13,), generator=torch.Generator().manual_seed(0)).tolist()
    logprobs, best = score(model, ids)
    with torch.no_grad():
        expected = model.token_logprobs(torch.tensor([ids]))[0, 1:].tolist()
        logits = model.logits(model(torch.tensor([ids])))[0]
    assert logprobs == pytest.approx(expected, abs=1e-5)
    assert best == logits.argmax(-1).tolist()
    assert score(model, ids[:1]) == ([], best[:1])


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({}, "nothing"),
        ({"ids": 5}, "expected list"),
        ({"ids": []}, "no ids"),
        ({"ids": [1, 50]}, r"ids\[1\] is 50, not a token of 50"),
        ({"ids": [-1]}, r"ids\[0\] is -1"),
        ({"ids": [1, True]}, r"ids\[1\] is True"),
        ({"ids": ["a"]}, r"ids\[0\] is 'a'"),
        ({"ids": [1.0]}, r"ids\[0\] is 1.0"),
        ({"ids": [1] * 129}, "129 ids for a context of 128"),
    ],
)
def test_ids_that_are_no_tokens_are_bad_records(tiny, tmp_path, record, what):
    save_model(tmp_path / "m", tiny(dtype=torch.bfloat16))
    with pytest.raises(BadRecord, match=what) as caught:
        list(logprobs_stage(tmp_path / "m")({"id": "a"} | record))
    assert caught.value.remedy


def test_scores_are_float32_whatever_the_file(tiny, tmp_path):
    save_model(tmp_path / "m", tiny(dtype=torch.bfloat16))
    (found,) = logprobs_stage(tmp_path / "m")({"ids": [1, 2, 3]})
    exact = load_model(tmp_path / "m", dtype=torch.float64).token_logprobs(torch.tensor([[1, 2, 3]]))[0, 1:]
    assert found["next_token_logprobs"] == pytest.approx(exact.tolist(), abs=1e-4)
