"""The worker of test_parity.py, one of several ranks: every engine against one process that computes all rows.

    torchrun ... tests/train/parity.py full|quick ASKED

Prints a JSON line: by engine the greatest differences of loss and gradient norm over the updates. Before, it goes on
with a run of `iqc train`: ASKED, JSON.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch

from iqc.model.compiled import compile_blocks
from iqc.model.config import PRESETS, ModelConfig
from iqc.model.decoder import Decoder, Recompute
from iqc.tokens.loader import Batch
from iqc.train import trainer
from iqc.train.engines import deepspeed
from iqc.train.engines.engine import CLIP
from iqc.train.engines.local import Local
from iqc.train.losses import NextToken
from iqc.train.optimizer import make_optimizer
from iqc.train.ranks import Ranks
from iqc.train.settings import TrainSettings
from iqc.train.step import update

RATE = 3e-4
ROWS = 6  # of an update: 4 ranks have 1, 2, 1 and 2 of them
LOOP = {"loop_num": 2, "loop_window_size": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "router_aux_loss_coef": 0.1}


def rows(step: int) -> Batch:
    """Two documents a row, padding, weights that are not 1: ranks have different numbers of tokens."""
    draw = np.random.Generator(np.random.PCG64(step))
    lengths = [np.array([3 + row, 16 - 2 * row], np.int64) for row in range(ROWS)]
    weights = np.zeros((ROWS, 20), np.float32)
    for row, (first, second) in enumerate(lengths):
        weights[row, 1:first], weights[row, first + 1 : first + second] = 0.5 + row, 1.0
    return Batch(draw.integers(0, 50, (ROWS, 20)), weights, lengths)


def share(batch: Batch, rank: int, ranks: int) -> Batch:
    part = slice(ROWS * rank // ranks, ROWS * (rank + 1) // ranks)
    return Batch(batch.tokens[part], batch.weights[part], batch.lengths[part])


def model_of(ranks: Ranks, recompute: str = "none", **fields) -> Decoder:
    model = Decoder(ModelConfig(50, 24, 40, 2, 6, 2, 32, **fields), seed=1).to(ranks.device)
    if recompute == "compiled":
        compile_blocks(model, backend="aot_eager")
    else:
        model.model.recompute = Recompute.parse(recompute)
    return model.train()


def losses(engine, updates: int, micro_rows: int = 0, forget: bool = False) -> list[tuple[float, float]]:
    """Of each update loss and gradient norm. `forget`: gradients are made and thrown away in between."""
    ranks, found = engine.ranks, []
    for step in range(updates):
        batch = share(rows(step), ranks.data_rank, ranks.data_ranks)
        if forget and step == 2:
            for reduced in (False, True):
                total, _ = engine.compute(NextToken(), batch)
                engine.backward(total / 100, last=reduced)
                if reduced:
                    engine.reduce()
                engine.discard()
        made = update(engine, NextToken(), batch, RATE, micro_rows=micro_rows, batch_rows=ROWS)
        found.append((made["loss"], made["grad_norm"]))
    return found


def local(ranks: Ranks, **how) -> Local:
    model = model_of(ranks, **how)
    return Local(model, make_optimizer(model, RATE, "adamw"), ranks, CLIP, None)


def zero(ranks: Ranks, stage: int, offload: str = "none", bf16: bool = False, **how) -> deepspeed.DeepSpeed:
    model = model_of(ranks, **how)
    return deepspeed.DeepSpeed(model, make_optimizer(model, RATE, "adamw"), ranks, CLIP, stage, offload, bf16)


def experts(ranks: Ranks) -> Local:
    engine = local(ranks, **EXPERTS)
    if ranks.size > 1:
        engine.model.together = ranks.sum
    return engine


def gradients_in_float64(ranks: Ranks) -> list[torch.Tensor]:
    """Of the first update, in two micro-batches."""
    found: list[torch.Tensor] = []
    for made in (local(ranks, **LOOP), local(ranks, recompute="block", **LOOP), experts(ranks)):
        made.model.double()
        batch = share(rows(0), ranks.data_rank, ranks.data_ranks)

        def keep(engine: Local = made) -> None:
            found.extend(gradient.clone() for _, gradient in engine.gradients())

        micro_rows = 0 if made.model.config.num_experts else -(-ROWS // (2 * ranks.size))
        update(made, NextToken(), batch, RATE, micro_rows=micro_rows, batch_rows=ROWS, before=keep)
    return found


def engines(ranks: Ranks, full: bool) -> Iterator[tuple[str, list, list]]:
    """(name, losses of one process, losses of these ranks)."""
    alone = Ranks(device=ranks.device)
    long, short = (50, 4) if full else (8, 0)
    looped = losses(local(alone, **LOOP), long)
    for name, engine in (
        ("local", local(ranks, **LOOP)),
        ("zero 1", zero(ranks, 1, **LOOP)),
        ("zero 2, blocks recomputed", zero(ranks, 2, recompute="block", **LOOP)),
        ("zero 3, blocks recomputed", zero(ranks, 3, recompute="block", **LOOP)),
    ):
        yield name, looped, losses(engine, long)
    for stage, offload, recompute in (
        (0, "none", "none"),
        (2, "none", "none"),
        (1, "optimizer", "none"),
        (2, "optimizer", "none"),
        (3, "optimizer", "none"),
        (3, "all", "mlp"),
        (3, "none", "compiled"),
    ):
        if short:
            engine = zero(ranks, stage, offload, recompute=recompute, **LOOP)
            name = f"zero {stage}, offload {offload}, {recompute}"
            yield name, looped[:short], losses(engine, short, micro_rows=1, forget=True)
    yield "experts", losses(experts(alone), 4), losses(experts(ranks), 4)


class Stopped(Exception):
    pass


def go_on(ranks: Ranks, asked: dict) -> None:
    """`iqc train` on these ranks, until it has saved `asked["until"]` updates."""
    until = asked.pop("until")
    real = trainer.Training.save

    def save(self, updates: int, loss: float | None) -> None:
        real(self, updates, loss)
        if updates == until:
            self.run.settle()
            raise Stopped

    trainer.Training.save = save  # type: ignore[method-assign]
    trainer.Ranks.start = lambda context=1: nullcontext(ranks)  # type: ignore[method-assign, assignment]
    PRESETS["tiny"] = ModelConfig(400, 32, 64, 2, 4, 2, 64, **LOOP)
    place, inputs, run = (asked.pop(name) for name in ("tokenizer", "inputs", "run"))
    try:
        trainer.run_train(TrainSettings(**asked), inputs, run, place, [], None, True)
    except Stopped:
        pass


def main() -> None:
    # So small that matrices are cut and take several messages.
    deepspeed.BUCKET, deepspeed.PREFETCH, deepspeed.LIVE, deepspeed.WHOLE = 2000, 2000, 9000, 100
    with Ranks.start() as ranks:
        alone = Ranks(device=ranks.device)
        pairs = zip(gradients_in_float64(alone), gradients_in_float64(ranks), strict=True)
        found: dict = {"gradients": max((one - other).abs().max().item() for one, other in pairs)}
        for name, expected, made in engines(ranks, sys.argv[1] == "full"):
            differences = [(abs(a - c), abs(b - d)) for (a, b), (c, d) in zip(expected, made, strict=True)]
            found[name] = [max(column) for column in zip(*differences)]
        go_on(ranks, json.loads(sys.argv[2]))
        if ranks.main:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
