"""The training loop: packed rows in, checkpoints and metrics out, on one device, on a GPU with compiled blocks.

The rows of update k depend on (seed, k) alone and the rate on k alone, there is no dropout: a run that is killed and
started again gives the losses of one that was not, bit for bit on the same CPU, to rounding on a GPU.
"""

import math
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from iqc import __version__
from iqc.errors import IqcError, UsageError
from iqc.model.compiled import compile_blocks
from iqc.model.decoder import Recompute
from iqc.streams.lineage import Input, Stage, lineage_of
from iqc.streams.runner import Counts, Settings, report
from iqc.tokens.dataset import Dataset
from iqc.tokens.loader import Limits
from iqc.tokens.special import PAD
from iqc.tokens.tokenizer import Tokenizer
from iqc.tokens.tokenizer import load as load_tokenizer
from iqc.train.checkpoints import checkpoint_bytes, load_pieces, pieces_of
from iqc.train.curriculum import with_weights
from iqc.train.data import Data
from iqc.train.environment import deterministic
from iqc.train.optimizer import make_optimizer
from iqc.train.run import Run, find_checkpoint, lineage_inputs, weights_digest
from iqc.train.settings import PRECISIONS, TrainSettings
from iqc.train.sources import Sources, check_asked, open_held_out, open_sources
from iqc.train.stages import TABLE, TrainingStage, learning_rate, mixture_weights, peak_rate
from iqc.train.stages import stage as find_stage
from iqc.train.start import starting_model
from iqc.train.step import evaluate, update


