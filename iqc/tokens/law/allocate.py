"""The shares of languages that make the law's loss least, for a model of N parameters and a budget of D tokens.

The loss need not be convex in the shares, so the search (SLSQP, with the exact gradient) starts from many places. What
it finds is certified, not trusted: on the simplex with bounds, a point satisfies the conditions of Karush, Kuhn and
Tucker when no share can be moved from one language to another with a gain, to first order; and finite moves are tried.

The law's loss is that of the mixture on itself. It falls also when the mixture is of languages that are easy to predict
(a low L_inf), though nothing is learnt better: unbounded, the best mixture is often one or two languages. `reducible`
leaves L_inf(p) out of what is made small; bounds on the shares say what the law does not know.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.optimize import minimize

from iqc.errors import IqcError
from iqc.tokens.law.form import Array, Law, gradients, predict, terms

STARTS = 24  # besides the even mixture and that of as much as possible of each language
FLAT = 1e-3  # how much more loss, as a share of it, counts as none
MOVES = (1e-4, 1e-3, 1e-2, 5e-2)  # of share, that the certificate tries
SAME = 1e-7  # relative difference of two losses that are the same optimum


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the largest share of each language: [languages]."""

    least: Array
    most: Array


@dataclass(frozen=True, slots=True)
class Allocation:
    """`shares` [languages]. `residual`: the loss that a move of share would save to first order, for 1 of share; 0 at
    an optimum. `saved`: what the best of the finite moves saves, 0 or less at an optimum. `agreeing`: the part of the
    starts that ended there. `ranges` [languages, 2]: within which a share can lie when the others follow and the loss
    is within FLAT of the least."""

    shares: Array
    loss: float
    even_loss: float
    residual: float
    saved: float
    agreeing: float
    ranges: Array


def bounds_of(
    law: Law,
    budget: float,
    least: Mapping[str, float],
    most: Mapping[str, float],
    available: Mapping[str, float],
    epochs: float,
) -> Bounds:
    """Bounds by language (`*`: of all that are not named): shares, and `available` tokens that may be read `epochs`
    times. IqcError where no mixture is within them."""
    low, high, there = (
        by_language(law, limits, default) for limits, default in ((least, 0.0), (most, 1.0), (available, np.inf))
    )
    high = np.minimum(np.minimum(high, there * epochs / budget), 1)
    for lang, one, other in zip(law.languages, low, high):
        if not 0 <= one <= other:
            raise IqcError(
                f"{lang}: a share of at least {one:g} and at most {other:.6g}",
                remedy="shares are from 0 to 1; what is available, times --max-epochs, limits them too",
            )
    if low.sum() > 1 + 1e-12 or high.sum() < 1 - 1e-12:
        which, total = ("least", low.sum()) if low.sum() > 1 else ("largest", high.sum())
        raise IqcError(
            f"the {which} shares add up to {total:.4g}",
            remedy="lower --least"
            if which == "least"
            else "raise --most, --available or --max-epochs, or lower --total",
        )
    return Bounds(low, high)


def by_language(law: Law, limits: Mapping[str, float], default: float) -> Array:
    if unknown := [name for name in limits if name not in (*law.languages, "*")]:
        raise IqcError(f"no language {unknown[0]!r} in the law", remedy=f"it has {', '.join(law.languages)}")
    return np.array([limits.get(lang, limits.get("*", default)) for lang in law.languages])


def allocate(law: Law, n: float, d: float, bounds: Bounds, *, reducible: bool = False, seed: int = 0) -> Allocation:
    """The best shares within the bounds. IqcError where no start leads anywhere."""
    count = len(law.languages)
    even = np.full(count, 1 / count)
    draw = np.random.default_rng([seed, 3])
    starts = [even, *np.eye(count), *draw.dirichlet(np.ones(count), STARTS)]
    ends = [end for start in starts if (end := search(law, n, d, bounds, onto(start, bounds), reducible)) is not None]
    if not ends:
        raise IqcError("no allocation found", remedy="the law gives no loss within these bounds: look at gamma")
    values = np.array([value(law, n, d, end, reducible) for end in ends])
    best = ends[int(values.argmin())]
    agreeing = float(np.mean(values <= values.min() * (1 + SAME) + 1e-300))
    return Allocation(
        best, float(predict(law, n, d, best)[0]), float(predict(law, n, d, even)[0]),
        residual(law, n, d, bounds, best, reducible), best_move(law, n, d, bounds, best, reducible), agreeing,
        flat_ranges(law, n, d, bounds, best, reducible),
    )  # fmt: skip


def value(law: Law, n: float, d: float, shares: Array, reducible: bool) -> float:
    """What is made small: the loss, or its part above L_inf(p)."""
    found = terms(law, n, d, shares)
    return float((found.size + found.data)[0] if reducible else found.loss[0])


def slope(law: Law, n: float, d: float, shares: Array, reducible: bool) -> Array:
    by_share = gradients(law, n, d, shares)["p"][0]
    return by_share - law.L_inf if reducible else by_share


