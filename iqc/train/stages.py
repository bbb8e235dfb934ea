"""The table of training stages (stages.toml), and the learning rate of every update as a pure function."""

import math
import tomllib
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pathlib import Path

from iqc.errors import IqcError, UsageError
from iqc.tokens.mix.recipe_file import RecipeFile

WIDTH = 128  # the hidden size that PEAK_RATES are for; other widths scale them by 1/sqrt(width)
PEAK_RATES = {"adamw": 3e-3, "muon": 1e-2}  # nano: the best of 1.5, 3, 6, 12e-3 and of 3, 6, 10, 20e-3 at 250k tokens
TABLE = Path(__file__).with_suffix(".toml")
SCHEDULES = ("wsd", "cosine", "root-steps")
LOSSES = ("next-token", "dpo")
FIRST_STEP = 0.4  # of root-steps: 400 of the 1,000 billion tokens that Seed-Coder goes on for


@dataclass(slots=True, frozen=True)
class TrainingStage:
    """One row of the table, whose head says what the fields are; `starts_from` is its `from`."""

    name: str
    text: str
    starts_from: tuple[str, ...]
    checkpoint: str
    context: int
    schedule: str
    rate: float
    warmup: float
    floor: float
    decay: float = 0.0
    tail: float = 0.0
    loss: str = "next-token"
    z_loss: float = 0.0
    beta: float = 0.1
    sft: float = 0.0
    mixture: str = ""
    fim: float = 0.0
    yarn: float = 0.0

    def asked(self) -> dict[str, str | None]:
        """What of the row decides the result of a run beside its context, to be recorded: another is another run. The
        loss of runs that record none is that of the next token alone."""

        def text(kind: str, *names: str) -> str:
            return " ".join([kind, *(f"{name} {getattr(self, name):g}" for name in names if getattr(self, name))])

        terms = ("beta", "sft") if self.loss == "dpo" else ("z_loss",)
        schedule = text(self.schedule, "rate", "warmup", "decay", "tail", "floor")
        loss = text(self.loss, *terms)
        return {"schedule": schedule, "loss": loss if loss != "next-token" else None}

    def allowed(self) -> tuple[str, ...]:
        """The stages whose checkpoints it starts from: a stage goes on from its own, too."""
        return (*self.starts_from, self.name)


def stages(path: str | Path = TABLE) -> dict[str, TrainingStage]:
    """A table by name, in its order. UsageError, with the stage and the field, where it is none."""
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"no table of stages: {error}", where=str(path), remedy=f"one as {TABLE} is") from None
    found: dict[str, TrainingStage] = {}
    for name, row in table.items():
        found[name] = _row(name, row, tuple(found), str(path))
    return found


def stage(name: str, path: str | Path = TABLE) -> TrainingStage:
    """The stage of that name; UsageError with the list of names when there is none."""
    table = stages(path)
    if name not in table:
        raise UsageError(f"no stage {name!r}", remedy=f"stages are: {', '.join(table)}")
    return table[name]


