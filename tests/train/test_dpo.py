"""Direct preference optimisation against its equation, written out in float64; and that micro-batches, the order of the
rows and what else is in them change nothing."""

import copy
import math

import numpy as np
import pytest
import torch

from iqc.errors import BadRecord, IqcError, UsageError
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.tokens.dataset import open_dataset
from iqc.tokens.loader import Batch, Limits, in_order, pairs_in
from iqc.train.dpo import Dpo
from iqc.train.losses import NextToken, make_loss
from iqc.train.run import find_checkpoint
from iqc.train.stages import stage
from iqc.train.step import micro_batches

CONFIG = ModelConfig(50, 24, 40, 2, 6, 2, 64, loop_num=2, loop_window_size=8)
PAIRS = [[(7, 9, 3), (6, 6, 2)], [(12, 8, 5)], [], [(4, 5, 2), (9, 4, 1), (5, 5, 3)]]  # lengths of both, prompt


def decoders() -> tuple[Decoder, Decoder]:
    """A model, and one that it might have started from."""
    model, reference = Decoder(CONFIG, seed=1).double(), Decoder(CONFIG, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator), alpha=0.03)
    return model, reference


def batch(width: int = 40) -> Batch:
    """Rows of two pairs, one, none (as a rank that has fewer rows than others gets) and three."""
    draw = np.random.Generator(np.random.PCG64(3))
    tokens, weights = draw.integers(0, 50, (len(PAIRS), width)), np.zeros((len(PAIRS), width), np.float32)
    lengths = []
    for row, pairs in enumerate(PAIRS):
        at = 0
        for *sizes, prompt in pairs:
            for size in sizes:
                weights[row, at + prompt : at + size] = 1
                at += size
        lengths.append(np.array([size for *sizes, _ in pairs for size in sizes], np.int64))
    weights[3, 17:19] = 0.5  # a message that counts half
    return Batch(tokens, weights, lengths)


def by_hand(model: Decoder, reference: Decoder, data: Batch, beta: float, sft: float) -> tuple[float, int, int]:
    """Loss, pairs whose margin is positive, pairs: document by document."""

    def answer(decoder, tokens, weights):
        with torch.no_grad():
            scores = decoder.logits(decoder(torch.from_numpy(tokens)[None]))[0].log_softmax(-1)
        return sum(float(w) * float(scores[t, tokens[t + 1]]) for t, w in enumerate(weights[1:]) if w)

    total = right = count = 0
    for row, lengths in enumerate(data.lengths):
        ends = np.cumsum(lengths)
        parts = [(data.tokens[row, e - n : e], data.weights[row, e - n : e]) for n, e in zip(lengths, ends)]
        for chosen, rejected in zip(parts[::2], parts[1::2]):
            gain = [answer(model, *side) - answer(reference, *side) for side in (chosen, rejected)]
            margin = beta * (gain[0] - gain[1])
            total += math.log1p(math.exp(-margin)) - sft * answer(model, *chosen) / float(chosen[1].sum())
            right, count = right + (margin > 0), count + 1
    return total, right, count


@pytest.mark.parametrize(("beta", "sft"), [(0.1, 0.0), (2.0, 0.5)])
def test_the_loss_is_its_equation(beta, sft):
    model, reference = decoders()
    loss = Dpo(reference, beta, sft)
    total, sums = loss(model, batch())
    expected, right, pairs = by_hand(model, reference, batch(), beta, sft)
    assert total.item() == pytest.approx(expected, rel=1e-12) and sums["loss"].item() == total.item()
    assert (sums["accuracy"].item(), loss.count(batch())) == (right, pairs) == (right, 6) and 0 < right < 6
    assert sums["margin"].item() == pytest.approx(beta * (sums["chosen"] - sums["rejected"]).item(), rel=1e-12)


