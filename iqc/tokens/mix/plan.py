"""How much each lane gives in each phase, from what was asked for and what there is.

Amounts are linear in what the sources with weights give together: that is as much as --total leaves for them, or as
much as the first of them has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from iqc.errors import IqcError, UsageError
from iqc.tokens.mix.lanes import Lane
from iqc.tokens.mix.recipe import Phase, Recipe, Wish
from iqc.tokens.mix.shares import band_cells, language_cells, normalised, totals, weight_of


@dataclass(slots=True)
class Plan:
    """Amounts [phases][lanes]; the share of the output that each lane was asked for; how many records it may give."""

    phases: list[list[float]]
    wanted: list[float]
    limits: list[int]
    owed: list[bool]  # those that are used up after whole epochs: they give all of it

    @property
    def total(self) -> float:
        return sum(map(sum, self.phases))


def plan(recipe: Recipe, lanes: Sequence[Lane]) -> Plan:
    """The amounts of a recipe. IqcError or UsageError where there is not enough of something."""
    recipe = completed(recipe, lanes)
    fixed = [recipe.wishes[lane.source].epochs is not None for lane in lanes]
    most = [most_epochs(recipe.wishes[lane.source], recipe) for lane in lanes]
    base = with_replay(recipe, lanes, of_epochs(recipe, lanes))
    rates = with_replay(recipe, lanes, of_weights(recipe, lanes))  # for one unit of all with weights
    start, slope = sums(base), sums(rates)
    free = 0.0
    if any(slope):
        there = [(often * lane.amount - a) / b for lane, often, a, b in zip(lanes, most, start, slope) if b]
        free = max(0.0, min(there)) if recipe.total is None else (recipe.total - sum(start)) / sum(slope)
    elif recipe.total is not None:
        free = recipe.total - sum(start)
    if free < 0 or (free and not any(slope)):
        made = f"{sum(start):,.0f} {recipe.by}"
        raise UsageError(f"the epochs alone make {made}", remedy="--total is of sources with weights: leave it out")
    phases = [[a + free * b for a, b in zip(*rows)] for rows in zip(base, rates)]
    needs = sums(phases)
    wanted = [need / (sum(needs) or 1) for need in needs]
    allowed = [inf if still else often * lane.amount for lane, often, still in zip(lanes, most, fixed)]
    given = capped(recipe, lanes, needs, allowed)
    factors = [new / old if old else 0.0 for new, old in zip(given, needs)]
    phases = [[amount * factor for amount, factor in zip(row, factors)] for row in phases]
    limits = [ceil(often) * lane.records for lane, often in zip(lanes, most)]
    used_up = [often * lane.amount - amount <= 1e-6 for lane, often, amount in zip(lanes, most, sums(phases))]
    owed = [whole and often == ceil(often) for whole, often in zip(used_up, most)]
    return Plan(phases, wanted, limits, owed)


def completed(recipe: Recipe, lanes: Sequence[Lane]) -> Recipe:
    """The recipe with what it leaves open said: one epoch of everything, and the bands one after the other."""
    wishes = recipe.wishes
    plain = all(wish.weight is None and wish.replay is None for wish in wishes.values())
    parted = any(recipe.parted_by_language(name) for name in wishes)
    if plain and not parted and recipe.total is None and recipe.temperature is None:
        wishes = {
            name: replace(wish, epochs=min(most_epochs(wish, recipe), wish.epochs or 1.0))
            for name, wish in wishes.items()
        }
    phases = recipe.phases
    if not phases and recipe.difficulty:
        parts = {band: sum(lane.amount for lane in lanes if lane.band == band) for band in recipe.difficulty.bands}
        phases = [Phase(amount, difficulty={band: 1.0}) for band, amount in parts.items() if amount]
    return replace(recipe, wishes=wishes, phases=phases or [Phase(1.0)])


def most_epochs(wish: Wish, recipe: Recipe) -> float:
    if wish.epochs is not None:
        return wish.epochs
    return recipe.max_epochs if wish.max_epochs is None else wish.max_epochs


def of_epochs(recipe: Recipe, lanes: Sequence[Lane]) -> list[list[float]]:
    """Amounts [phases][lanes] of the sources that are given so many epochs: all of a lane, divided among the phases."""
    columns = []
    for lane in lanes:
        often = recipe.wishes[lane.source].epochs
        parts = [phase.share * phase.weights.get(lane.source, 1.0) * band_share(phase, lane) for phase in recipe.phases]
        if often and lane.amount and not any(parts):
            band = f"the band {lane.band} of " if lane.band else ""
            raise UsageError(f"no phase has room for {band}source {lane.source}", remedy="give it a share in one phase")
        whole = sum(parts) or 1.0
        columns.append([(often or 0.0) * lane.amount * part / whole for part in parts])
    return [list(row) for row in zip(*columns)]


def band_share(phase: Phase, lane: Lane) -> float:
    """Of its difficulty in a phase: 1 where neither knows of any."""
    return phase.difficulty.get(lane.band, 0.0) if lane.band and phase.difficulty else 1.0


def of_weights(recipe: Recipe, lanes: Sequence[Lane]) -> list[list[float]]:
    """Amounts [phases][lanes] of the sources with weights, which make 1 together."""
    wishes = recipe.wishes
    names = [name for name, wish in wishes.items() if wish.epochs is None and wish.replay is None]
    sizes = totals(lanes, lambda lane: lane.source)
    whole = sum(phase.share for phase in recipe.phases)
    rows = []
    for phase in recipe.phases:
        weights = {name: phase.weights.get(name, weight_of(name, sizes, recipe)) for name in names}
        shares = normalised({name: weight for name, weight in weights.items() if weight})
        for name in shares:
            if not sizes.get(name) and not recipe.parted_by_language(name):
                raise IqcError(f"source {name} is empty", remedy=f"leave it out, or --weight {name}=0")
        cells = language_cells(recipe, lanes, shares)
        bands = band_cells(phase, lanes)
        row = [cells.get((lane.source, lane.language), 0.0) * band for lane, band in zip(lanes, bands)]
        for lane, amount in zip(lanes, row):
            if amount and not lane.amount:
                raise IqcError(
                    f"{named(lane)} is wanted, and is empty", remedy="take it out of the proportions or phases"
                )
        rows.append([phase.share / whole * amount for amount in row])
    return rows


def with_replay(recipe: Recipe, lanes: Sequence[Lane], rows: list[list[float]]) -> list[list[float]]:
    """The amounts with those of earlier stages put in: in every phase the same share of all that is given there."""
    sizes = totals(lanes, lambda lane: lane.source)
    replay = {name: wish.replay for name, wish in recipe.wishes.items() if wish.replay}
    rest = 1 - sum(replay.values())
    if rest <= 0:
        raise UsageError("the replay shares leave nothing for the other sources", remedy="their sum is below 1")
    shares = [replay.get(lane.source, 0.0) * lane.amount / (sizes[lane.source] or 1) / rest for lane in lanes]
    for name in replay:
        if not sizes.get(name):
            raise IqcError(f"source {name} is empty", remedy="leave it out")
    return [[amount + share * sum(row) for amount, share in zip(row, shares)] for row in rows]


def capped(recipe: Recipe, lanes: Sequence[Lane], needs: list[float], allowed: list[float]) -> list[float]:
    """The amounts, none over what is allowed. By `rescale` the others with weights give what is missing, each in
    proportion to its own need; IqcError when that is not wanted, or when nothing is left to give it."""
    given, full = list(needs), [False] * len(lanes)
    while over := [number for number, amount in enumerate(given) if amount > allowed[number] * (1 + 1e-9) + 1e-6]:
        if recipe.short == "fail":
            raise too_little(recipe, lanes[over[0]], needs[over[0]], allowed[over[0]])
        for number in over:
            full[number], given[number] = True, allowed[number]
        free = [
            not full[number] and recipe.wishes[lane.source].epochs is None and recipe.wishes[lane.source].replay is None
            for number, lane in enumerate(lanes)
        ]
        missing = sum(needs) - sum(amount for amount, still in zip(given, free) if not still)
        base = sum(need for need, still in zip(needs, free) if still)
        if not base:
            raise IqcError(
                f"there are {sum(given):,.0f} {recipe.by} of {sum(needs):,.0f} wanted",
                remedy="a smaller --total, or a larger --max-epochs",
            )
        given = [need * missing / base if still else amount for need, amount, still in zip(needs, given, free)]
    return given


def named(lane: Lane) -> str:
    return " ".join(filter(None, ("source", lane.source, lane.language, lane.band)))


def too_little(recipe: Recipe, lane: Lane, need: float, allowed: float) -> IqcError:
    often = need / lane.amount if lane.amount else inf
    return IqcError(
        f"{named(lane)}: {need:,.0f} {recipe.by} are wanted, which is {often:.2f} epochs; allowed are {allowed:,.0f}",
        remedy="--max-epochs repeats it more often, --short rescale takes more of the others, --total N asks for less",
    )


def sums(rows: Sequence[Sequence[float]]) -> list[float]:
    """Of columns."""
    return [sum(column) for column in zip(*rows)]
