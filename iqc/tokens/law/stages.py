"""`iqc mix --law`: runs to a law file, points to predicted losses, a budget to shares of languages.

Fit and predict are stages: a bad run is a bad record with its line, and lineage says which runs and options made a law.
A measured run is {"N": parameters, "D": tokens, "p": {language: share}, "loss": nats}; other fields are let through
(`run`, a name that checkpoints of one training share, is used by the fit). A point is the same without a loss.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import orjson

from iqc.errors import BadRecord, IqcError, UsageError
from iqc.streams.runner import Settings, run_stage
from iqc.streams.stage import Record, Transform
from iqc.tokens.law.allocate import allocate, bounds_of, spread, toml
from iqc.tokens.law.fit import FREE, GROUPS, INTERVAL, Fit, Runs, fit, intervals, runs_of
from iqc.tokens.law.form import (
    SCALARS,
    UNITS,
    VECTORS,
    Array,
    Law,
    drawn,
    mixture,
    predict,
    published,
    published_law,
    published_tau,
    read_law,
    to_record,
    with_values,
)
from iqc.tokens.law.text import allocation_text, fit_text, prediction_text, published_text, unpublished, untold

POINT = '{"N": 1e8, "D": 2e9, "p": {"python": 0.5, "go": 0.5}, "loss": 1.3}: N and D above 0, shares that add up to 1'


@dataclass(slots=True)
class Asked:
    """What `iqc mix --law` is asked for. None and {}: not said."""

    law_file: str | None = None  # to predict and allocate with; of a fit, where held values are from
    given: dict[str, float] = field(default_factory=dict)  # A, B, gamma, N0, D0; a fit holds them
    free: tuple[str, ...] = FREE
    synergy: str = "published"  # or ones
    draws: int = 200
    huber: float = 1e-3
    size: float | None = None  # N
    budget: float | None = None  # D
    shares: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    available: dict[str, float] = field(default_factory=dict)  # tokens
    max_epochs: float = 1.0
    reducible: bool = False
    published: bool = False
    seed: int = 0


def point_of(record: Record, *, loss: bool, languages: tuple[str, ...] | None = None) -> dict[str, Any]:
    """N, D, p and, where it is asked for, the loss of a record, checked; BadRecord when they cannot be. `languages`:
    those that p may name; None for any."""
    shares = record.get("p")
    for name in ("N", "D", *(("loss",) if loss else ())):
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise BadRecord(f"{name} is {value!r}, not a number above 0", remedy=POINT)
    if not isinstance(shares, dict) or not shares:
        raise BadRecord(f"p is {shares!r}, not shares by language", remedy=POINT)
    for lang, share in shares.items():
        if languages is not None and lang not in languages:
            raise BadRecord(
                f"unknown language {lang!r}: there are {', '.join(languages)}",
                remedy="fit a law to runs with that language; a fit takes any with --synergy ones",
            )
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise BadRecord(f"the share of {lang} is {share!r}", remedy=POINT)
    try:
        vector = mixture(shares, tuple(shares))
    except IqcError as error:
        raise BadRecord(error.what, remedy=POINT) from None
    found = {"N": float(record["N"]), "D": float(record["D"]), "p": dict(zip(shares, vector.tolist()))}
    return found | ({"loss": float(record["loss"]), "run": str(record.get("run") or "")} if loss else {})


def fit_stage(asked: Asked, settings: Settings) -> str:
    """Runs to a law file; returns the table of what was found."""
    one_file("fit", settings)
    if unknown := [name for name in asked.free if name not in GROUPS]:
        raise UsageError(f"--free {unknown[0]}", remedy=f"some of {', '.join(GROUPS)}")
    free = tuple(name for name in asked.free if name not in asked.given)
    if not free:
        raise UsageError(
            "nothing to fit: every parameter is held", remedy="leave one out of --set, or name more as --free"
        )
    start = read_law(asked.law_file)[0] if asked.law_file else None
    named = start.languages if start else tuple(published()["alpha_N"]) if needs_table(free, asked) else None
    options = {"law": "fit", "free": list(free), "given": asked.given, "draws": asked.draws, "huber": asked.huber}
    options |= {"synergy": asked.synergy} | ({"from": digest_of(to_record(start, {}))} if start else {})

    texts: list[str] = []

    def reduce(rows: Iterator[dict]) -> Iterator[Record]:
        runs = runs_of(list(rows))
        found = fit(
            runs, base_law(runs, free, asked, start), free, huber=asked.huber, draws=asked.draws, seed=asked.seed
        )
        texts.append(fit_text(found, runs))
        yield to_record(found.law, fit_record(runs, found, free, asked))

    run_stage("mix", options, settings, partial(checked_runs, named), seed=asked.seed, reduce=reduce)
    return texts[0]


def one_file(kind: str, settings: Settings) -> None:
    if settings.sharded:
        raise UsageError(f"--law {kind} writes one file", remedy="name a FILE as -o")


def needs_table(free: tuple[str, ...], asked: Asked) -> bool:
    """Whether a fit takes values from the published table, so that other languages are refused."""
    synergy = "tau" not in free and asked.synergy == "published" and asked.given.get("gamma") != 0
    return synergy or any(name not in free for name in VECTORS)


def checked_runs(languages: tuple[str, ...] | None) -> Transform:
    def transform(record: Record) -> Iterable[dict]:
        yield point_of(record, loss=True, languages=languages)

    return transform


def base_law(runs: Runs, free: tuple[str, ...], asked: Asked, start: Law | None) -> Law:
    """What a fit starts with: the values of parameters that are not free, and units in the middle of the runs."""
    languages = runs.languages
    middle = {"N0": float(np.exp(np.log(runs.n).mean())), "D0": float(np.exp(np.log(runs.d).mean()))}
    units = {name: float(f"{value:.3g}") for name, value in middle.items()}
    if start:
        at = [start.languages.index(lang) for lang in languages]
        vectors = {name: getattr(start, name)[at] for name in VECTORS}
        base = replace(start, languages=languages, tau=start.tau[np.ix_(at, at)], **vectors)
        return with_values(base, asked.given)
    if missing := [name for name in SCALARS if name not in free and name not in asked.given]:
        raise UsageError(
            f"{missing[0]} is not free and has no value",
            remedy=f"--set {missing[0]}=X, or --law-file: none is published",
        )
    table, count = published(), len(languages)
    held: dict[str, Array] = {
        name: np.zeros(count) if name in free else np.array([table[name][lang] for lang in languages])
        for name in VECTORS
    }
    ones = np.ones((count, count)) - np.eye(count)
    tau = published_tau(languages) if asked.synergy == "published" and needs_table(free, asked) else ones
    source = "published" if asked.synergy == "published" else "ones"
    origin = dict.fromkeys(VECTORS, "published") | {"tau": source} | dict.fromkeys(UNITS, "middle of the runs")
    base = Law(languages, 1.0, 1.0, 0.0, **held, tau=tau, **units, origin=origin)  # type: ignore[arg-type]
    return with_values(base, asked.given)


def fit_record(runs: Runs, found: Fit, free: tuple[str, ...], asked: Asked) -> dict[str, Any]:
    """What a law file says of its fit."""
    return {
        "runs": len(runs),
        "trainings": len(np.unique(runs.group)),
        "spans": {"N": [float(runs.n.min()), float(runs.n.max())], "D": [float(runs.d.min()), float(runs.d.max())]},
        "digest": digest_of([runs.languages, runs.n.tolist(), runs.d.tolist(), runs.p.tolist(), runs.loss.tolist()]),
        "free": list(free),
        "huber": asked.huber,
        "seed": asked.seed,
        "error": found.error,
        "held_out": found.held_out,
        "confounded": found.confounded,
        "intervals": {name: interval.T.tolist() for name, interval in intervals(found.draws)},
        "draws": {name: values.tolist() for name, values in found.draws.items()},
    }


def digest_of(value: Any) -> str:
    return "sha256:" + hashlib.sha256(orjson.dumps(value)).hexdigest()


@dataclass(slots=True)
class Known:
    """A law to compute with: its draws, between which N and D its runs lay ({} where nothing says), and the groups of
    parameters that they did not tell."""

    law: Law
    draws: list[Law]
    spans: dict[str, list[float]]
    confounded: list[list[str]]

    def beyond(self, n: float, d: float) -> list[str]:
        """What of a point lies outside of the runs, in words."""
        found = []
        for name, value in (("N", n), ("D", d)):
            low, high = self.spans.get(name, (value, value))
            if not low <= value <= high:
                how = f"{value / high:.3g} times the largest" if value > high else f"{value / low:.3g} of the least"
                found.append(f"extrapolated: {name} is {how} of the runs")
        return found


def known(asked: Asked) -> Known:
    """The law of a file, or the published numbers with the user's own."""
    if not asked.law_file:
        return Known(published_law(asked.given), [], {}, [])
    law, found = read_law(asked.law_file)
    draws = [with_values(one, asked.given) for one in drawn(law, found.get("draws", {}))]
    return Known(with_values(law, asked.given), draws, found["spans"], found["confounded"])


