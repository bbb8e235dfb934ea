"""The multilingual scaling law: the loss of a model of N parameters on D tokens of a mixture p of languages.

    L(N, D; p) = A (N/N0)^-alpha_N(p) + B (D_x/D0)^-alpha_D(p) + L_inf(p)      D_x = D (1 + gamma S(p))

alpha_N(p), alpha_D(p), L_inf(p) are the languages' own values weighted by their shares, and S(p) = p' tau p, tau with a
zero diagonal, is what languages gain from each other (arXiv 2512.13472; law.toml has what is published, and the traps).
L is the loss on the mixture itself. N0 and D0 are the units of N and D: with exponents that differ between languages, A
and B mean something else in other units, and no choice of them makes up for it.

Here are the form with its derivatives, and law files. fit.py finds the parameters, allocate.py the best shares.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iqc.errors import IqcError
from iqc.streams.runner import StreamInput, read_records
from iqc.streams.stage import Record

Array = NDArray[np.float64]
SCALARS = ("A", "B", "gamma")
VECTORS = ("alpha_N", "alpha_D", "L_inf")  # one value a language
UNITS = ("N0", "D0")
KIND = "iqc mixture law 1"
SUM_TOLERANCE = 1e-3  # of shares that were written with three digits


@dataclass(frozen=True, slots=True)
class Law:
    """One set of parameters, in the order of `languages`: vectors [languages], tau [languages, languages].

    `origin` says of each parameter where its value is from: fit, given or published. Losses are in the unit of the runs
    that it was fitted to.
    """

    languages: tuple[str, ...]
    A: float
    B: float
    gamma: float
    alpha_N: Array
    alpha_D: Array
    L_inf: Array
    tau: Array
    N0: float = 1.0
    D0: float = 1.0
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of the loss at some points, each [points]; `size` + `data` + `floor` is the loss."""

    log_n: Array  # log(N / N0)
    log_d: Array  # log(D_x / D0)
    alpha_d: Array  # alpha_D(p)
    synergy: Array  # S(p)
    gain: Array  # 1 + gamma S(p)
    size: Array
    data: Array
    floor: Array

    @property
    def loss(self) -> Array:
        return self.size + self.data + self.floor


def terms(law: Law, n: ArrayLike, d: ArrayLike, p: ArrayLike) -> Terms:
    """n, d: [points] or numbers; p: [points, languages] or [languages]. Not a number where 1 + gamma S(p) <= 0."""
    shares = np.atleast_2d(np.asarray(p, np.float64))
    synergy = np.einsum("ri,ij,rj->r", shares, law.tau, shares)
    gain = 1 + law.gamma * synergy
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        log_n = np.log(np.asarray(n, np.float64) / law.N0)
        log_d = np.log(np.asarray(d, np.float64) / law.D0) + np.log(gain)
        alpha_d = shares @ law.alpha_D
        size = law.A * np.exp(-(shares @ law.alpha_N) * log_n)
        data = law.B * np.exp(-alpha_d * log_d)
    return Terms(np.broadcast_to(log_n, gain.shape), log_d, alpha_d, synergy, gain, size, data, shares @ law.L_inf)


def predict(law: Law, n: ArrayLike, d: ArrayLike, p: ArrayLike) -> Array:
    """The loss at some points: [points]. IqcError where a negative synergy leaves no data at all, and where N or D are
    so far from the units that the loss is no finite number."""
    found = terms(law, n, d, p)
    if not (found.gain > 0).all():
        raise IqcError(
            f"1 + gamma S(p) is {found.gain.min():.3g}: less than no data",
            remedy="gamma is too far from 0 for this synergy table and mixture",
        )
    if not np.isfinite(found.loss).all():
        raise IqcError("the law gives no finite loss there", remedy="look at N, D and the units N0 and D0")
    return found.loss