def _row(name: str, row: object, before: tuple[str, ...], where: str) -> TrainingStage:
    def wrong(what: str, remedy: str) -> UsageError:
        return UsageError(f"stage {name}: {what}", where=where, remedy=remedy)

    if not isinstance(row, dict):
        raise wrong("is no table", f"[{name}]")
    kinds = {field.name: field for field in fields(TrainingStage)}
    given = {"starts_from" if key == "from" else key: value for key, value in row.items()}
    for key, value in given.items():
        if key not in kinds or key == "name":
            raise wrong(f"{key} is unknown", f"known are {', '.join(kinds)}".replace("name, ", "", 1))
        if kinds[key].type is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise wrong(f"{key} is {value!r}", "a number from 0 on")
        if kinds[key].type is str and not isinstance(value, str):
            raise wrong(f"{key} is {value!r}", "a text")
    for key, field in kinds.items():
        if field.default is MISSING and key not in given and key != "name":
            raise wrong(f"has no {'from' if key == 'starts_from' else key}", "the head of the table says what it is")
    starts = given["starts_from"]
    if not isinstance(starts, list) or not all(one in before for one in starts):
        raise wrong(f"from is {starts!r}", f"a list of stages that come before it: {', '.join(before) or 'none do'}")
    if type(given["context"]) is not int or given["context"] < 2:
        raise wrong(f"context is {given['context']!r}", "a number of tokens from 2 on")
    if not given["checkpoint"].isprintable() or "/" in given["checkpoint"] or given["checkpoint"].startswith("step-"):
        raise wrong(f"checkpoint is {given['checkpoint']!r}", "a name, but none such as step-1")
    found = TrainingStage(name, **given | {"starts_from": tuple(starts)})
    for key, values in (("schedule", SCHEDULES), ("loss", LOSSES)):
        if getattr(found, key) not in values:
            raise wrong(f"{key} is {getattr(found, key)!r}", f"one of {', '.join(values)}")
    if found.warmup + found.decay > 1 or found.warmup + found.tail > 1 or found.floor > 1 or found.fim > 1:
        raise wrong("shares above 1", "warmup and decay or tail together, floor and fim: at most 1")
    return found


def mixture_file(stage: TrainingStage, table: str | Path = TABLE) -> Path | None:
    """The recipe of `iqc mix` that a stage names, beside the table or among those of this package; None: it has none.

    IqcError when there is no such file.
    """
    if not stage.mixture:
        return None
    for place in (Path(table).parent, *map(Path, import_module("iqc.recipes").__path__)):
        if (place / stage.mixture).is_file():
            return place / stage.mixture
    raise IqcError(f"stage {stage.name}: no {stage.mixture}", where=str(table), remedy="put it beside the table")


def mixture_weights(stage: TrainingStage, table: str | Path = TABLE) -> dict[str, float]:
    """The weights of a stage's sources, by name; empty when it has no mixture."""
    path = mixture_file(stage, table)
    wishes = RecipeFile(str(path)).recipe()[0].wishes if path else {}
    return {name: 1.0 if wish.weight is None else wish.weight for name, wish in wishes.items()}


def table_text(path: str | Path = TABLE) -> str:
    """A table as columns: what decides how a stage is run, one a line."""
    head = ("stage", "from", "checkpoint", "context", "mixture", "fim", "loss", "schedule", "rate", "what for")
    lines = [head]
    for row in stages(path).values():
        starts, numbers = "|".join(row.starts_from) or "-", (row.schedule, f"{row.rate:g}")
        lines.append((row.name, starts, row.checkpoint, str(row.context), row.mixture or "-", f"{row.fim:g}", row.loss,
                      *numbers, row.text))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


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
    return top * {"wsd": wsd, "cosine": cosine, "root-steps": root_steps}[stage.schedule](stage, step, steps, warmup)


def wsd(stage: TrainingStage, step: int, steps: int, warmup: int) -> float:
    """The peak until the decay, then 1 - sqrt of what is done of it: fast first, best for short decays (Haegele et al.
    2024, arXiv 2405.18392)."""
    first = max(warmup, steps - round(stage.decay * steps))
    if step < first:
        return 1.0
    done = min(1.0, (step - first) / max(1, steps - first - 1))
    return stage.floor + (1 - stage.floor) * (1 - math.sqrt(done))


def cosine(stage: TrainingStage, step: int, steps: int, warmup: int) -> float:
    """Half a cosine from the peak to the floor, and the floor for the tail."""
    done = min(1.0, (step - warmup) / max(1, steps - warmup - round(stage.tail * steps) - 1))
    return stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * done))


def root_steps(stage: TrainingStage, step: int, steps: int, warmup: int) -> float:
    """Seed-Coder's way down in continued pre-training (arXiv 2506.03524): its rate of 3e-4 is divided by sqrt(10) for
    400 billion tokens and is 3e-5 for 600 billion more; sqrt(floor) and floor here."""
    return math.sqrt(stage.floor) if step < max(warmup, round(FIRST_STEP * steps)) else stage.floor
