"""From records to losses: a model gives every sample in a packed row the losses that it gives the sample alone."""

from functools import partial

import numpy as np
import orjson
import pytest
import torch

from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.streams.runner import Settings, run_stage
from iqc.tokens.dataset import open_dataset
from iqc.tokens.loader import Limits, assemble
from iqc.tokens.pack import Packer
from iqc.tokens.stages import packing, tokenise_stage

CONTEXT = 320


def document(number, text):
    return {"id": f"doc{number}", "text": text, "source": "test", "metadata": {}}


def chat(number):
    turns = [("user", f"What is {number} and {number}?"), ("assistant", f"{2 * number}, as a sum.")]
    turns += [("user", "And why?"), ("assistant", "def add(a, b):\n    return a + b")] * (number % 3)
    return {"id": f"chat{number}", "messages": [{"role": role, "content": content} for role, content in turns]}


def fim(number, text):
    cut = 40 + 7 * number
    parts = {"prefix": text[:cut], "middle": text[cut : cut + 60], "suffix": text[cut + 60 : 400]}
    whole = f"<|fim_prefix|>{parts['prefix']}<|fim_suffix|>{parts['suffix']}<|fim_middle|>{parts['middle']}"
    return {"id": f"fim{number}", "text": whole, "source": "test", "level": "line", "context": []} | parts


def records(sources):
    out = []
    for number in range(12):
        text = sources[number % len(sources)][2000 + 400 * number :]
        out += [document(number, text[: 60 + 130 * number]), chat(number), fim(number, text)]
    return out


@pytest.fixture(scope="module")
def rows(tmp_path_factory, saved, sources):
    """The records packed together, and each by itself: (dataset, {id: tokens of the rows of one record})."""
    place = tmp_path_factory.mktemp("packed")

    def pack(name, wanted):
        (place / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in wanted))
        output = str(place / f"{name}.jsonl.zst")
        asked = Settings(inputs=[str(place / f"{name}.jsonl")], output=output, quiet=True, jobs=1)
        reduce, measured = packing(Packer(CONTEXT))
        run_stage("pack", {}, asked, partial(tokenise_stage, str(saved)), reduce=reduce, measure=measured)
        return open_dataset([output])[0]

    single = {}
    for record in records(sources):
        with pack("single", [record]) as found:
            single |= {row.ids[0]: row.tokens.tolist() for row in found.rows(np.arange(len(found)))}
    with pack("rows", records(sources)) as found:
        yield found, single


@pytest.fixture(scope="module", params=[{}, {"loop_num": 2, "loop_window_size": 16}], ids=["dense", "loop"])
def model(request, tok):
    torch.set_num_threads(1)
    config = ModelConfig(tok.vocab_size, 32, 48, 2, 4, 2, CONTEXT, initializer_range=0.2, **request.param)
    return Decoder(config, seed=3).double().eval()


def losses(model, tokens, lengths=None):
    """Nats a token [B, T], 0 where nothing is predicted."""
    with torch.no_grad():
        return -model.token_logprobs(torch.from_numpy(tokens), lengths).numpy()


def test_packed_equals_separate(rows, model, tok):
    found, single = rows
    batch = assemble(found, range(len(found)), Limits(CONTEXT, tok.vocab_size, 0))
    packed = losses(model, batch.tokens, [lengths.tolist() for lengths in batch.lengths])
    leaking = losses(model, batch.tokens, [[int(lengths.sum())] for lengths in batch.lengths])
    kinds, whole, weighted, alone_weighted, leaks = set(), 0, 0.0, 0.0, []
    for at, row in enumerate(found.rows(np.arange(len(found)))):
        ends = np.cumsum(row.lengths, dtype=np.int64)
        for name, start, end in zip(row.ids, ends - row.lengths, ends, strict=True):
            alone = losses(model, batch.tokens[at : at + 1, start:end])[0]
            np.testing.assert_allclose(packed[at, start:end], alone, rtol=0, atol=1e-10, err_msg=name)
            weights = batch.weights[at, start:end]
            weighted += float((packed[at, start:end] * weights).sum())
            alone_weighted += float((alone * weights).sum())
            if "#" not in name:  # not a piece of a long document: the sample is what packing it by itself gives
                assert row.tokens[start:end].tolist() == single[name]
                whole += 1
            if start:
                leaks.append(float(np.abs(leaking[at, start + 1 : end] - alone[1:]).max(initial=0)))
            kinds.add(name.strip("0123456789#"))
    assert kinds == {"doc", "chat", "fim"} and whole >= 24 and max(map(len, batch.lengths)) > 2
    assert abs(weighted - alone_weighted) < 1e-6
    with torch.no_grad():
        tensors = torch.from_numpy(batch.tokens), [lengths.tolist() for lengths in batch.lengths]
        total, count = model.loss(*tensors, torch.from_numpy(batch.weights))
    assert float(total) == pytest.approx(alone_weighted, abs=1e-6) and float(count) == float(batch.weights.sum())
    # without the lengths the same rows give other losses to (almost) every sample but the first of a row
    assert np.mean(np.array(leaks) > 1e-3) > 0.9