def gradients(law: Law, n: ArrayLike, d: ArrayLike, p: ArrayLike) -> dict[str, Array]:
    """The derivatives of the loss: by log A, log B and gamma [points]; by alpha_N, alpha_D, L_inf and by the shares
    `p`, as if each could change alone, [points, languages]; by `tau` [points, languages, languages]."""
    shares = np.atleast_2d(np.asarray(p, np.float64))
    t = terms(law, n, d, shares)
    with np.errstate(invalid="ignore", over="ignore"):
        return _gradients(law, shares, t)


def _gradients(law: Law, shares: Array, t: Terms) -> dict[str, Array]:
    by_gain = -t.data * t.alpha_d / t.gain  # d loss / d (gamma S)
    pairs = shares @ (law.tau + law.tau.T)  # d S / d p
    by_share = law.L_inf - t.size[:, None] * t.log_n[:, None] * law.alpha_N
    by_share -= t.data[:, None] * t.log_d[:, None] * law.alpha_D
    return {
        "A": t.size,
        "B": t.data,
        "gamma": by_gain * t.synergy,
        "alpha_N": -(t.size * t.log_n)[:, None] * shares,
        "alpha_D": -(t.data * t.log_d)[:, None] * shares,
        "L_inf": shares,
        "tau": (by_gain * law.gamma)[:, None, None] * shares[:, :, None] * shares[:, None, :],
        "p": by_share + (by_gain * law.gamma)[:, None] * pairs,
    }


@cache
def published() -> dict[str, Any]:
    """law.toml."""
    return tomllib.loads((files("iqc.tokens.law") / "law.toml").read_text(encoding="utf-8"))


def published_law(given: Mapping[str, float]) -> Law:
    """The published exponents, limits and synergy, with A, B, gamma, N0 and D0 as given. IqcError without them."""
    missing = [name for name in (*SCALARS, *UNITS) if name not in given]
    if missing:
        raise IqcError(
            f"{', '.join(missing)} not given, and not published",
            remedy="give yours, such as --set A=0.4,B=0.2,gamma=1,N0=1e9,D0=1e9, or fit a law to runs",
        )
    table = published()
    languages = tuple(sorted(table["alpha_N"]))
    vectors: dict[str, Any] = {name: np.array([table[name][lang] for lang in languages]) for name in VECTORS}
    origin = dict.fromkeys((*VECTORS, "tau"), "published")
    bare = Law(languages, 1, 1, 0, **vectors, tau=published_tau(languages), origin=origin)
    return with_values(bare, given)


def published_tau(languages: Sequence[str]) -> Array:
    """The published synergy of some languages, as shares of 1. IqcError for a language that it does not have."""
    table = published()["synergy_percent"]
    if unknown := [lang for lang in languages if lang not in table]:
        raise IqcError(
            f"no published synergy of {', '.join(unknown)}",
            remedy=f"the table has {', '.join(table)}; --synergy ones takes every pair of languages as equal",
        )
    return np.array([[table[row].get(column, 0.0) / 100 for column in languages] for row in languages])


def with_values(law: Law, given: Mapping[str, float]) -> Law:
    """The law with single numbers replaced: A, B, gamma, N0, D0. IqcError for another name or an impossible value."""
    for name, value in given.items():
        if name not in (*SCALARS, *UNITS):
            raise IqcError(f"no parameter {name!r}", remedy=f"one of {', '.join((*SCALARS, *UNITS))}")
        if not np.isfinite(value) or (name != "gamma" and value < 0) or (name in UNITS and value == 0):
            raise IqcError(f"{name} is {value}", remedy="A and B are 0 or more, N0 and D0 above 0, all of them finite")
    values: dict[str, Any] = dict(given)
    return replace(law, **values, origin={**law.origin, **dict.fromkeys(given, "given")})


def mixture(shares: Mapping[str, float], languages: Sequence[str]) -> Array:
    """Shares by name to a vector [languages]; what is not named is 0. IqcError where they are no mixture of these."""
    if unknown := [lang for lang in shares if lang not in languages]:
        raise IqcError(f"no language {unknown[0]!r} in the law", remedy=f"it has {', '.join(languages)}")
    found = np.array([float(shares.get(lang, 0)) for lang in languages])
    if not np.isfinite(found).all() or (found < 0).any():
        raise IqcError(f"shares {dict(shares)}", remedy="a share is a number from 0 to 1")
    if abs(found.sum() - 1) > SUM_TOLERANCE:
        raise IqcError(f"shares that add up to {found.sum():.6g}", remedy="shares of a mixture add up to 1")
    return found / found.sum()


