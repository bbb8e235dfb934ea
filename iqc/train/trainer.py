"""The training loop: packed rows in, checkpoints and metrics out, on one device or many, on GPUs with compiled blocks.

The rows of update k depend on (seed, k) alone and the rate on k alone, there is no dropout: a run that is killed and
started again gives the losses of one that was not, bit for bit on the same CPU, to rounding on a GPU.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from iqc import __version__
from iqc.errors import IqcError, UsageError
from iqc.kernels.ring import ProcessRing
from iqc.model.compiled import compile_blocks
from iqc.model.config import ModelConfig
from iqc.model.decoder import Recompute
from iqc.streams.lineage import Input, Stage, lineage_of
from iqc.streams.runner import Counts, Settings, report
from iqc.tokens.dataset import Dataset
from iqc.tokens.loader import Batch, Limits
from iqc.tokens.special import PAD
from iqc.tokens.tokenizer import Tokenizer
from iqc.tokens.tokenizer import load as load_tokenizer
from iqc.train.audit.guard import Guard
from iqc.train.audit.messages import Ledger
from iqc.train.audit.stalls import Stalls
from iqc.train.audit.watch import RollBack
from iqc.train.checkpoints import checkpoint_bytes
from iqc.train.data.curriculum import with_weights
from iqc.train.data.feed import Data
from iqc.train.data.sources import Sources, check_asked, open_held_out, open_sources
from iqc.train.ema import Ema
from iqc.train.engines.engine import Engine, check_engine, layout, make_engine
from iqc.train.environment import deterministic
from iqc.train.losses import Loss, make_loss
from iqc.train.plan.layout import check_layout
from iqc.train.progress import Meter
from iqc.train.ranks import Ranks
from iqc.train.run import Run, lineage_inputs, weights_digest
from iqc.train.settings import INDECISIVE, PRECISIONS, TrainSettings
from iqc.train.stages import TABLE, TrainingStage, learning_rate, mixture_weights, peak_rate
from iqc.train.stages import stage as find_stage
from iqc.train.start import check_numbers, row_length, starting_config, starting_model
from iqc.train.step import evaluate, update


def train(
    settings: TrainSettings,
    stage: TrainingStage,
    sources: Sources,
    tokenizer: Tokenizer,
    tokenizer_files: Path,
    config: ModelConfig,
    start: Path | None,
    directory: str,
    valid: list[str],
    ranks: Ranks,
    quiet: bool = False,
) -> dict:
    """Run a stage to its end, or from where an earlier run stopped. Returns the counts for the summary.

    config, start: of `starting_config`.
    """
    begin = partial(starting_model, settings, stage, tokenizer, config, start)
    model = begin()
    config = model.config
    context = row_length(settings, stage, config)
    limits = Limits(context, config.vocab_size, tokenizer.control[PAD], pairs=stage.loss == "dpo")
    sources.check(limits, tokenizer.digest)
    mixture = with_weights(settings.mixture, sources.names, mixture_weights(stage, settings.stages or TABLE))
    opened = ExitStack()
    held_out, digests = open_held_out(valid, limits, settings.batch_rows, opened)
    steps = settings.steps or math.ceil(settings.epochs * len(sources.dataset) / settings.batch_rows)
    check_asked(mixture, sources, held_out, steps, fresh=start is None)
    peak = settings.rate or peak_rate(config.hidden_size, settings.optimizer)
    parent = parent_input(start) if start else None
    precision = settings.precision or ("bf16" if ranks.device.type == "cuda" else "fp32")
    check_engine(settings, precision)
    check_layout(context, settings.batch_rows, ranks.size, ranks.context)
    asked = asdict(settings) | {
        "start": parent.digest if parent else None,
        "steps": steps,
        "context": context,
        "rate": peak,
        "precision": precision,
        "config": config.to_hf(),
        "data": sources.asked(),
        "mixture": mixture.decisive(digests) if sources.named else None,
        "ema": settings.ema or None,
    }
    asked |= stage.asked()
    for name in INDECISIVE:
        del asked[name]
    history = partial(lineage, asked, sources.inputs, parent)
    with opened, Run(directory, asked, tokenizer_files, ranks, layout(settings)) as run:
        data = Data(
            sources, held_out, mixture, limits, seed=settings.seed, batch_rows=settings.batch_rows, steps=steps,
            rank=ranks.data_rank, ranks=ranks.data_ranks, directory=run.directory if ranks.main else None,
        )  # fmt: skip
        opened.enter_context(data)
        model.train()
        model.model.recompute = Recompute.parse(settings.recompute)
        ledger = Ledger(ranks)
        if ranks.context > 1:
            model.ring = ProcessRing(ranks.context_group, ledger if settings.audit_every else None)
        if ranks.size > 1 and model.config.num_experts:
            model.together = ranks.sum
        if ranks.device.type == "cuda":
            compile_blocks(model)
        loss = make_loss(stage, lambda: begin().to(ranks.device), ranks.context)
        size = checkpoint_bytes(config, PRECISIONS[precision][0], averaged=bool(settings.ema))
        engine = make_engine(settings, model, peak, precision, ranks)
        guard = Guard(settings, engine, ledger, data.batch_of, run.directory, run.newest)
        average = Ema(settings.ema, engine.pieces()) if settings.ema else None
        Training(
            settings, stage, precision, steps, peak, limits, engine, loss, average, data, run, guard, size, history,
            quiet,
        ).go()  # fmt: skip
    return {"updates": steps, "rows": len(sources.dataset)}


@dataclass(slots=True)
class Training:
    """The loop over updates, from the newest checkpoint to the last update."""

    settings: TrainSettings
    stage: TrainingStage
    precision: str
    steps: int
    peak: float  # of the learning rate
    limits: Limits
    engine: Engine
    loss: Loss
    average: Ema | None
    data: Data
    run: Run
    guard: Guard
    size: int  # of a checkpoint, in bytes
    history: Callable[..., dict]  # (updates done, loss, digest of the weights) -> lineage
    quiet: bool

    def go(self) -> None:
        while not self.at_the_end():
            pass
        if self.stage.checkpoint:
            self.run.name(self.stage.checkpoint, self.steps)

    def at_the_end(self) -> bool:
        """From the newest checkpoint on; False when the updates since were taken back."""
        done = self.resume()
        if done is None and not self.steps:
            self.save(0, None)
        try:
            with self.meter(done or 0) as meter, self.guard.stalls() as stalls:
                for step in range(done or 0, self.steps):
                    self.step(step, meter, stalls)
        except RollBack:
            self.engine.discard()
            return False
        return True

    def step(self, step: int, meter: Meter, stalls: Stalls) -> None:
        """The update of that number, from 0, its line of metrics and its checkpoint."""
        batch = None
        if not self.guard.watch.passed_over(step):
            stalls.at("data")
            with meter.waiting("data"):
                batch = self.data.batch(step)
        stalls.at("update")
        metrics = self.update(step, batch)
        self.run.log(metrics)
        if step + 1 == self.steps or (self.settings.save_every and (step + 1) % self.settings.save_every == 0):
            stalls.at("checkpoint")
            with meter.waiting("checkpoint"):
                self.save(step + 1, metrics.get("loss"))
        stalls.at("")
        if batch is not None and "loss" in metrics:
            meter.update(step, metrics, batch)

    def resume(self) -> int | None:
        """Take back what the newest checkpoint has; returns its number of updates, None where there is none."""
        progress, first = self.run.resume(), None
        if progress is not None:
            self.engine.load(progress.stored)
            if self.average:
                self.average.load(progress.stored)
            self.data.load(progress.state.get("mixture", {}))
            first = progress.step
            exact = ", bit for bit" if progress.exact else ""
            at = f"going on after update {first} of {self.steps}{exact}" if first < self.steps else "complete already"
            say(self.quiet, f"{self.stage.name}: {self.run.directory}: {at}")
        every = self.settings.save_every or self.steps
        self.run.need(self.size, math.ceil((self.steps - (first or 0)) / every) if self.steps else 1)
        if self.data.domains and first != self.steps:
            say(self.quiet, f"{self.stage.name}: {self.data.plan()}")
        self.data.start(self.measure)
        self.guard.resume(first or 0)
        return first

    def update(self, step: int, batch: Batch | None) -> dict:
        """The update with this rank's rows, None: it is passed over. Returns its line of metrics."""
        rate = learning_rate(self.stage, self.peak, step, self.steps)
        made = batch and update(
            self.engine,
            self.loss,
            batch,
            rate,
            micro_rows=self.settings.micro_rows,
            batch_rows=self.settings.batch_rows,
            domains=self.data.domains,
            step=step,
            checks=self.guard,
            before=self.run.copied,
        )
        if made and self.average:
            self.average.update(self.engine.pieces(), step + 1)
        line = {"rate": rate} | made if made else {"skipped": self.guard.watch.passed_over(step)}
        return {"step": step} | line | self.data.after(step + 1, self.measure)

    def meter(self, first: int) -> Meter:
        ranks, config = self.engine.ranks, self.engine.model.config
        board, place = self.settings.tensorboard, self.run.directory
        return Meter(config, self.stage.name, self.steps, first, ranks, self.precision, place, board, self.quiet)

    def measure(self, rows: Dataset) -> float:
        return evaluate(self.engine, self.loss, rows, self.limits, self.settings.batch_rows)

    def save(self, updates: int, loss: float | None) -> None:
        """Begin the checkpoint after so many updates."""
        history = partial(self.history, updates, loss)
        state = {"mixture": self.data.state()}
        pieces = chain(self.engine.pieces(), self.average.pieces() if self.average else ())
        self.run.save(updates, self.engine.model, pieces, history, updates == self.steps, state)


