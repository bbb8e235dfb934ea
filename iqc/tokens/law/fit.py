"""Measured runs to the parameters of the multilingual law, with what the runs can and cannot tell.

The fit minimises the Huber loss of log predicted - log measured (Hoffmann et al. 2022, section D.2) from many random
starts, by a trust region method with bounds and the exact Jacobian (scipy.optimize.least_squares), which needs tens of
steps where L-BFGS needs over a hundred.

Intervals are percentiles of a bootstrap over runs. Each draw weights every run by an exponential variate (Rubin 1981,
the Bayesian bootstrap) instead of drawing runs with replacement: no draw loses all runs of a language, and none has
fewer runs than parameters. Runs with the same `run` are checkpoints of one training and get one weight.

Which parameters the runs cannot tell apart is read off the Jacobian at the fit: directions that change no prediction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares

from iqc.errors import IqcError
from iqc.tokens.law.form import SCALARS, VECTORS, Array, Law, gradients, terms

GROUPS = (*SCALARS, "tau", *VECTORS)
FREE = tuple(name for name in GROUPS if name != "tau")  # as a rule tau is given: only gamma tau can be fitted
INTERVAL = (2.5, 97.5)  # percentiles
NULL = 1e-6  # a direction whose singular value is this share of the largest changes no prediction
LINKED = 1e-3  # and a parameter takes part in it from this share of its length on
WIDE = 0.1  # of log errors: where a Huber loss is as good as squares, but for gross outliers
POLISHED = 3  # descents under the narrow loss, of the best under the wide one
FOLDS = 10  # groups of values that are held out in turn, at most


@dataclass(frozen=True, slots=True)
class Runs:
    """Measured runs in an order of their own (not that of the file), so that the fit does not depend on it.

    n, d, loss: [runs]; p: [runs, languages]; group: [runs], equal for checkpoints of one training.
    """

    languages: tuple[str, ...]
    n: Array
    d: Array
    p: Array
    loss: Array
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, kept: NDArray[np.bool_]) -> "Runs":
        return Runs(self.languages, self.n[kept], self.d[kept], self.p[kept], self.loss[kept], self.group[kept])


def runs_of(rows: Sequence[Mapping[str, Any]]) -> Runs:
    """Rows {N, D, p: {language: share}, loss, run?}, already checked, to Runs. IqcError when there are none."""
    if not rows:
        raise IqcError("no runs", remedy="give JSON lines of N, D, p and loss, one a measured run")
    languages = tuple(sorted({lang for row in rows for lang in row["p"]}))
    table = [
        (row["N"], row["D"], *(row["p"].get(lang, 0.0) for lang in languages), row["loss"], str(row.get("run", "")))
        for row in rows
    ]
    table.sort()
    numbers = np.array([row[:-1] for row in table], np.float64)
    names = [row[-1] or f"\0{place}" for place, row in enumerate(table)]  # a run without a name is one of its own
    group = np.unique(names, return_inverse=True)[1]
    return Runs(languages, numbers[:, 0], numbers[:, 1], numbers[:, 2:-1], numbers[:, -1], group)


@dataclass(frozen=True, slots=True)
class Fit:
    """A law and how sure it is. `draws`: by name, of each free parameter, [draws, ...]. `error`: root mean square of
    log predicted - log measured. `held_out`: the same of runs that were left out, by what they were grouped by.
    `confounded`: names of parameters that the runs cannot tell apart (a single one: that they say nothing about)."""

    law: Law
    error: float
    draws: dict[str, Array] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    confounded: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Space:
    """The free parameters as one vector: log A and log B, gamma, tau_ij of i < j (their mean with tau_ji, as only the
    sum counts), and the values of each language."""

    base: Law
    free: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        languages = self.base.languages
        found: list[str] = []
        for name in self.free:
            if name in SCALARS:
                found.append(name)
            elif name == "tau":
                found += [f"tau[{languages[i]},{languages[j]}]" for i, j in zip(*self.pairs)]
            else:
                found += [f"{name}[{lang}]" for lang in languages]
        return found

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.triu_indices(len(self.base.languages), 1)

    def law(self, vector: Array) -> Law:
        values: dict[str, Any] = {}
        at = 0
        for name in self.free:
            size = 1 if name in SCALARS else len(self.pairs[0]) if name == "tau" else len(self.base.languages)
            part, at = vector[at : at + size], at + size
            if name in SCALARS:
                values[name] = float(part[0] if name == "gamma" else np.exp(part[0]))
            elif name == "tau":
                values[name] = np.zeros_like(self.base.tau)
                values[name][self.pairs] = part
                values[name] += values[name].T
            else:
                values[name] = part
        return replace(self.base, **values)

    def residuals(self, vector: Array, runs: Runs) -> Array:
        """log predicted - log measured: [runs]; not a number where the law gives no positive loss."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(terms(self.law(vector), runs.n, runs.d, runs.p).loss) - np.log(runs.loss)

    def jacobian(self, vector: Array, runs: Runs) -> Array:
        """The derivatives of the residuals: [runs, free parameters]."""
        law = self.law(vector)
        found = gradients(law, runs.n, runs.d, runs.p)
        i, j = self.pairs
        found["tau"] = found["tau"][:, i, j] + found["tau"][:, j, i]
        columns = [found[name].reshape(len(runs), -1) for name in self.free]
        return np.hstack(columns) / terms(law, runs.n, runs.d, runs.p).loss[:, None]

    def bounds(self, runs: Runs) -> tuple[Array, Array]:
        """Exponents and limits are not negative; D_x stays positive on the runs."""
        low, high = [], []
        for name in self.names:
            kind = name.partition("[")[0]
            least, most = {"gamma": self._gamma_bounds(runs), "tau": (-0.95, 10.0)}.get(kind, (0.0, 10.0))
            if kind in ("A", "B"):
                least, most = -60.0, 60.0
            elif kind == "L_inf":
                most = np.inf
            low.append(least)
            high.append(most)
        return np.array(low), np.array(high)

    def _gamma_bounds(self, runs: Runs) -> tuple[float, float]:
        synergy = np.einsum("ri,ij,rj->r", runs.p, self.base.tau, runs.p)
        most, least = max(synergy.max(), 0.0), max(-synergy.min(), 0.0)
        return (-0.95 / most if most else -1e3), (0.95 / least if least else 1e3 / most if most else 1e3)

    def start(self, runs: Runs, draw: np.random.Generator) -> Array:
        """A random vector whose loss is of the size of the measured ones."""
        middle = float(np.median(runs.loss))
        found: list[float] = []
        slopes = {"A": draw.uniform(0.05, 1.0), "B": draw.uniform(0.05, 1.0)}
        spans = {"A": np.log(runs.n / self.base.N0).mean(), "B": np.log(runs.d / self.base.D0).mean()}
        synergy = np.abs(np.einsum("ri,ij,rj->r", runs.p, self.base.tau, runs.p)).max()
        for name in self.names:
            kind = name.partition("[")[0]
            if kind in slopes:
                found.append(np.log(middle * draw.uniform(0.05, 0.6)) + slopes[kind] * spans[kind])
            elif kind == "gamma":
                found.append(draw.uniform(-0.3, 0.9) / synergy if synergy else 0.0)
            elif kind == "tau":
                found.append(draw.uniform(-0.2, 0.5))
            elif kind == "L_inf":
                found.append(draw.uniform(0, 0.8) * runs.loss.min())
            else:
                found.append(slopes["A" if kind == "alpha_N" else "B"] * draw.uniform(0.7, 1.4))
        return np.array(found)


