"""What a mixture is to hold: sources with weights or epochs, and the amounts that follow from what there is of each."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iqc.errors import IqcError, UsageError
from iqc.tokens.lanes import Lane


@dataclass(slots=True)
class Wish:
    """How much of one source is wanted: a weight among those that have one, or so many epochs."""

    weight: float | None = None
    epochs: float | None = None


@dataclass(slots=True)
class Recipe:
    """A mixture as it was asked for; amounts are in the unit of `by`."""

    wishes: dict[str, Wish]  # by the name of the source, in their order
    by: str = "bytes"
    total: int | None = None  # until the first source is used up
    max_epochs: float = 1.0
    short: str = "fail"  # or rescale: what becomes of a source that would be repeated more often
    temperature: float | None = None


@dataclass(slots=True)
class Plan:
    """Amounts [phases][lanes], their sum, and how many records each lane gives at most."""

    phases: list[list[float]]
    total: float
    limits: list[int | None]
    owed: list[bool]  # lanes that give their whole limit
    notes: list[str] = field(default_factory=list)


def plan(recipe: Recipe, lanes: Sequence[Lane]) -> Plan:
    """The amounts of a recipe. IqcError where there is not enough of a source."""
    sizes = {lane.source: lane.amount for lane in lanes}
    wishes = recipe.wishes
    if recipe.total is None and recipe.temperature is None and all(wish == Wish() for wish in wishes.values()):
        wishes = {name: Wish(epochs=1) for name in wishes}
    fixed = {name: wish.epochs * sizes[name] for name, wish in wishes.items() if wish.epochs is not None}
    shares = normalised(
        {name: weight_of(wish, sizes[name], recipe) for name, wish in wishes.items() if name not in fixed}
    )
    for name, share in shares.items():
        if share and not sizes[name]:
            raise IqcError(f"source {name} is empty", remedy=f"leave it out, or --weight {name}=0")
    whole = sum(fixed.values())
    free = free_amount(recipe, shares, sizes, whole)
    wanted = fixed | {name: share * free for name, share in shares.items()}
    amounts = [wanted[lane.source] for lane in lanes]
    limits = [round(wishes[lane.source].epochs * lane.records) if lane.source in fixed else None for lane in lanes]
    return Plan([amounts], sum(amounts), limits, [lane.source in fixed for lane in lanes])


def weight_of(wish: Wish, size: float, recipe: Recipe) -> float:
    """The weight that a source was given; where none was, its share of what there is, made more even by a temperature.

    p_i ~ n_i^(1/T), Arivazhagan et al. 2019 (1907.05019), with T = 5 there; the exponent itself is 0.7 in multilingual
    BERT and 0.3 in XLM-R (Conneau et al. 2020).
    """
    if all(wish.weight is None for wish in recipe.wishes.values()):
        return size ** (1 / (recipe.temperature or 1)) if size else 0.0
    return 1.0 if wish.weight is None else wish.weight


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()} if whole else dict(weights)


def free_amount(recipe: Recipe, shares: dict[str, float], sizes: dict[str, int], whole: float) -> float:
    """What the sources with weights give together."""
    there = [recipe.max_epochs * sizes[name] / share for name, share in shares.items() if share]
    if not there:
        return 0.0
    if recipe.total is None:
        return min(there)
    if recipe.total < whole:
        raise UsageError(f"the epochs alone make {whole:,.0f} {recipe.by}", remedy="a larger --total, or fewer epochs")
    free = recipe.total - whole
    if free > min(there):
        name = min((name for name in shares if shares[name]), key=lambda name: sizes[name] / shares[name])
        epochs = free * shares[name] / sizes[name]
        raise IqcError(
            f"source {name} has {sizes[name]:,} {recipe.by} of {free * shares[name]:,.0f} wanted",
            remedy=f"--max-epochs {epochs:.2f} repeats it, a smaller --total or --weight {name} needs less",
        )
    return free


UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMGBT]?)")


def amount_of(text: str) -> int:
    """`500k`, `1.5B` as a whole number."""
    match = AMOUNT.fullmatch(text)
    amount = round(float(match[1]) * UNITS[match[2]]) if match else 0
    if not 0 < amount < 1 << 53:
        raise UsageError(f"{text!r} is no amount", remedy="a number with k, M, G (or B) or T: 500k, 1.5B")
    return amount


def name_sources(inputs: Iterable[str]) -> dict[str, str]:
    """Paths by name, in the order given: [NAME=]PATH, else by the file's name up to its first dot.

    UsageError: a name that is empty, not printable or taken.
    """
    found: dict[str, str] = {}
    for given in inputs:
        named = "=" in given and not Path(given).exists()
        name, path = given.split("=", 1) if named else (Path(given).name.partition(".")[0], given)
        if not name or not name.isprintable() or not path:
            raise UsageError(f"{given!a} gives no name for a source", remedy="give one as NAME=FILE")
        if name in found:
            raise UsageError(f"{found[name]} and {path} are both {name}", remedy=f"give one as OTHER={path}")
        found[name] = path
    return found