def to_record(law: Law, fit: Mapping[str, Any]) -> Record:
    """The law as a record of a law file, with what is to be said of how it was found. Numbers are written whole."""
    languages = law.languages
    found: Record = {"kind": KIND, "languages": list(languages)}
    found |= {name: float(getattr(law, name)) for name in (*SCALARS, *UNITS)}
    found |= {name: dict(zip(languages, getattr(law, name).tolist())) for name in VECTORS}
    found["tau"] = {lang: dict(zip(languages, row)) for lang, row in zip(languages, law.tau.tolist())}
    return found | {"origin": dict(law.origin), "fit": dict(fit)}


def read_law(path: str) -> tuple[Law, dict[str, Any]]:
    """A law file: what `fit` wrote, or TOML with the same keys. The law, and its `fit` ({} where it has none).

    IqcError when the file holds anything else.
    """
    remedy = "name a file that `iqc mix --law fit -o FILE` wrote, or TOML with the same keys"
    if path.endswith(".toml"):
        try:
            with open(path, "rb") as file:
                records = [tomllib.load(file)]
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise IqcError(f"not a law file: {error}", where=path, remedy=remedy) from None
    else:
        records = list(islice(read_records(StreamInput([path])), 2))
    if len(records) != 1:
        raise IqcError(
            f"not a law file: {'no record' if not records else 'several records'}", where=path, remedy=remedy
        )
    try:
        law, fit = from_record(records[0]), dict(records[0].get("fit", {}))
        drawn(law, fit.get("draws", {}))
        fit["confounded"] = [[str(name) for name in group] for group in fit.get("confounded", [])]
        fit["spans"] = {name: [float(low), float(high)] for name, (low, high) in fit.get("spans", {}).items()}
        return law, fit
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise IqcError(f"not a law file: {what}", where=path, remedy=remedy) from None


def from_record(found: Record) -> Law:
    """The law of a record; KeyError, TypeError, ValueError or AttributeError when it holds none."""
    languages = tuple(found["alpha_N"])
    if found.get("kind", KIND) != KIND or not languages:
        raise ValueError(f"kind {found.get('kind')!r}, {len(languages)} languages")
    vectors: dict[str, Any] = {name: np.array([float(found[name][x]) for x in languages]) for name in VECTORS}
    tau = np.array([[float(found["tau"][row].get(column, 0)) for column in languages] for row in languages])
    numbers: dict[str, Any] = {
        name: float(found.get(name, 1) if name in UNITS else found[name]) for name in (*SCALARS, *UNITS)
    }
    law = Law(languages, **numbers, **vectors, tau=tau, origin=dict(found.get("origin", {})))
    every = np.concatenate([[law.A, law.B, law.gamma, law.N0, law.D0], *vectors.values(), tau.ravel()])
    if not np.isfinite(every).all() or min(law.A, law.B) < 0 or min(law.N0, law.D0) <= 0 or np.diag(tau).any():
        raise ValueError("a parameter that is not finite, negative, or a synergy of a language with itself")
    return law


def drawn(law: Law, draws: Mapping[str, Any]) -> list[Law]:
    """The laws of a fit's bootstrap draws: `draws` has a list by name of each parameter that was fitted. ValueError,
    TypeError or AttributeError when it does not."""
    arrays = {name: np.asarray(values, np.float64) for name, values in draws.items()}
    count = len(next(iter(arrays.values()))) if arrays else 0
    for name, values in arrays.items():
        if values.shape != (count, *np.shape(getattr(law, name))) or not np.isfinite(values).all():
            raise ValueError(f"draws of {name} are no {count} times what {name} is")
    return [replace(law, **{name: values[at] for name, values in arrays.items()}) for at in range(count)]