def prediction(known: Known, point: Mapping[str, Any]) -> dict[str, Any]:
    """The loss at a point, the interval of the draws, and where the numbers of the law are from."""
    p = mixture(point["p"], known.law.languages)
    found: dict[str, Any] = {"predicted_loss": float(predict(known.law, point["N"], point["D"], p)[0])}
    if known.draws:
        losses = [float(predict(one, point["N"], point["D"], p)[0]) for one in known.draws]
        found["predicted_interval"] = [float(x) for x in np.percentile(losses, INTERVAL)]
    if known.beyond(point["N"], point["D"]):
        found["extrapolated"] = True
    return found | {"law": dict(known.law.origin)}


def predictions(known: Known) -> Transform:
    def transform(record: Record) -> Iterable[Record]:
        point = point_of(record, loss=False, languages=known.law.languages)
        try:
            yield record | prediction(known, point)
        except IqcError as error:
            raise BadRecord(error.what, remedy=error.remedy) from None

    return transform


def predict_stage(asked: Asked, settings: Settings) -> str:
    """Points to points with a predicted loss; returns whose the unpublished numbers are."""
    one_file("predict", settings)
    found = known(asked)
    options = {"law": "predict", "from": digest_of(to_record(found.law, {})), "draws": len(found.draws)}
    run_stage("mix", options, settings, partial(predictions, found))
    return "\n".join(unpublished(found.law) + untold(found.confounded))