def test_the_gradient_is_that_of_the_equation():
    """By differences along a random direction."""
    model, reference = decoders()
    loss = Dpo(reference, 0.5, 0.25)
    loss(model, batch())[0].backward()
    generator = torch.Generator().manual_seed(5)
    way = {name: torch.randn(p.shape, dtype=torch.float64, generator=generator) for name, p in model.named_parameters()}
    slope = sum((p.grad * way[name]).sum().item() for name, p in model.named_parameters())
    at = []
    for step in (1e-5, -1e-5):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(way[name], alpha=step)
            at.append(loss(moved, batch())[0].item())
    assert slope == pytest.approx((at[0] - at[1]) / 2e-5, rel=1e-6)
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_a_model_that_has_not_moved_has_no_preference():
    model, _ = decoders()
    total, sums = Dpo(copy.deepcopy(model))(model, batch())
    assert total.item() == pytest.approx(6 * math.log(2)) and sums["margin"].item() == sums["accuracy"].item() == 0


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_and_the_order_of_rows_change_nothing(rows):
    model, reference = decoders()
    loss, data = Dpo(reference, 0.5, 0.25), batch()
    loss(model, data)[0].backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters()}
    order = [2, 3, 0, 1]
    mixed = Batch(data.tokens[order], data.weights[order], [data.lengths[row] for row in order])
    for batches in (list(micro_batches(data, rows)), list(micro_batches(mixed, rows))):
        model.zero_grad()
        for part in batches:
            loss(model, part)[0].backward()  # the row without pairs has a graph, too
        assert sum(map(loss.count, batches)) == loss.count(data) == 6
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, whole[name], rtol=0, atol=1e-12, msg=name)


def test_which_documents_are_pairs():
    assert pairs_in(["a#chosen", "a#rejected", "b#chosen", "b#rejected"]) == [0, 2]
    assert pairs_in(["a#rejected", "a#chosen", "b#rejected", "text", "text#0"]) == []
    assert pairs_in(["text", "a#epoch2#chosen", "a#epoch2#rejected"]) == [1]


def test_a_stage_makes_its_loss():
    assert make_loss(stage("mid-32k"), decoders) == NextToken(stage("mid-32k").z_loss)
    made = make_loss(stage("dpo"), lambda: decoders()[1])
    assert isinstance(made, Dpo) and (made.beta, made.sft) == (0.1, 0.0)
    with pytest.raises(UsageError, match="2 context ranks"):
        make_loss(stage("dpo"), lambda: decoders()[1], context_ranks=2)


def test_rows_of_pairs_go_to_dpo_alone(room, tmp_path):
    """By what lineage tells; and by what the rows are, where it tells nothing."""
    records = [{"id": f"p{n}", "prompt": str(n), "chosen": "yes", "rejected": "no"} for n in range(12)]
    pairs = room.pack_records("pairs", records, context=160)
    mixed = room.pack_records("mixed", [*records, {"id": "t", "text": "a text"}], context=160)
    made, sequences = find_checkpoint(room.train(tmp_path / "sft", steps=1)), room.place / "sequences.zst"
    for run, asked, data, what in (
        ("a", {"stage": "anneal"}, pairs, "rows with preference pairs"),
        ("b", {"stage": "dpo"}, sequences, "rows of document for a loss of pairs"),
        ("c", {"stage": "dpo"}, mixed, "rows of document, preference for a loss of pairs"),
    ):
        (made / "run.json").unlink(missing_ok=True)  # a model from elsewhere: any stage starts from it
        with pytest.raises(IqcError, match=what):
            room.train(tmp_path / run, data, start=made, **asked)
        assert not (tmp_path / run).exists()
    for data, limits, what in (
        (pairs, Limits(160, 400, 0), "pairs.zst:1: a row with preference pairs"),
        (sequences, Limits(64, 400, 0, pairs=True), "sequences.zst:1: a row with samples that are no preference pair"),
    ):
        with open_dataset([str(data)])[0] as rows, pytest.raises(BadRecord) as caught:
            next(in_order(rows, limits, 1))
        assert what in str(caught.value)
    silent = [records[0], records[1] | {"rejected": [{"role": "assistant", "content": "no", "loss": False}]}]
    packed, what = (
        room.pack_records("silent", silent, context=320),
        r"silent\.zst:1: a preference pair with an answer of",
    )
    with open_dataset([str(packed)])[0] as rows, pytest.raises(BadRecord, match=what):
        next(in_order(rows, Limits(320, 400, 0, pairs=True), 1))
    with open_dataset([str(pairs)])[0] as rows:
        first = next(in_order(rows, Limits(160, 400, 0, pairs=True), len(rows)))
    assert sum(len(lengths) for lengths in first.lengths) == 24