def onto(shares: Array, bounds: Bounds) -> Array:
    """The nearest shares within the bounds that add up to 1: clipped after a shift, which is found by halving."""
    low, high = (bounds.least - shares).min(), (bounds.most - shares).max()
    for _ in range(100):
        middle = (low + high) / 2
        if np.clip(shares + middle, bounds.least, bounds.most).sum() < 1:
            low = middle
        else:
            high = middle
    return np.clip(shares + high, bounds.least, bounds.most)


def search(law: Law, n: float, d: float, bounds: Bounds, start: Array, reducible: bool) -> Array | None:
    """One search; None where the law gives no number."""
    unit = value(law, n, d, start, reducible)
    if not np.isfinite(unit) or unit <= 0:
        return None
    found = minimize(
        lambda p: value(law, n, d, p, reducible) / unit,
        start,
        jac=lambda p: slope(law, n, d, p, reducible) / unit,
        bounds=np.stack([bounds.least, bounds.most], axis=1),
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    end = onto(np.where(found.x < bounds.least + 1e-10, bounds.least, found.x), bounds)
    return end if np.isfinite(value(law, n, d, end, reducible)) else None


def movable(bounds: Bounds, shares: Array) -> list[tuple[int, int]]:
    """Pairs (from, to) of languages between which share can be moved."""
    pairs = permutations(range(len(shares)), 2)
    return [(i, j) for i, j in pairs if shares[i] > bounds.least[i] + 1e-9 and shares[j] < bounds.most[j] - 1e-9]


def residual(law: Law, n: float, d: float, bounds: Bounds, shares: Array, reducible: bool) -> float:
    by_share = slope(law, n, d, shares, reducible)
    return max([0.0, *(float(by_share[i] - by_share[j]) for i, j in movable(bounds, shares))])


def best_move(law: Law, n: float, d: float, bounds: Bounds, shares: Array, reducible: bool) -> float:
    """How much loss the best finite move between two languages saves: negative when all of them cost something."""
    before = value(law, n, d, shares, reducible)
    saved = [-np.inf]
    for i, j in movable(bounds, shares):
        for move in MOVES:
            step = min(move, shares[i] - bounds.least[i], bounds.most[j] - shares[j])
            moved = shares.copy()
            moved[i] -= step
            moved[j] += step
            saved.append(before - value(law, n, d, moved, reducible))
    return float(np.nanmax(saved))


def flat_ranges(law: Law, n: float, d: float, bounds: Bounds, shares: Array, reducible: bool) -> Array:
    """[languages, 2]: the least and largest share of each language with which the loss stays within FLAT of the best;
    searched for from the best shares, so a second valley is not seen."""
    limit = value(law, n, d, shares, reducible) + FLAT * value(law, n, d, shares, False)
    found = np.stack([shares, shares], axis=1)
    for lang, side in np.ndindex(found.shape):
        unit = np.zeros(len(shares))
        unit[lang] = (1, -1)[side]
        end = minimize(
            lambda p, unit=unit: p @ unit,
            shares,
            jac=lambda p, unit=unit: unit,
            bounds=np.stack([bounds.least, bounds.most], axis=1),
            constraints=[
                {"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
                {"type": "ineq", "fun": lambda p: 1e3 * (limit - value(law, n, d, p, reducible)) / limit,
                 "jac": lambda p: -1e3 * slope(law, n, d, p, reducible) / limit},
            ],
            method="SLSQP",
            options={"ftol": 1e-9, "maxiter": 200},
        ).x  # fmt: skip
        if value(law, n, d, onto(end, bounds), reducible) <= limit * (1 + 1e-6):
            found[lang, side] = onto(end, bounds)[lang]
    return np.sort(found, axis=1)


@dataclass(frozen=True, slots=True)
class Spread:
    """What the draws of a fit say of an allocation: [languages, 2] percentiles of the shares that are best under each
    draw, and the part of the draws under which the allocation has a lower loss than the even mixture."""

    shares: Array
    better: float


def spread(
    laws: Sequence[Law],
    n: float,
    d: float,
    bounds: Bounds,
    shares: Array,
    percentiles: Sequence[float],
    reducible: bool,
) -> Spread:
    even = np.full(len(shares), 1 / len(shares))
    found, better = [], []
    for law in laws:
        ends = [search(law, n, d, bounds, onto(start, bounds), reducible) for start in (shares, even)]
        known = [end for end in ends if end is not None]
        if known:
            found.append(min(known, key=lambda end: value(law, n, d, end, reducible)))
            better.append(value(law, n, d, shares, reducible) < value(law, n, d, even, reducible))
    if not found:
        raise IqcError(
            "no draw of the law gives an allocation", remedy="fit it on more runs, or hold gamma: --set gamma=0"
        )
    return Spread(np.percentile(found, percentiles, axis=0).T, float(np.mean(better)))


def toml(languages: Sequence[str], shares: Array, comment: Sequence[str]) -> str:
    """The table that `iqc mix --recipe` reads; languages with a share of 0 are left out."""
    lines = [*(f"# {line}" for line in comment), "[languages]"]
    lines += [f"{_key(lang)} = {share:.6f}" for lang, share in zip(languages, shares) if round(float(share), 6)]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A key of TOML, bare where it can be; JSON's strings are TOML's."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
