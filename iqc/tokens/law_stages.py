"""`iqc mix --law`: runs to a law file, points to predicted losses, a budget to shares of languages.

Fit and predict are stages: a bad run is a bad record with its line, and lineage says which runs and options made a law.
A measured run is {"N": parameters, "D": tokens, "p": {language: share}, "loss": nats}; other fields are let through
(`run`, a name that checkpoints of one training share, is used by the fit). A point is the same without a loss.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import orjson

from iqc.errors import BadRecord, IqcError, UsageError
from iqc.streams.runner import Settings, run_stage
from iqc.streams.stage import Record, Transform
from iqc.streams.writer import write_file
from iqc.tokens.law import (
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
from iqc.tokens.law_allocate import allocate, bounds_of, spread, toml
from iqc.tokens.law_fit import FREE, GROUPS, INTERVAL, Fit, Runs, fit, intervals, runs_of
from iqc.tokens.law_text import allocation_text, fit_text, prediction_text, published_text, unpublished

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


def run_law(kind: str, asked: Asked, settings: Settings) -> None:
    """fit, predict or allocate."""
    if settings.sharded:
        raise UsageError(f"--law {kind} writes one file", remedy="name a FILE as -o")
    {"fit": run_fit, "predict": run_predict, "allocate": run_allocate}[kind](asked, settings)


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
    return found | ({"loss": float(record["loss"]), "run": record.get("run", "")} if loss else {})


def run_fit(asked: Asked, settings: Settings) -> None:
    """Runs to a law file; the table of what was found goes to standard error."""
    if unknown := [name for name in asked.free if name not in GROUPS]:
        raise UsageError(f"--free {unknown[0]}", remedy=f"some of {', '.join(GROUPS)}")
    free = tuple(name for name in asked.free if name not in asked.given)
    start = read_law(asked.law_file)[0] if asked.law_file else None
    known = start.languages if start else tuple(published()["alpha_N"]) if needs_table(free, asked) else None
    options = {"law": "fit", "free": list(free), "given": asked.given, "draws": asked.draws, "huber": asked.huber}
    options |= {"synergy": asked.synergy} | ({"from": digest_of(to_record(start, {}))} if start else {})

    def reduce(rows: Iterator[dict]) -> Iterator[Record]:
        runs = runs_of(list(rows))
        found = fit(
            runs, base_law(runs, free, asked, start), free, huber=asked.huber, draws=asked.draws, seed=asked.seed
        )
        yield to_record(found.law, fit_record(runs, found, free, asked))
        if not settings.quiet:
            print(fit_text(found, runs), file=sys.stderr)

    run_stage("mix", options, settings, partial(checked_runs, known), seed=asked.seed, reduce=reduce)


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
    known = {lang: at for at, lang in enumerate(languages)}
    held: dict[str, Array] = {
        name: np.zeros(count) if name in free else np.array([table[name][lang] for lang in known]) for name in VECTORS
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


def law_of(asked: Asked) -> tuple[Law, list[Law]]:
    """The law to compute with and those of its draws: a file's, or the published numbers with the user's own."""
    if asked.law_file:
        law, found = read_law(asked.law_file)
        return with_values(law, asked.given), [
            with_values(one, asked.given) for one in drawn(law, found.get("draws", {}))
        ]
    return published_law(asked.given), []


def prediction(law: Law, draws: list[Law], point: Mapping[str, Any]) -> dict[str, Any]:
    """The loss at a point, the interval of the draws, and where the numbers of the law are from."""
    p = mixture(point["p"], law.languages)
    found: dict[str, Any] = {"predicted_loss": float(predict(law, point["N"], point["D"], p)[0])}
    if draws:
        losses = [float(predict(one, point["N"], point["D"], p)[0]) for one in draws]
        found["predicted_interval"] = [float(x) for x in np.percentile(losses, INTERVAL)]
    return found | {"law": dict(law.origin)}


def predictions(law: Law, draws: list[Law]) -> Transform:
    def transform(record: Record) -> Iterable[Record]:
        yield record | prediction(law, draws, point_of(record, loss=False, languages=law.languages))

    return transform


def run_predict(asked: Asked, settings: Settings) -> None:
    """Points to points with a predicted loss; or the one point of the options, as text."""
    law, draws = law_of(asked)
    if asked.size is None and asked.budget is None and not asked.shares:
        options = {"law": "predict", "from": digest_of(to_record(law, {})), "draws": len(draws)}
        run_stage("mix", options, settings, partial(predictions, law, draws))
        notice(law, settings.quiet)
        return
    if asked.size is None or asked.budget is None or not asked.shares or settings.inputs:
        raise UsageError(
            "half a point", remedy="--model-size N --total D --languages python=0.5,go=0.5, or INPUT alone"
        )
    point = {"N": asked.size, "D": asked.budget, "p": asked.shares}
    print(prediction_text(law, point, prediction(law, draws, point)))


def run_allocate(asked: Asked, settings: Settings) -> None:
    """The table of shares to standard output; with -o the table that `iqc mix --recipe` reads."""
    if settings.inputs:
        raise UsageError(f"{settings.inputs[0]}: --law allocate reads no INPUT", remedy="the law is --law-file FILE")
    if asked.published:
        table = published()["allocation_change_billions"]
        text = published_text(table, asked.budget)
        shares = {lang: (50 + change) / (50 * len(table)) for lang, change in table.items()}
        recipe = toml(tuple(shares), np.array(list(shares.values())), ["The published allocation, arXiv 2512.13472."])
    else:
        text, recipe = best_shares(asked)
    if settings.output and settings.output != "-":
        write_file(settings.output, recipe.encode())
    print(text)


def best_shares(asked: Asked) -> tuple[str, str]:
    """(the table, the recipe) of the best allocation."""
    if asked.size is None or asked.budget is None:
        raise UsageError("no model size or no budget", remedy="--model-size 1.3B --total 100B")
    law, draws = law_of(asked)
    n, d = asked.size, asked.budget
    bounds = bounds_of(law, d, asked.least, asked.most, asked.available, asked.max_epochs)
    found = allocate(law, n, d, bounds, reducible=asked.reducible, seed=asked.seed)
    among = spread(draws, n, d, bounds, found.shares, INTERVAL, asked.reducible) if draws else None
    what = "L - L_inf" if asked.reducible else "L"
    comment = [
        f"Shares with the least {what} of N = {n:g}, D = {d:g}: L = {found.loss:.6g}, even {found.even_loss:.6g}."
    ]
    comment += unpublished(law)
    return allocation_text(law, n, d, bounds, found, among, asked.reducible), toml(law.languages, found.shares, comment)


def notice(law: Law, quiet: bool) -> None:
    if not quiet:
        for line in unpublished(law):
            print(f"iqc mix: {line}", file=sys.stderr)
