"""The average of the weights: its formula, the same on any number of ranks, and back from a checkpoint."""

import itertools
import shutil

import pytest
import torch

from iqc.errors import IqcError, UsageError
from iqc.model.checkpoint import load_model
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.train.checkpoints import Stored, pieces_of
from iqc.train.ema import Ema
from iqc.train.optimizer import make_optimizer
from iqc.train.run import Run, find_checkpoint, lineage_inputs, stage_of

CONFIG = ModelConfig(50, 24, 40, 2, 6, 2, 32, loop_num=2, loop_window_size=8)


def moved(model: Decoder, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.1)


def trained(ranks: int, dtype: torch.dtype = torch.float32, decay: float = 0.5):
    """A model and its averages on that many ranks, after five changes; and the average of each parameter by hand."""
    model = Decoder(CONFIG, seed=1).to(dtype)
    optimizer = make_optimizer(model, 1e-3, "adamw")
    averages = [Ema(decay, pieces_of(model, optimizer, rank, ranks)) for rank in range(ranks)]
    by_hand = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for step in range(1, 6):
        moved(model, step)
        for rank, average in enumerate(averages):
            average.update(pieces_of(model, optimizer, rank, ranks), step)
        d = min(decay, (1 + step) / (10 + step))
        by_hand = {name: d * by_hand[name] + (1 - d) * p.detach().double() for name, p in model.named_parameters()}
    return model, averages, by_hand


def whole(averages: list[Ema]) -> dict[str, torch.Tensor]:
    parts = sorted((piece for average in averages for piece in average.pieces()), key=lambda p: (p.name, p.start))
    groups = itertools.groupby(parts, key=lambda piece: piece.name)
    return {name: torch.cat([piece.values for piece in group]) for name, group in groups}


@pytest.mark.parametrize("decay", [0.5, 0.25, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_its_formula_in_float32(dtype, decay):
    _, averages, by_hand = trained(1, dtype, decay)
    for name, values in whole(averages).items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), by_hand[name].flatten(), rtol=0, atol=1e-6, msg=name)


def test_ranks_that_share_the_weights_share_their_average():
    one, three = whole(trained(1)[1]), whole(trained(3)[1])
    assert one.keys() == three.keys() and all(torch.equal(one[name], three[name]) for name in one)


def test_a_checkpoint_has_it_as_a_model_and_it_goes_on_from_there(tmp_path):
    model, (average,), _ = trained(1, torch.bfloat16)
    optimizer = make_optimizer(model, 1e-3, "adamw")
    with Run(tmp_path / "run", {"stage": "pretrain"}, None) as run:
        run.resume()
        pieces = itertools.chain(pieces_of(model, optimizer), average.pieces())
        run.save(5, model, pieces, lambda digest: {"output": {"digest": digest}}, True)
    checkpoint = find_checkpoint(tmp_path / "run")
    found = load_model(checkpoint / "ema")
    expected = whole([average])
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter.flatten(), expected[name]), name
    assert stage_of(checkpoint / "ema") == "pretrain"
    for ranks in (1, 2):
        again = [Ema(0.5, pieces_of(Decoder(CONFIG, seed=7), optimizer, rank, ranks)) for rank in range(ranks)]
        for part in again:
            part.load(Stored(checkpoint, CONFIG))
        assert all(torch.equal(values, expected[name]) for name, values in whole(again).items())


def test_a_run_keeps_it_goes_on_with_it_bit_for_bit_and_another_starts_from_it(room, tmp_path):
    whole = find_checkpoint(room.train(tmp_path / "whole", ema=0.5, save_every=2))
    cut = room.train(tmp_path / "cut", ema=0.5, save_every=2)
    shutil.rmtree(cut / "step-00000004")
    again = find_checkpoint(room.train(cut, ema=0.5, save_every=2))
    name = "ema/model.safetensors"
    assert (whole / name).read_bytes() == (again / name).read_bytes() != (whole / "model.safetensors").read_bytes()
    plain = find_checkpoint(room.train(tmp_path / "plain"))
    assert (plain / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    before, after = (find_checkpoint(room.train(tmp_path / f"{n}", steps=n, epochs=0.0, ema=0.5)) for n in (0, 1))
    found = zip(load_model(before).parameters(), load_model(after).parameters(), load_model(after / "ema").parameters())
    for first, last, average in found:
        torch.testing.assert_close(average, torch.lerp(first, last, 9 / 11), rtol=0, atol=1e-7)  # d = 2 / 11
    stage = find_checkpoint(room.train(tmp_path / "anneal", stage="anneal", start=whole / "ema", steps=1))
    inputs = lineage_inputs(stage)["stages"][lineage_inputs(stage)["stage"]]["inputs"]
    assert lineage_inputs(whole / "ema")["output"]["digest"] in [item["digest"] for item in inputs]
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="--ema"):
            room.train(tmp_path / "wrong", ema=wrong)
    with pytest.raises(IqcError, match=r"ema: 0\.5, now 0\.9"):
        room.train(tmp_path / "whole", ema=0.9, save_every=2)
