"""The RL loop: a model and tasks in, checkpoints, metrics and rollouts out; it resumes as training does.

The tasks and the random numbers of update k depend on (seed, k) alone, and programs are judged in an isolated process
without network: where that cannot be had, the run refuses.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from iqc import __version__
from iqc.errors import BadRecord, IqcError
from iqc.evals.extract import fenced
from iqc.model.checkpoint import load_model
from iqc.model.complete import prompt_ids
from iqc.model.decoder import Decoder
from iqc.rl.grpo import Rollout, advantages, policy_loss, roll_out, to_rows
from iqc.sandbox import Sandbox
from iqc.sandbox.verdict import calls_of
from iqc.streams.lineage import Input, Stage, lineage_of
from iqc.streams.runner import Counts, Settings, StreamInput, read_records, report
from iqc.streams.stage import Record, require
from iqc.tokens.order import row_indices
from iqc.tokens.special import PAD
from iqc.tokens.tokenizer import Tokenizer
from iqc.tokens.tokenizer import load as load_tokenizer
from iqc.train.checkpoints import load_pieces, pieces_of
from iqc.train.engines.engine import CLIP
from iqc.train.optimizer import make_optimizer
from iqc.train.run import Run, find_checkpoint
from iqc.train.stages import peak_rate
from iqc.train.trainer import parent_input

RATE = 0.1  # of the width's peak rate of training
WARMUP = 5  # updates over which the rate rises: Adam's first steps are large whatever the gradient


@dataclass(slots=True)
class RlSettings:
    """What `iqc rl` is asked for."""

    start: str
    updates: int = 20
    tasks: int = 16  # an update
    group: int = 8  # answers of a task
    minibatches: int = 2  # optimiser steps an update; from the second on the clip acts
    max_new_tokens: int = 64
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    reward: str = "fraction"  # of the tests; or passed: all of them
    rate: float = 0.0  # 0: by width
    save_every: int = 0  # updates between checkpoints; 0: only at the end
    allow_same_process: bool = False
    unsafe_exec: bool = False
    seed: int = 0


def check_tasks(tasks: Sequence[Record], allow_same_process: bool) -> None:
    """Refuse tasks whose tests run beside the code that they judge: such code can forge its verdict."""
    if not tasks:
        raise IqcError("no tasks", remedy="iqc tasks makes some")
    known: dict[str, Record] = {}
    for task in tasks:
        if known.setdefault(require(task, "id"), task) != task:
            raise BadRecord(f"two different tasks have the id {task['id']}", remedy="give every task an id of its own")
        if task.get("language", "python") != "python":
            raise BadRecord(f"task {task['id']}: no runner for {task['language']!r}", remedy="only python is run")
        if calls_of(task) is None and not allow_same_process:
            raise IqcError(
                f"task {task['id']}: its tests run in the process of the code that they judge",
                remedy="give tests as calls with expected values, or --allow-same-process",
            )


def judge(rollouts: list[Rollout], sandbox: Sandbox) -> None:
    """Fill in rewards; the same program for the same task is run once."""
    programs = {(rollout.task["id"], rollout.text): rollout for rollout in rollouts}

    def verdict(item: Rollout):
        return sandbox.run_tests(item.task, fenced(item.text) or item.text)

    verdicts = dict(zip(programs, sandbox.map(verdict, programs.values())))
    for rollout in rollouts:
        found = verdicts[rollout.task["id"], rollout.text]
        rollout.reward, rollout.passed = found.fraction, found.passed


def update(
    model: Decoder, optimizer: torch.optim.Optimizer, rollouts: list[Rollout], settings: RlSettings, pad_id: int
) -> dict[str, float]:
    """The optimiser steps of one update, on the rollouts that have an advantage."""
    useful = [rollout for rollout in rollouts if rollout.advantage != 0.0]
    metrics = {"useful": len(useful) / len(rollouts), "clip_fraction": 0.0, "mismatch": 0.0, "grad_norm": 0.0}
    parts = [useful[number :: settings.minibatches] for number in range(settings.minibatches)]
    total = sum(len(rollout.answer) for rollout in useful)
    for number, part in enumerate(parts):
        if not part:
            continue
        tokens = float(sum(len(rollout.answer) for rollout in part))
        optimizer.zero_grad(set_to_none=True)
        rows = to_rows(part, pad_id, model.lm_head.weight.device)
        loss, sums = policy_loss(model, rows, settings.clip_low, settings.clip_high, tokens)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
        optimizer.step()
        metrics["grad_norm"] = max(metrics["grad_norm"], norm)
        metrics["clip_fraction"] += sums["clipped"] / total
        if number == 0:  # before any step: how far training's probabilities are from those of sampling
            metrics["mismatch"] = sums["moved"] / tokens
    return metrics


def train(
    settings: RlSettings,
    tasks: list[Record],
    inputs: list[Input],
    start: Path,
    tokenizer: Tokenizer,
    directory: str,
    quiet: bool,
) -> dict:
    """Run to the last update, or on from where an earlier run stopped."""
    model = load_model(start)
    parent = parent_input(start)
    for task in tasks:  # a prompt that does not fit is found before the first update
        prompt_ids(task, tokenizer, model.config.max_position_embeddings - settings.max_new_tokens)
    rate = settings.rate or RATE * peak_rate(model.config.hidden_size)
    asked = asdict(settings) | {
        "stage": "rl",
        "start": parent.digest,
        "rate": rate,
        "data": [item.digest for item in inputs],
    }
    del asked["save_every"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Sandbox(unsafe=settings.unsafe_exec) as sandbox, Run(directory, asked, start) as run:
        progress, first = run.resume(), 0
        if progress is not None:
            model, first = progress.model, progress.step
            say(quiet, f"going on after update {first} of {settings.updates}")
        model.to(device).train()
        optimizer = make_optimizer(model, rate, "adamw")
        if progress is not None:
            load_pieces(model, optimizer, progress.stored)
        for step in range(first, settings.updates):
            run.copied()
            started = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARMUP)
            chosen = [tasks[i] for i in row_indices(len(tasks), settings.seed, step * settings.tasks, settings.tasks)]
            rollouts = roll_out(
                model,
                tokenizer,
                chosen,
                settings.group,
                settings.max_new_tokens,
                settings.temperature,
                settings.seed * 1_000_003 + step,
            )
            judge(rollouts, sandbox)
            rewards = [float(r.passed) if settings.reward == "passed" else r.reward for r in rollouts]
            for rollout, gain in zip(rollouts, advantages(rewards, settings.group)):
                rollout.advantage = float(gain)
            metrics = {
                "step": step,
                "reward": float(np.mean([rollout.reward for rollout in rollouts])),
                "pass_rate": float(np.mean([rollout.passed for rollout in rollouts])),
                "truncated": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
                "tokens": sum(len(rollout.answer) for rollout in rollouts),
            } | update(model, optimizer, rollouts, settings, tokenizer.control[PAD])
            run.log(metrics)
            spent = time.monotonic() - started
            say(
                quiet,
                f"update {step + 1}/{settings.updates}, reward {metrics['reward']:.3f}, "
                f"pass rate {metrics['pass_rate']:.3f}, {spent:.1f} s",
            )
            done = step + 1 == settings.updates
            if done or (settings.save_every and (step + 1) % settings.save_every == 0):
                made = partial(lineage, asked, inputs, parent, step + 1, metrics["reward"])
                run.save(step + 1, model, pieces_of(model, optimizer), made, done)
    return {"updates": settings.updates, "tasks": len(tasks)}


def lineage(asked: dict, inputs: list[Input], parent: Input, step: int, reward: float, digest: str) -> dict:
    options = {key: value for key, value in asked.items() if key not in ("stage", "start", "data", "seed")}
    output = {"digest": digest, "updates": step, "reward": reward}
    return lineage_of(Stage("rl", __version__, options, asked["seed"]), [*inputs, parent], {"updates": step}, output)


def run_rl(settings: RlSettings, names: list[str], directory: str, summary: str | None, quiet: bool) -> None:
    """`iqc rl`: read the tasks, train, report."""
    started = time.monotonic()
    shared = Settings(inputs=names, summary=summary, quiet=quiet)
    start = find_checkpoint(settings.start)
    source = StreamInput(names)
    tasks = list(read_records(source))
    check_tasks(tasks, settings.allow_same_process)
    done = train(settings, tasks, source.results(), start, load_tokenizer(start), directory, quiet)
    counts = Counts(read=len(tasks), kept=len(tasks), extra=done)
    report("rl", shared, counts, time.monotonic() - started)


def say(quiet: bool, text: str) -> None:
    if not quiet:
        print(f"iqc rl: {text}", file=sys.stderr)