def train(
    settings: TrainSettings,
    stage: TrainingStage,
    sources: Sources,
    tokenizer: Tokenizer,
    tokenizer_files: Path,
    directory: str,
    valid: list[str],
    quiet: bool = False,
) -> dict:
    """Run a stage to its end, or from where an earlier run stopped. Returns the counts for the summary."""
    model, start = starting_model(settings, stage, tokenizer)
    config = model.config
    context = settings.context or min(stage.context, config.max_position_embeddings)
    if context > config.max_position_embeddings:
        raise IqcError(
            f"a context of {context}", remedy=f"the model was made for {config.max_position_embeddings} tokens"
        )
    limits = Limits(context, config.vocab_size, tokenizer.control[PAD], pairs=stage.loss == "dpo")
    sources.check(limits, tokenizer.digest)
    mixture = with_weights(settings.mixture, sources.names, mixture_weights(stage, settings.stages or TABLE))
    opened = ExitStack()
    held_out, digests = open_held_out(valid, limits, settings.batch_rows, opened)
    check_asked(mixture, sources, held_out, fresh=start is None)
    steps = settings.steps or math.ceil(settings.epochs * len(sources.dataset) / settings.batch_rows)
    peak = settings.rate or peak_rate(config.hidden_size, settings.optimizer)
    parent = parent_input(start) if start else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = settings.precision or ("bf16" if device.type == "cuda" else "fp32")
    dtype, products = PRECISIONS[precision]
    asked = asdict(settings) | {
        "start": parent.digest if parent else None,
        "steps": steps,
        "context": context,
        "rate": peak,
        "precision": precision,
        "config": config.to_hf(),
        "data": sources.asked(),
        "mixture": asdict(mixture) | {"held_out": digests} if sources.named else None,
        "stages": asdict(stage) if settings.stages else None,  # the table of this version has a version
    }
    del asked["save_every"], asked["recompute"], asked["deterministic"], asked["tensorboard"]
    with opened, Run(directory, asked, tokenizer_files) as run:
        progress = run.resume()
        first = 0
        if progress is not None:
            model, first = progress.model, progress.step
            exact = ", bit for bit" if progress.exact else ""
            say(quiet, f"{stage.name}: going on after update {first} of {steps}{exact}")
        model.to(device, dtype).train()
        model.model.recompute = Recompute.parse(settings.recompute)
        if device.type == "cuda":
            compile_blocks(model)
        optimizer = make_optimizer(model, peak, settings.optimizer)
        if progress is not None:
            load_pieces(model, optimizer, progress.stored)
        data = Data(
            sources, held_out, mixture, limits, seed=settings.seed, batch_rows=settings.batch_rows, steps=steps,
            directory=run.directory,
        )  # fmt: skip
        opened.enter_context(data)
        if progress is not None:
            data.load(progress.state.get("mixture", {}))

        def measure(rows: Dataset) -> float:
            return evaluate(model, rows, limits, settings.batch_rows, products)

        run.need(checkpoint_bytes(model), math.ceil((steps - first) / (settings.save_every or steps)) if steps else 1)
        data.start(measure)
        started, seen = time.monotonic(), 0.0
        for step in range(first, steps):
            run.copied()
            rate = learning_rate(stage, peak, step, steps)
            made = update(model, optimizer, data.batch(step), rate, settings.micro_rows, products, data.domains)
            metrics = {"step": step, "rate": rate} | made | data.after(step + 1, measure)
            run.log(metrics)
            seen += metrics["tokens"]
            if (step + 1) % max(1, steps // 10) == 0:
                speed = seen / (time.monotonic() - started)
                at = f"update {step + 1}/{steps}, loss {metrics['loss']:.3f}, {speed:,.0f} tokens/s"
                say(quiet, f"{stage.name}: {at}")
            done = step + 1 == steps
            if done or (settings.save_every and (step + 1) % settings.save_every == 0):
                history = partial(lineage, asked, sources.inputs, parent, step + 1, metrics["loss"])
                run.save(step + 1, model, pieces_of(model, optimizer), history, done, {"mixture": data.state()})
        if progress is not None and first == steps:
            say(quiet, f"{stage.name}: {directory} is complete already")
        elif steps == 0:
            history = partial(lineage, asked, sources.inputs, parent, 0, None)
            run.save(0, model, pieces_of(model, optimizer), history, True)
    return {"updates": steps, "rows": len(sources.dataset)}


def parent_input(start: Path) -> Input:
    """The checkpoint that a run starts from, as lineage names it."""
    found = lineage_inputs(start)
    return Input(found["output"]["digest"] if found else weights_digest(start), lineage=found, label="checkpoint")


def lineage(asked: dict, inputs: list[Input], parent: Input | None, step: int, loss: float | None, digest: str) -> dict:
    """The lineage of a checkpoint: its data, and the checkpoint that it started from."""
    decisive = ("stage", "model", "steps", "batch_rows", "micro_rows", "context", "optimizer", "rate", "precision")
    options = {key: asked[key] for key in decisive if asked[key] is not None}
    options |= {key: asked[key] for key in ("loop", "yarn", "stages", "mixture") if asked[key]}
    sources = [*inputs, *([parent] if parent else [])]
    output = {"digest": digest, "updates": step, "loss": loss}
    return lineage_of(Stage("train", __version__, options, asked["seed"]), sources, {"updates": step}, output)


def say(quiet: bool, text: str) -> None:
    if not quiet:
        print(f"iqc train: {text}", file=sys.stderr)


def run_train(
    settings: TrainSettings,
    inputs: list[str],
    directory: str,
    tokenizer: str | None,
    valid: list[str],
    summary: str | None,
    quiet: bool,
) -> None:
    """`iqc train`: read the sequences, train, report."""
    shared = Settings(inputs=inputs, summary=summary, quiet=quiet)
    stage = find_stage(settings.stage, settings.stages or TABLE)
    if not 0 <= settings.epochs < math.inf:
        raise UsageError(f"--epochs {settings.epochs}", remedy="a number of passes over the rows, 0 or more")
    try:
        Recompute.parse(settings.recompute)
    except ValueError as error:
        raise UsageError(str(error), remedy="--recompute mlp, or block:2,mlp:10") from None
    if tokenizer is None and settings.start is None:
        raise UsageError("no tokenizer", remedy="--tokenizer DIR: the one that the sequences were packed with")
    place = Path(tokenizer) if tokenizer else find_checkpoint(settings.start or "")
    loaded = load_tokenizer(place)
    if tokenizer and settings.start:
        own = load_tokenizer(find_checkpoint(settings.start))
        if own.digest != loaded.digest:
            raise IqcError("not the tokenizer of --from", where=tokenizer, remedy="leave --tokenizer out")
    if settings.deterministic:
        deterministic()
    started = time.monotonic()
    with open_sources(inputs) as sources:
        done = train(settings, stage, sources, loaded, place, directory, valid, quiet)
    counts = Counts(read=done["rows"], kept=done["rows"], extra=done)
    report("train", shared, counts, time.monotonic() - started)
