"""The training loop: packed rows in, checkpoints and metrics out, on one device, on a GPU with compiled blocks.

An update's loss is the sum over its predicted tokens divided by their number in the whole update, so micro-batches
change memory, not the result. The rows of update k depend on (seed, k) alone and the rate on k alone, there is no
dropout: a run that is killed and started again gives the losses of one that was not, bit for bit on the same CPU, to
rounding on a GPU.
"""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from iqc import __version__
from iqc.errors import IqcError, UsageError
from iqc.model.checkpoint import load_model
from iqc.model.compiled import compile_blocks
from iqc.model.config import ModelConfig, extend_context, preset
from iqc.model.decoder import Decoder, Recompute
from iqc.model.fold import fold
from iqc.streams.lineage import Input, Stage, lineage_of
from iqc.streams.runner import Counts, Settings, report
from iqc.tokens.dataset import TRIE, Dataset, open_dataset
from iqc.tokens.loader import Batch, Limits, batches, in_order
from iqc.tokens.special import EOS, PAD
from iqc.tokens.tokenizer import Tokenizer
from iqc.tokens.tokenizer import load as load_tokenizer
from iqc.train.adamw import AdamW
from iqc.train.muon import Muon
from iqc.train.run import Run, find_checkpoint, lineage_inputs, load_named_state, stage_of, weights_digest
from iqc.train.stages import TrainingStage, learning_rate, peak_rate
from iqc.train.stages import stage as find_stage

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1  # on matrices; norms, the loop's gates and the embedding go without
CLIP = 1.0  # the norm that gradients are scaled down to
# Of weights, gradients and moments; and of the matrix products, where it is another (autocast).
PRECISIONS = {
    "fp32": (torch.float32, None),
    "bf16": (torch.float32, torch.bfloat16),
    "bf16-pure": (torch.bfloat16, None),
}


@dataclass(slots=True)
class TrainSettings:
    """What `iqc train` is asked for. `steps` 0 means `epochs` passes over the rows."""

    stage: str
    model: str | None  # a preset, for a stage that starts from fresh weights
    start: str | None  # a checkpoint
    steps: int = 0
    epochs: float = 1.0
    batch_rows: int = 16
    micro_rows: int = 0  # rows at a time through the model; 0: all
    context: int = 0  # 0: the smaller of the stage's and the model's
    optimizer: str = "adamw"  # or muon
    rate: float = 0.0  # peak learning rate; 0: by width and optimiser
    save_every: int = 0  # updates between checkpoints; 0: only at the end
    seed: int = 0
    precision: str = ""  # one of PRECISIONS; "": bf16 on a GPU, fp32 otherwise
    recompute: str = "none"  # Recompute.parse
    loop: bool = False  # fold `start`, a dense model, into a looped one
    yarn: float = 0.0  # factor by which YaRN stretches the context of `start`; 0: not