def fit(
    runs: Runs,
    base: Law,
    free: Sequence[str] = FREE,
    *,
    huber: float = 1e-3,
    starts: int = 12,
    draws: int = 200,
    hold_out: bool = True,
    seed: int = 0,
) -> Fit:
    """Fit the parameters named in `free` (of GROUPS); the others stay as they are in `base`, whose languages are those
    of the runs. `huber`: the log error from which on a run counts by its size, not by its square. `hold_out`: fit again
    without each N, D and mixture, for the errors there.

    IqcError when there are fewer runs than free parameters.
    """
    space = Space(base, tuple(name for name in GROUPS if name in free))
    check_number(runs, space)
    draw = np.random.default_rng([seed, 0])
    weights = np.ones(len(runs))
    best = minimise(space, runs, weights, huber, [space.start(runs, draw) for _ in range(starts)])
    law = space.law(best)
    confounded = null_groups(space.jacobian(best, runs), space.names)
    chosen = np.random.default_rng([seed, 1])
    found = []
    for _ in range(draws):
        drawn_weights = chosen.exponential(size=runs.group.max() + 1)[runs.group]
        if (near := descend(space, runs, drawn_weights, huber, best, 300)) is not None:
            found.append(space.law(near.x))
    by_name = {name: np.array([getattr(one, name) for one in found]) for name in space.free} if found else {}
    held_out = {
        name: error
        for name, folds in (folds_of(runs).items() if hold_out else ())
        if (error := held_out_error(space, runs, folds, huber, -(-starts // 3), seed)) is not None
    }
    origin = {**base.origin, **dict.fromkeys(space.free, "fit")}
    return Fit(replace(law, origin=origin), rms(space.residuals(best, runs)), by_name, held_out, confounded)


def check_number(runs: Runs, space: Space) -> None:
    if len(runs) < len(space.names):
        raise IqcError(
            f"{len(runs)} runs for {len(space.names)} free parameters",
            remedy="measure more runs, or hold parameters: --free A,B,L_inf, or --set gamma=0",
        )


def minimise(space: Space, runs: Runs, weights: Array, huber: float, starts: Sequence[Array]) -> Array:
    """The best vector found from the starts: all of them under a Huber loss so wide that the squares rule, which takes
    few steps from far away, and the best of these under the narrow one. IqcError when the law fits from no start."""
    rough = [found for start in starts if (found := descend(space, runs, weights, max(huber, WIDE), start, 60))]
    rough.sort(key=lambda found: found.cost)
    fine = [found for near in rough[:POLISHED] if (found := descend(space, runs, weights, huber, near.x, 300))]
    if not fine:
        raise IqcError("no fit from any start", remedy="look for runs whose loss is far from all others")
    return min(fine, key=lambda found: found.cost).x


def descend(space: Space, runs: Runs, weights: Array, huber: float, start: Array, steps: int) -> OptimizeResult | None:
    """One descent, or None where the law gives no number at its start."""
    low, high = space.bounds(runs)

    def loss(squares: Array) -> Array:
        """Huber's, weighted: its value, first and second derivative by (residual / huber)^2."""
        outside = squares > 1
        root = np.sqrt(np.where(outside, squares, 1))
        value = np.where(outside, 2 * root - 1, squares)
        return weights * np.stack([value, 1 / root, np.where(outside, -0.5 / root**3, 0)])

    inside = np.clip(start, low + 1e-9, high - 1e-9)
    if not np.isfinite(space.residuals(inside, runs)).all():
        return None
    return least_squares(
        space.residuals, inside, space.jacobian, (low, high),
        x_scale="jac", loss=loss, f_scale=huber, max_nfev=steps, args=(runs,),
    )  # fmt: skip


def rms(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def null_groups(jacobian: Array, names: Sequence[str]) -> list[list[str]]:
    """Which parameters can change together without changing any prediction.

    The projection on the null space does not depend on the basis that is taken of it; two parameters are linked where
    it maps one onto the other.
    """
    length = np.linalg.norm(jacobian, axis=0)
    silent = length <= 1e-12 * length.max()  # of rounding alone
    scaled = jacobian / np.where(silent, 1, length)
    scaled[:, silent] = 0
    _, values, rows = np.linalg.svd(scaled, full_matrices=True)
    values = np.pad(values, (0, len(names) - len(values)))
    null = rows[values <= NULL * values.max()]
    projection = np.abs(null.T @ null)
    groups: list[list[str]] = []
    left = [at for at in range(len(names)) if projection[at, at] > LINKED**2]
    while left:
        linked, queue = [], [left[0]]
        while queue:
            at = queue.pop()
            if at in left:
                left.remove(at)
                linked.append(at)
                queue += [other for other in left if projection[at, other] > LINKED]
        groups.append([names[at] for at in sorted(linked)])
    return groups


def folds_of(runs: Runs) -> dict[str, list[NDArray[np.bool_]]]:
    """What is held out in turn: each N, each D, each mixture; FOLDS groups of them where there are more values."""
    found = {}
    for name, column in (("N", runs.n), ("D", runs.d), ("p", runs.p)):
        values, which = np.unique(column, axis=0, return_inverse=True)
        if len(values) > 1:
            found[name] = [which.ravel() % FOLDS == fold for fold in range(min(FOLDS, len(values)))]
    return found


def held_out_error(
    space: Space, runs: Runs, folds: Sequence[NDArray[np.bool_]], huber: float, starts: int, seed: int
) -> float | None:
    """Root mean square log error on runs that the fit did not see; None when too few are left to fit on, not a number
    where the law that was found without them gives none for them."""
    if any((~fold).sum() < len(space.names) for fold in folds):
        return None
    errors = []
    for number, fold in enumerate(folds):
        rest, draw = runs.where(~fold), np.random.default_rng([seed, 2, number])
        best = minimise(space, rest, np.ones(len(rest)), huber, [space.start(rest, draw) for _ in range(starts)])
        errors.append(space.residuals(best, runs.where(fold)))
    return rms(np.concatenate(errors))


def intervals(draws: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """(name, [2, ...]): the percentile interval of each fitted parameter."""
    for name, values in draws.items():
        yield name, np.percentile(values, INTERVAL, axis=0)
