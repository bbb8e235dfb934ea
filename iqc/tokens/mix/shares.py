"""Shares of sources, languages and bands of difficulty: weights, temperatures, and the fit of two margins."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from iqc.errors import IqcError
from iqc.tokens.mix.lanes import Lane
from iqc.tokens.mix.recipe import REST, Phase, Recipe

K = TypeVar("K")
MARGIN_STEPS = 10_000  # of the fit of two margins; it ends when they are met to MARGIN_ERROR
MARGIN_ERROR = 1e-9


def weight_of(name: str, sizes: Mapping[str, float], recipe: Recipe) -> float:
    """The weight that a source was given; where none was, what there is of it, made more even by a temperature.

    p_i ~ n_i^(1/T), Arivazhagan et al. 2019 (1907.05019), with T = 5 there; the exponent itself is 0.7 in multilingual
    BERT and 0.3 in XLM-R (Conneau et al. 2020).
    """
    weight = recipe.wishes[name].weight
    if any(wish.weight is not None for wish in recipe.wishes.values()):
        return 1.0 if weight is None else weight
    return tempered(sizes.get(name, 0), recipe.temperature or 1.0)


def tempered(size: float, temperature: float) -> float:
    return size ** (1 / temperature) if size else 0.0


def language_cells(recipe: Recipe, lanes: Sequence[Lane], shares: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """The shares of (source, language): by the source's own proportions, by those of the whole, or as they are."""
    there = totals(lanes, lambda lane: (lane.source, lane.language))
    cells = {}
    for name, share in shares.items():
        found = {language: size for (source, language), size in there.items() if source == name}
        own = normalised(recipe.wishes[name].languages or found)
        for language, part in own.items():
            if part and not found.get(language):
                raise none_of(language, f"source {name} has")
            cells[name, language] = share * part
    whole = [name for name in shares if recipe.parted_by_language(name) and not recipe.wishes[name].languages]
    if whole:
        seeds = {cell: size for cell, size in there.items() if cell[0] in whole and size}
        rows = {name: shares[name] for name in whole}
        columns = overall_languages(recipe, totals_of(seeds), sum(rows.values()))
        cells |= fit_margins(seeds, rows, columns)
    return cells


def none_of(language: str, who: str) -> IqcError:
    shown = "other languages" if language == REST else language
    return IqcError(f"{who} no records in {shown}", remedy="take the language out of the proportions, or add a source")


def overall_languages(recipe: Recipe, sizes: Mapping[str, float], whole: float) -> dict[str, float]:
    """What each language is to have of `whole`; a temperature leaves the share of records without a language alone."""
    if recipe.languages:
        wanted = {language: part for language, part in recipe.languages.items() if part}
        for language in wanted:
            if not sizes.get(language):
                raise none_of(language, "the sources have")
    else:
        named = {language: size for language, size in sizes.items() if language != REST}
        tempers = {name: tempered(size, recipe.language_temperature or 1.0) for name, size in named.items()}
        scale = sum(named.values()) / (sum(tempers.values()) or 1.0)
        wanted = {name: temper * scale for name, temper in tempers.items()}
        wanted |= {REST: sizes[REST]} if REST in sizes else {}
    return {language: whole * part for language, part in normalised(wanted).items()}


def fit_margins(
    seeds: Mapping[tuple[str, str], float], rows: Mapping[str, float], columns: Mapping[str, float]
) -> dict[tuple[str, str], float]:
    """Cells with the given sums of rows and columns, as like `seeds` as can be: iterative proportional fitting
    (Deming and Stephan 1940). IqcError where no cells have both."""
    cells = {cell: size for cell, size in seeds.items() if columns.get(cell[1])}
    for _ in range(MARGIN_STEPS):
        for place, wanted in ((0, rows), (1, columns)):
            sums_now: dict[str, float] = {}
            for cell, size in cells.items():
                sums_now[cell[place]] = sums_now.get(cell[place], 0.0) + size
            for name in wanted:
                if not sums_now.get(name):
                    raise IqcError(
                        f"source {name} has none of the languages", remedy="leave it out, or give it weight 0"
                    )
            cells = {cell: size * wanted[cell[place]] / sums_now[cell[place]] for cell, size in cells.items()}
        error = {name: abs(sum(size for cell, size in cells.items() if cell[0] == name) - rows[name]) for name in rows}
        if max(error.values()) < MARGIN_ERROR:
            return cells
    name = max(error, key=lambda row: error[row])
    raise IqcError(
        f"no mixture has both the weight of source {name} and the shares of the languages",
        remedy="the languages that it has are wanted too little, or too much: change one of them",
    )


def band_cells(phase: Phase, lanes: Sequence[Lane]) -> list[float]:
    """The share of each lane in its source and language: records without a score keep theirs, bands share the rest."""
    cells = totals(lanes, lambda lane: (lane.source, lane.language))
    free = totals([lane for lane in lanes if not lane.band], lambda lane: (lane.source, lane.language))
    bands = normalised(phase.difficulty)
    shares = []
    for lane in lanes:
        cell = (lane.source, lane.language)
        without = free.get(cell, 0) / cells[cell] if cells[cell] else 1.0
        if not lane.band or not phase.difficulty:
            shares.append(lane.amount / cells[cell] if cells[cell] else 1.0)
        else:
            shares.append((1 - without) * bands.get(lane.band, 0.0))
    return shares


def totals(lanes: Iterable[Lane], key: Callable[[Lane], K]) -> dict[K, int]:
    """The amounts of lanes, summed by a key."""
    found: dict[K, int] = {}
    for lane in lanes:
        found[key(lane)] = found.get(key(lane), 0) + lane.amount
    return found


def totals_of(cells: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """The sums of columns."""
    found: dict[str, float] = {}
    for (_, column), size in cells.items():
        found[column] = found.get(column, 0.0) + size
    return found


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()} if whole else dict(weights)