def make_optimizer(model: Decoder, rate: float, kind: str) -> torch.optim.Optimizer:
    """`adamw`, or `muon`: Muon for the matrices of the blocks and AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    tables: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "gate_projections" in name:
            vectors.append(parameter)
        else:
            (matrices if ".layers." in name else tables).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY, "muon": kind == "muon"},
        {"params": [model.lm_head.weight], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in tables if p is not model.lm_head.weight] + vectors, "weight_decay": 0.0},
    ]
    return (Muon if kind == "muon" else AdamW)(groups, lr=rate, betas=BETAS)


def starting_model(settings: TrainSettings, stage: TrainingStage, tokenizer: Tokenizer) -> tuple[Decoder, Path | None]:
    """Fresh weights, or those of the checkpoint that the stage starts from."""
    if settings.start is None:
        if settings.yarn:
            raise UsageError("--yarn stretches a trained model", remedy="--from the run or checkpoint to start from")
        if settings.loop:
            raise UsageError("--loop folds a trained model", remedy="--from a dense one, or --model nano-loop")
        if stage.starts_from:
            raise UsageError(
                f"stage {stage.name} starts from a checkpoint", remedy=f"--from one of {', '.join(stage.starts_from)}"
            )
        if settings.model is None:
            raise UsageError("no model", remedy="--model nano-loop, or another preset")
        config = preset(settings.model)
        check_vocabulary(config, tokenizer, f"iqc tokenizer train --vocab-size {config.vocab_size}")
        config.eos_token_id = [tokenizer.control[EOS], tokenizer.control[PAD]]
        config.pad_token_id = tokenizer.control[PAD]
        return Decoder(config, seed=settings.seed), None
    checkpoint = find_checkpoint(settings.start)
    made_by = stage_of(checkpoint)
    if made_by is not None and made_by not in (*stage.starts_from, stage.name):
        raise IqcError(
            f"a checkpoint of stage {made_by}",
            where=str(checkpoint),
            remedy=f"{stage.name} starts from {' or '.join(stage.starts_from) or 'fresh weights'}",
        )
    model = load_model(checkpoint)
    check_vocabulary(model.config, tokenizer, "use the tokenizer of the checkpoint")
    if settings.loop:
        model = fold(model)
    if settings.yarn:
        extend_context(model.config, settings.yarn)
    return model, checkpoint


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, remedy: str) -> None:
    if config.vocab_size != tokenizer.vocab_size:
        raise IqcError(
            f"a tokenizer of {tokenizer.vocab_size} tokens for a model of {config.vocab_size}", remedy=remedy
        )


def check_rows(inputs: list[Input], limits: Limits) -> None:
    """What lineage tells of the rows before one is read: they must fit, and there must be something to learn.

    Rows of which it tells nothing are checked when they are read.
    """
    packed = [node["counts"] for item in inputs for node in packings(item)]
    for counts in packed:
        if counts.get("longest", 0) > limits.context:
            raise IqcError(
                f"rows of {counts['longest']} tokens for a context of {limits.context}",
                remedy=f"iqc pack --context {limits.context}",
            )
        if counts.get("tries"):
            raise IqcError("rows with tries, which are not trained on", remedy=TRIE)
    if packed and all(counts.get("learnt") == 0 for counts in packed):
        raise IqcError("rows without a token to learn", remedy="look at the loss of the records that were packed")


def packings(item: Input) -> Iterator[dict]:
    """The stages that packed the rows of an input, as its lineage has them: those of a mixture are several.

    What came before a packing is left out: a model that wrote the text may have had another tokenizer.
    """
    stages = item.lineage["stages"] if item.lineage else {}
    names = [item.lineage["stage"]] if item.lineage else []
    for name in names:
        if stages[name]["command"] == "pack":
            yield stages[name]
        else:
            before = [source["stage"] for source in stages[name]["inputs"] if "stage" in source]
            names += [stage for stage in before if stage not in names]


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    lengths = [[int(n) for n in row] for row in batch.lengths]
    return torch.from_numpy(batch.tokens).to(device), lengths, torch.from_numpy(batch.weights).to(device)


def micro_batches(batch: Batch, rows: int) -> Iterator[Batch]:
    size = rows or len(batch.tokens)
    for start in range(0, len(batch.tokens), size):
        part = slice(start, start + size)
        yield Batch(batch.tokens[part], batch.weights[part], batch.lengths[part])


def products_in(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """A context in which the model's matrix products are in another precision than its weights; None: not."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def update(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rate: float,
    micro_rows: int = 0,
    products: torch.dtype | None = None,
) -> dict[str, float]:
    """One update; returns the mean loss in nats a token, the number of predicted tokens and the gradient norm.

    With experts the load-balancing loss too, by micro-batch: it is no part of the loss that is returned.
    """
    device = model.lm_head.weight.device
    for group in optimizer.param_groups:
        group["lr"] = rate
    count = float(np.sum(batch.weights, dtype=np.float64))
    if count <= 0:
        raise IqcError("an update without a token to learn", remedy="take a larger --batch-rows")
    total, balance = torch.zeros(2, dtype=torch.float64, device=device)
    optimizer.zero_grad(set_to_none=True)
    for part in micro_batches(batch, micro_rows):
        with products_in(products, device):
            penalised, weight = model.loss(*to_device(part, device))
        (penalised / count).backward()
        total += penalised.detach()
        balance += model.balance * weight
    gradient = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    norm, balance = gradient.item(), balance.item()  # a GPU is waited for here, and nowhere before
    loss = (total.item() - model.config.router_aux_loss_coef * balance) / count
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise IqcError(
            f"loss {loss}, gradient norm {norm}", remedy="lower --rate, or look for damaged rows in the data"
        )
    metrics = {"loss": loss, "tokens": count, "grad_norm": norm}
    return metrics | ({"balance": balance / count} if model.config.num_experts else {})


@torch.no_grad()
def evaluate(model: Decoder, dataset: Dataset, limits: Limits, rows: int, products: torch.dtype | None = None) -> float:
    """The mean loss in nats a token over a whole dataset, `rows` at a time."""
    model.eval()
    device = model.lm_head.weight.device
    total = count = 0.0
    for part in in_order(dataset, limits, rows):
        with products_in(products, device):
            nll, weight = model.loss(*to_device(part, device))
        total, count = total + nll.item(), count + weight.item()
    model.train()
    return total / count


