"""What a mixture is to hold, as it is asked for.

A source has a weight among the others, or is given so many epochs, or replays an earlier stage as a fixed share of the
whole output. Inside a source the languages and the bands of difficulty have shares. A phase is a part of the output
with weights and shares of its own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path

from iqc.errors import UsageError

REST = "*"  # stands for every language that is not named, and for records without one
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMGBT]?)")


@dataclass(slots=True)
class Wish:
    """How much of one source is wanted: at most one of the first three is given; none means the weight 1."""

    weight: float | None = None
    epochs: float | None = None
    replay: float | None = None  # share of the whole output
    max_epochs: float | None = None  # instead of the recipe's
    languages: dict[str, float] = field(default_factory=dict)  # shares inside this source


@dataclass(slots=True)
class Phase:
    """A part of the output. `weights` replace those of the sources; `difficulty` has the shares of the bands."""

    share: float
    weights: dict[str, float] = field(default_factory=dict)
    difficulty: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Difficulty:
    """Bands of a score: a record belongs to the band number k when k of the bounds are not above its score.

    With `quantiles` the bounds are shares of the records that have a score, and the scores there are the bounds.
    """

    field: str  # dotted: metadata.score
    bounds: list[float]
    bands: list[str]  # one more than bounds, from easy to hard
    quantiles: bool = False


@dataclass(slots=True)
class Recipe:
    """A mixture as it was asked for; amounts are in the unit of `by`."""

    wishes: dict[str, Wish]  # by the name of the source, in their order
    by: str = "bytes"  # records, bytes or tokens
    total: int | None = None  # until the first source is used up
    max_epochs: float = 1.0
    short: str = "fail"  # or rescale: what becomes of a source that would be given more often than that
    temperature: float | None = None
    languages: dict[str, float] = field(default_factory=dict)  # shares in the whole output
    language_temperature: float | None = None
    difficulty: Difficulty | None = None
    phases: list[Phase] = field(default_factory=list)

    def parted_by_language(self, name: str) -> bool:
        """Its own proportions, or those of the whole, which are of the sources with weights."""
        wish = self.wishes[name]
        weighted = wish.replay is None and wish.epochs is None
        return bool(wish.languages) or (weighted and bool(self.languages or self.language_temperature))

    def replace_wish(self, name: str, kind: str, number: float) -> None:
        """Give a source a weight, epochs or a replay share instead of what it had. UsageError: an unknown source."""
        if name not in self.wishes:
            remedy = f"sources are {', '.join(self.wishes)}"
            raise UsageError(f"--{kind} {name}={number:g}: no source {name}", remedy=remedy)
        wish = self.wishes[name]
        wish.weight = wish.epochs = wish.replay = None
        setattr(wish, kind, number)

    def checked(self, paths: dict[str, str]) -> "Recipe":
        """Itself. UsageError: parts that do not go together, a source without a path."""
        for name, wish in self.wishes.items():
            if name not in paths and wish.weight != 0:
                raise UsageError(f"source {name} has no file", remedy=f"name it as INPUT: {name}=FILE")
            if wish.languages and wish.weight is None and (wish.epochs, wish.replay) != (None, None):
                raise UsageError(
                    f"source {name} has languages without a weight", remedy="epochs and replay take all of it"
                )
        if self.temperature and any(wish.weight is not None for wish in self.wishes.values()):
            raise UsageError(
                "a temperature and weights", remedy="a temperature makes the weights: leave one of them out"
            )
        if self.languages and not any(self.languages.values()):
            raise UsageError("the shares of all languages are 0", remedy="give one a share, or leave them out")
        if self.languages and self.language_temperature:
            raise UsageError("languages and a temperature of languages", remedy="leave one of them out")
        if any(phase.difficulty for phase in self.phases) and not self.difficulty:
            raise UsageError("a phase has shares of difficulty", remedy="add [difficulty] with the field of the score")
        wanted = [wish for wish in self.wishes.values() if wish.weight != 0]
        if wanted and all(wish.replay is not None for wish in wanted):
            raise UsageError("replay alone: it is a share of what else is given", remedy="name another source, too")
        if not wanted:
            raise UsageError("no source has a weight above 0", remedy="give one a weight")
        return self

    def parted_by_difficulty(self, name: str) -> bool:
        return self.difficulty is not None and self.wishes[name].replay is None


def amount_of(text: str) -> int:
    """`500k`, `1.5B` as a whole number."""
    match = AMOUNT.fullmatch(text)
    amount = round(float(match[1]) * UNITS[match[2]]) if match else 0
    if not 0 < amount < 1 << 53:
        raise UsageError(f"{text!r} is no amount", remedy="a number with k, M, G (or B) or T: 500k, 1.5B")
    return amount


def difficulty_of(name: str, bounds: list[str]) -> Difficulty:
    """Bands between bounds: scores, or all of them quantiles with a percent sign. They increase."""
    quantiles = [bound.endswith("%") for bound in bounds]
    try:
        values = [float(bound.removesuffix("%")) / (100 if quantiles[0] else 1) for bound in bounds]
    except ValueError:
        values = []
    rising = all(map(isfinite, values)) and all(low < high for low, high in pairwise(values))
    if not values or not rising or len(set(quantiles)) > 1 or (quantiles[0] and not 0 < values[0] <= values[-1] < 1):
        raise UsageError(f"bounds {', '.join(bounds)}", remedy="rising scores, 0.3,0.7, or quantiles, 33%,67%")
    return Difficulty(name, values, [f"band{number}" for number in range(1, len(values) + 2)], quantiles[0])


def sources_of(recipe: Recipe, paths: dict[str, str], inputs: list[str]) -> dict[str, str]:
    """The paths of sources, in the recipe's order: those INPUTs name come before those of the recipe's file.

    A recipe without sources has those of the INPUTs, or the standard input. UsageError: an INPUT that is no source.
    """
    given = name_sources(inputs or ([] if recipe.wishes else ["-"]))
    if not recipe.wishes:
        recipe.wishes = {name: Wish() for name in given}
    for name, path in given.items():
        if name not in recipe.wishes:
            remedy = f"name it: {' or '.join(f'{known}={path}' for known in recipe.wishes)}"
            raise UsageError(f"the recipe has no source {name}", remedy=remedy)
    found = paths | given
    if list(found.values()).count("-") > 1:
        raise UsageError("two sources from the standard input", remedy="name files for all but one")
    return {name: found[name] for name in recipe.wishes if name in found}


def name_sources(inputs: Iterable[str]) -> dict[str, str]:
    """Paths by name, in the order given: [NAME=]PATH, else by the file's name up to its first dot; stdin for -.

    UsageError: a name that is empty, not printable or taken.
    """
    found: dict[str, str] = {}
    for given in inputs:
        named = "=" in given and not Path(given).exists()
        short = "stdin" if given == "-" else Path(given).name.partition(".")[0]
        name, path = given.split("=", 1) if named else (short, given)
        if not name or not name.isprintable() or not path:
            raise UsageError(f"{given!a} gives no name for a source", remedy="give one as NAME=FILE")
        if name in found:
            raise UsageError(f"{found[name]} and {path} are both {name}", remedy=f"give one as OTHER={path}")
        found[name] = path
    return found
