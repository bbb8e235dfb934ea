"""The table of training stages (stages.toml), and the learning rate of every update as a pure function."""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from iqc.errors import UsageError

WIDTH = 128  # the hidden size that PEAK_RATES are for; other widths scale them by 1/sqrt(width)
PEAK_RATES = {"adamw": 3e-3, "muon": 1e-2}  # nano: the best of 1.5, 3, 6, 12e-3 and of 3, 6, 10, 20e-3 at 250k tokens


@dataclass(slots=True, frozen=True)
class TrainingStage:
    """One row of stages.toml, where the fields are explained; `starts_from` is its `from`."""

    name: str
    starts_from: tuple[str, ...]
    context: int
    schedule: str
    rate: float
    warmup: float
    floor: float
    tail: float
    text: str


def stages() -> dict[str, TrainingStage]:
    table = tomllib.loads((Path(__file__).parent / "stages.toml").read_text("utf-8"))
    return {name: TrainingStage(name, tuple(row.pop("from")), **row) for name, row in table.items()}


def stage(name: str) -> TrainingStage:
    """The stage of that name; UsageError with the list of names when there is none."""
    table = stages()
    if name not in table:
        raise UsageError(f"no stage {name!r}", remedy=f"stages are: {', '.join(table)}")
    return table[name]


def peak_rate(hidden_size: int, optimizer: str = "adamw") -> float:
    """The default peak learning rate for a width. UsageError for an optimiser that does not exist."""
    if optimizer not in PEAK_RATES:
        raise UsageError(f"no optimizer {optimizer!r}", remedy=f"one of {', '.join(PEAK_RATES)}")
    return PEAK_RATES[optimizer] * math.sqrt(WIDTH / hidden_size)


def learning_rate(stage: TrainingStage, peak: float, step: int, steps: int) -> float:
    """The rate of update `step` (from 0) of `steps`, for a stage whose peak is `peak * stage.rate`."""
    top = peak * stage.rate
    warmup = round(stage.warmup * steps)
    if step < warmup:
        return top * (step + 1) / warmup
    tail = round(stage.tail * steps)
    span = max(1, steps - warmup - tail - 1)
    progress = min(1.0, (step - warmup) / span)
    match stage.schedule:
        case "warmup-stable":
            share = 1.0
        case "decay":  # 1 - sqrt falls fast first; best for short decays: Haegele et al. 2024, arXiv 2405.18392
            share = stage.floor + (1 - stage.floor) * (1 - math.sqrt(progress))
        case "cosine":
            share = stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * progress))
        case other:
            raise ValueError(f"unknown schedule {other!r} in stages.toml")
    return top * share