def train(
    settings: TrainSettings,
    stage: TrainingStage,
    dataset: Dataset,
    inputs: list[Input],
    tokenizer: Tokenizer,
    tokenizer_files: Path,
    directory: str,
    valid: Dataset | None = None,
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
    limits = Limits(context, config.vocab_size, tokenizer.control[PAD])
    check_rows(inputs, limits)
    if valid is not None and not any([batch.weights.any() for batch in in_order(valid, limits, settings.batch_rows)]):
        raise IqcError("held-out rows without a token to learn", remedy="give another --valid")
    steps = settings.steps or math.ceil(settings.epochs * len(dataset) / settings.batch_rows)
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
        "data": [item.digest for item in inputs],
    }
    del asked["save_every"], asked["recompute"]
    with Run(directory, asked, tokenizer_files) as run, ExitStack() as stack:
        progress = run.resume()
        first = 0
        if progress is not None:
            model, first = progress.model, progress.step
            say(quiet, f"{stage.name}: going on after update {first} of {steps}")
        model.to(device, dtype).train()
        model.model.recompute = Recompute.parse(settings.recompute)
        if device.type == "cuda":
            compile_blocks(model)
        optimizer = make_optimizer(model, peak, settings.optimizer)
        if progress is not None:
            load_named_state(model, optimizer, progress.optimizer_state)
        source = stack.enter_context(
            closing(batches(dataset, limits, seed=settings.seed, batch_rows=settings.batch_rows, start=first))
        )
        started, seen = time.monotonic(), 0.0
        for step in range(first, steps):
            rate = learning_rate(stage, peak, step, steps)
            made = update(model, optimizer, next(source), rate, settings.micro_rows, products)
            metrics = {"step": step, "rate": rate} | made
            if valid is not None and step + 1 == steps:
                metrics["valid_loss"] = evaluate(model, valid, limits, settings.batch_rows, products)
            run.log(metrics)
            seen += metrics["tokens"]
            if (step + 1) % max(1, steps // 10) == 0:
                speed = seen / (time.monotonic() - started)
                at = f"update {step + 1}/{steps}, loss {metrics['loss']:.3f}, {speed:,.0f} tokens/s"
                say(quiet, f"{stage.name}: {at}")
            done = step + 1 == steps
            if done or (settings.save_every and (step + 1) % settings.save_every == 0):
                history = partial(lineage, asked, inputs, parent, step + 1, metrics["loss"])
                run.save(step + 1, model, optimizer, history, done)
        if progress is not None and first == steps:
            say(quiet, f"{stage.name}: {directory} is complete already")
        elif steps == 0:
            run.save(0, model, optimizer, partial(lineage, asked, inputs, parent, 0, None), True)
    return {"updates": steps, "rows": len(dataset)}


def parent_input(start: Path) -> Input:
    """The checkpoint that a run starts from, as lineage names it."""
    found = lineage_inputs(start)
    return Input(found["output"]["digest"] if found else weights_digest(start), lineage=found, label="checkpoint")


def lineage(asked: dict, inputs: list[Input], parent: Input | None, step: int, loss: float | None, digest: str) -> dict:
    """The lineage of a checkpoint: its data, and the checkpoint that it started from."""
    decisive = ("stage", "model", "steps", "batch_rows", "micro_rows", "context", "optimizer", "rate", "precision")
    options = {key: asked[key] for key in decisive if asked[key] is not None}
    options |= {key: asked[key] for key in ("loop", "yarn") if asked[key]}
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
    valid: str | None,
    summary: str | None,
    quiet: bool,
) -> None:
    """`iqc train`: read the sequences, train, report."""
    shared = Settings(inputs=inputs, summary=summary, quiet=quiet)
    stage = find_stage(settings.stage)
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
    started = time.monotonic()
    with ExitStack() as stack:
        dataset, used = open_dataset(inputs)
        stack.enter_context(dataset)
        check_tokenizer(used, loaded.digest)
        held_out = stack.enter_context(open_dataset([valid])[0]) if valid else None
        done = train(settings, stage, dataset, used, loaded, place, directory, held_out, quiet)
    counts = Counts(read=done["rows"], kept=done["rows"], extra=done)
    report("train", shared, counts, time.monotonic() - started)


def check_tokenizer(inputs: list[Input], digest: str) -> None:
    """The sequences must have been packed with this tokenizer, where their lineage tells."""
    for node in (node for item in inputs for node in packings(item)):
        packed_with = node["options"].get("tokenizer", digest)
        if packed_with != digest:
            raise IqcError(
                f"sequences packed with tokenizer {packed_with[:12]}, the model's is {digest[:12]}",
                remedy="pack them again with the tokenizer of the model",
            )
