"""What a run's mixture is asked to be: the shares of its sources from update to update, known before the first.

Sources are weighted as `iqc mix` weights them, and by its code, with rows for the unit: rows are as good as full, so a
share of the rows is one of the tokens. Without weights each source has its share by its rows, and all end together. A
source that replays an earlier stage has a share of the whole, always.

A curriculum is phases, each a share of the run with sources of its own:

    --phase 0.4:easy --phase 0.4:easy,medium=2 --phase 0.2:easy=1,medium=2,hard=4

Difficulty belongs to a source, not to a row: a packed row holds documents of any difficulty. Part the documents before
they are packed (by a score, by the length of a solution, by how often a model solves a task), and pack the easy, the
medium and the hard ones each for itself. The published three phases (IQuest-Coder-V1, section 4.1) have no numbers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate

from iqc.errors import UsageError
from iqc.tokens.mix.lanes import Lane
from iqc.tokens.mix.plan import plan
from iqc.tokens.mix.recipe import Phase, Recipe, Wish
from iqc.train.data.mixture import UNITS, proportions

ANY = 1e9  # epochs: a source may be repeated as often as its share wants


@dataclass(slots=True)
class MixtureSettings:
    """What is asked for, by the names of sources. Nothing: every source by its rows."""

    weights: dict[str, float] = field(default_factory=dict)
    replay: dict[str, float] = field(default_factory=dict)  # shares of the whole
    phases: list[str] = field(default_factory=list)  # SHARE:NAME[=WEIGHT],...
    valid_every: int = 0  # updates between measurements of the held-out loss; 0: at the end
    adapt: bool = False  # change the weights at each of them
    reference: dict[str, float] = field(default_factory=dict)  # the losses, in nats, that they are adapted towards
    least: float = 0.01  # share of the run that a source keeps when weights are adapted
    most: float = 1.0

    def decisive(self, held_out: Mapping[str, str | None]) -> dict:
        """What of it decides the rows of a run, with the digests of the held-out ones where weights follow them."""
        found: dict = {"weights": self.weights, "replay": self.replay, "phases": self.phases}
        if self.adapt:
            found |= {"valid_every": self.valid_every, "reference": self.reference, "held_out": held_out}
            found |= {"least": self.least, "most": self.most}
        return {name: value for name, value in found.items() if value not in ({}, [])}


def with_weights(asked: MixtureSettings, names: Iterable[str], weights: Mapping[str, float]) -> MixtureSettings:
    """With these weights, those of a stage, where none are asked for and they have all sources that do not replay."""
    needed = [name for name in names if name not in asked.replay]
    if asked.weights or asked.phases or not all(name in weights for name in needed):
        return asked
    return replace(asked, weights={name: weights[name] for name in needed})


def schedule(
    asked: MixtureSettings, rows: Mapping[str, int], steps: int, batch_rows: int
) -> list[tuple[int, list[int]]]:
    """(first update, the proportions of the sources) of every phase; of a run without phases there is one.

    `rows`: how many each source has. UsageError for what does not go together.
    """
    recipe = replace(recipe_of(asked, rows), total=max(1, steps * batch_rows))
    amounts = plan(recipe, [Lane(name, records=count, amount=count) for name, count in rows.items()]).phases
    shares = [phase.share for phase in recipe.phases] or [1.0]
    starts = [round(steps * done / sum(shares)) for done in accumulate([0.0, *shares[:-1]])]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], steps]), 1):
        if start >= end and len(shares) > 1:
            raise UsageError(f"phase {number} of {steps} updates has none", remedy="give it a larger share, or --steps")
    return [(start, whole_numbers(row)) for start, row in zip(starts, amounts)]


def whole_numbers(amounts: list[float]) -> list[int]:
    """Proportions of amounts, which come from a division: the simple fractions that they are."""
    whole = sum(amounts)
    return proportions([Fraction(amount / whole).limit_denominator(UNITS) for amount in amounts])


def recipe_of(asked: MixtureSettings, rows: Mapping[str, int]) -> Recipe:
    """As `iqc mix` has it. UsageError: an unknown source, or one that is asked for in two ways."""
    recipe = Recipe({name: Wish() for name in rows}, by="records", max_epochs=ANY)
    for kind, numbers in (("weight", asked.weights), ("replay", asked.replay)):
        for name, number in numbers.items():
            if kind == "replay" and name in asked.weights:
                raise UsageError(f"source {name} has a weight and a share of replay", remedy="leave one of them out")
            if kind == "replay" and not 0 < number < 1:
                raise UsageError(f"--replay {name}={number:g}", remedy="a share of the whole, between 0 and 1")
            recipe.replace_wish(name, kind, number)
    recipe.phases = [phase_of(text, recipe) for text in asked.phases]
    whole = sum(phase.share for phase in recipe.phases)
    if recipe.phases and abs(whole - 1) > 0.01:
        raise UsageError(f"phases of {whole:g} of the run", remedy="--phase SHARE:NAME: the shares sum up to 1")
    for name, wish in recipe.wishes.items():
        if recipe.phases and wish.replay is None and not any(phase.weights[name] for phase in recipe.phases):
            raise UsageError(f"source {name} is in no phase", remedy=f"--phase SHARE:{name}, or leave it out")
    return recipe.checked({name: name for name in rows})


def phase_of(text: str, recipe: Recipe) -> Phase:
    """`SHARE:NAME[=WEIGHT],...`: sources that are not named have nothing in it, but for those that replay."""
    share, _, rest = text.partition(":")
    weights = {name: 0.0 for name, wish in recipe.wishes.items() if wish.replay is None}
    named = set()
    try:
        for part in rest.split(","):
            name, _, weight = part.partition("=")
            if name not in recipe.wishes:
                raise UsageError(f"--phase {text}: no source {name}", remedy=f"sources are {', '.join(recipe.wishes)}")
            if name not in weights:
                raise UsageError(f"--phase {text}: {name} replays, with one share in all phases", remedy="leave it out")
            if name in named:
                raise UsageError(f"--phase {text}: {name} is named twice", remedy="give each name once")
            named.add(name)
            weights[name] = float(weight or 1)
        phase = Phase(float(share), weights)
    except ValueError:
        phase = Phase(0.0)
    numbers = [phase.share, *phase.weights.values()]
    if not phase.share > 0 or not any(phase.weights.values()) or not all(0 <= number < 1e15 for number in numbers):
        raise UsageError(f"--phase {text}", remedy="a share of the run and sources: --phase 0.4:easy=2,medium")
    return phase