def parent_input(start: Path) -> Input:
    """The checkpoint that a run starts from, as lineage names it."""
    found = lineage_inputs(start)
    return Input(found["output"]["digest"] if found else weights_digest(start), lineage=found, label="checkpoint")


def lineage(asked: dict, inputs: list[Input], parent: Input | None, step: int, loss: float | None, digest: str) -> dict:
    """The lineage of a checkpoint: its data, and the checkpoint that it started from."""
    decisive = ("stage", "model", "steps", "batch_rows", "micro_rows", "context", "optimizer", "rate", "precision")
    options = {key: asked[key] for key in decisive if asked[key] is not None}
    options |= {key: asked[key] for key in ("loop", "yarn", "ema", "mixture", "schedule", "loss") if asked[key]}
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
    check_numbers(settings)
    if tokenizer is None and settings.start is None:
        raise UsageError("no tokenizer", remedy="--tokenizer DIR: the one that the sequences were packed with")
    config, start = starting_config(settings, stage)  # reads all of a checkpoint, for its checksums: once
    place = Path(tokenizer or start or "")
    loaded = load_tokenizer(place)
    if tokenizer and start and load_tokenizer(start).digest != loaded.digest:
        raise IqcError("not the tokenizer of --from", where=tokenizer, remedy="leave --tokenizer out")
    if settings.deterministic or settings.audit_every:
        deterministic()
    started = time.monotonic()
    with Ranks.start(settings.context_ranks) as ranks, open_sources(inputs) as sources:
        done = train(
            settings, stage, sources, loaded, place, config, start, directory, valid, ranks, quiet or not ranks.main
        )
    if not ranks.main:
        return
    counts = Counts(read=done["rows"], kept=done["rows"], extra=done)
    report("train", shared, counts, time.monotonic() - started)