def predict_point(asked: Asked) -> str:
    """The prediction for the one point of the options."""
    if asked.size is None or asked.budget is None or not asked.shares:
        raise UsageError("half a point", remedy="--model-size 1.3B --total 100B --languages python=0.5,go=0.5")
    found = known(asked)
    point = {"N": asked.size, "D": asked.budget, "p": asked.shares}
    text = prediction_text(found.law, point, prediction(found, point))
    return "\n".join([text, *found.beyond(asked.size, asked.budget), *untold(found.confounded)])


def allocation(asked: Asked) -> tuple[str, str]:
    """(the table of shares, the recipe for `iqc mix --recipe`): the best ones, or those that were published."""
    if asked.published:
        table = published()["allocation_change_billions"]
        shares = [(50 + change) / (50 * len(table)) for change in table.values()]
        recipe = toml(tuple(table), np.array(shares), ["The published allocation, arXiv 2512.13472."])
        return published_text(table, asked.budget), recipe
    if asked.size is None or asked.budget is None:
        raise UsageError("no model size or no budget", remedy="--model-size 1.3B --total 100B")
    ours, n, d = known(asked), asked.size, asked.budget
    law = ours.law
    bounds = bounds_of(law, d, asked.least, asked.most, asked.available, asked.max_epochs)
    found = allocate(law, n, d, bounds, reducible=asked.reducible, seed=asked.seed)
    among = spread(ours.draws, n, d, bounds, found.shares, INTERVAL, asked.reducible) if ours.draws else None
    what = "L - L_inf" if asked.reducible else "L"
    comment = [
        f"Shares with the least {what} of N = {n:g}, D = {d:g}: L = {found.loss:.6g}, even {found.even_loss:.6g}."
    ]
    warnings = ours.beyond(n, d) + untold(ours.confounded)
    text = allocation_text(law, n, d, bounds, found, among, asked.reducible)
    return "\n".join([text, *warnings]), toml(law.languages, found.shares, comment + unpublished(law) + warnings)
