"""Laws, predictions and allocations as a person reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iqc.tokens.law.allocate import Allocation, Bounds, Spread
from iqc.tokens.law.fit import Fit, Runs, intervals
from iqc.tokens.law.form import SCALARS, UNITS, VECTORS, Law

WHERE = {"N": "model sizes", "D": "budgets", "p": "mixtures"}  # that were held out


def unpublished(law: Law) -> list[str]:
    """Whose the numbers are that nobody published."""
    names = [*SCALARS, *UNITS] if (law.N0, law.D0) != (1, 1) else [*SCALARS]
    yours = [name for name in names if law.origin.get(name) == "given"]
    found = [name for name in SCALARS if law.origin.get(name) == "fit"]
    said = [f"{', '.join(f'{name} = {getattr(law, name):g}' for name in yours)} as you gave them"] if yours else []
    said += [f"{', '.join(found)} from the fit"] if found else []
    said += ["A, B, gamma from a law file that does not say whose they are"] if not law.origin else []
    return [f"not published, but yours: {'; '.join(said)}"] if said else []


def untold(confounded: Sequence[Sequence[str]]) -> list[str]:
    """What the runs of a fit do not tell, a line each."""
    alone, linked = "the runs say nothing about", "the runs cannot tell apart"
    return [f"{linked if len(group) > 1 else alone}: {', '.join(group)}" for group in confounded]


def fit_text(found: Fit, runs: Runs) -> str:
    law, languages = found.law, found.law.languages
    spans = dict(intervals(found.draws))
    confounded = {name for group in found.confounded for name in group}
    trainings = len(np.unique(runs.group))
    lines = [
        f"{len(runs)} runs of {trainings} trainings, {len(languages)} languages; "
        f"error of log loss {100 * found.error:.3g} % (root mean square)"
    ]
    if found.held_out:
        held_out = ", ".join(f"{100 * error:.3g} % on {WHERE[name]}" for name, error in found.held_out.items())
        lines.append(f"error on runs that were left out: {held_out}")
    lines.append(f"{'':<22} {'value':>10}  {'95 % interval':>22}  origin")

    def line(name: str, value: float, span: Any, origin: str) -> str:
        shown = " ..".join(f"{x if abs(x) > 1e-9 else 0.0:>10.4g}" for x in span) if span is not None else ""
        shown = "not told by the runs" if name in confounded else shown
        value = value if abs(value) > 1e-9 else 0.0  # a bound that the search ends next to
        return f"  {name:<20} {value:>10.4g}  {shown:>22}  {origin}"

    for name in (*UNITS, *SCALARS):
        lines.append(line(name, getattr(law, name), spans.get(name), law.origin.get(name, "")))
    for name in VECTORS:
        for at, lang in enumerate(languages):
            span = spans[name][:, at] if name in spans else None
            lines.append(line(f"{name}[{lang}]", getattr(law, name)[at], span, law.origin.get(name, "")))
    if law.origin.get("tau") == "fit":
        for i, j in zip(*np.triu_indices(len(languages), 1)):
            span = spans["tau"][:, i, j] if "tau" in spans else None
            lines.append(line(f"tau[{languages[i]},{languages[j]}]", law.tau[i, j], span, "fit"))
    lines += untold(found.confounded)
    if "gamma" in spans and "gamma" not in confounded:
        low, high = spans["gamma"]
        sure = (
            "cannot be told from 0: no transfer is seen"
            if low <= 0 <= high
            else "is above 0: languages help each other"
        )
        sure = "is below 0: a mixture learns less than as many tokens of one language" if high < 0 else sure
        lines.append(f"gamma, the transfer, {sure}")
    return "\n".join([*lines, *unpublished(law)])


def prediction_text(law: Law, point: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    interval = found.get("predicted_interval")
    shown = f"  95 % interval of the law: {interval[0]:.5g} .. {interval[1]:.5g}" if interval else ""
    shares = ", ".join(f"{lang} {share:g}" for lang, share in point["p"].items())
    lines = [f"N = {point['N']:g}, D = {point['D']:g}, {shares}", f"loss {found['predicted_loss']:.5g}{shown}"]
    return "\n".join(lines + unpublished(law))


def allocation_text(
    law: Law, n: float, d: float, bounds: Bounds, found: Allocation, among: Spread | None, reducible: bool
) -> str:
    even = 1 / len(law.languages)
    head = f"{'':<12} {'share':>8} {'tokens':>10} {'vs even':>10} {'within 0.1 % of the loss':>26}"
    lines = [
        f"N = {n:g}, D = {d:g}; least {'L - L_inf(p)' if reducible else 'L'}",
        head + (f" {'95 % of the draws':>20}" if among else ""),
    ]
    for at, lang in enumerate(law.languages):
        share, (low, high) = found.shares[at], found.ranges[at]
        bound = "<" if share >= bounds.most[at] - 1e-9 else ">" if share <= bounds.least[at] + 1e-9 else " "
        text = f"{lang:<12} {share:>8.4f}{bound}{share * d:>10.4g} {(share - even) * d:>+10.4g}"
        text += f" {low:>15.4f} ..{high:>8.4f}"
        lines.append(text + (f" {among.shares[at, 0]:>10.4f} ..{among.shares[at, 1]:>7.4f}" if among else ""))
    lines.append("> at the least share allowed, < at the largest")
    change = 100 * (found.loss / found.even_loss - 1)
    lines.append(f"loss {found.loss:.5g}; of the even mixture {found.even_loss:.5g} ({change:+.2f} %)")
    if among:
        lines.append(f"under {100 * among.better:.0f} % of the draws the allocation is better than the even mixture")
    moves = "no share can be moved"
    if np.isfinite(found.saved):
        moves = f"no move of share saves more than {found.residual:.1e} of loss a unit of share (KKT)"
        moves += f"; the best finite move saves {found.saved:.1e}"
    lines.append(f"certificate: {moves}; {100 * found.agreeing:.0f} % of the starts ended here")
    if not reducible:
        lines.append(
            "the loss is that of the mixture on itself: it favours languages that are easy to predict (low L_inf); "
            "--reducible leaves L_inf out, --least and --most keep shares within bounds"
        )
    return "\n".join([*lines, *unpublished(law)])


def published_text(change: Mapping[str, float], budget: float | None) -> str:
    """The published allocation as it stands, and scaled to a budget where one is given."""
    whole = 50e9 * len(change)
    lines = [f"{'':<12} {'share':>8} {'of 350B':>10} {'vs 50B':>10}" + (f" {f'of {budget:g}':>12}" if budget else "")]
    for lang, billions in change.items():
        share = (50e9 + billions * 1e9) / whole
        text = f"{lang:<12} {share:>8.4f} {share * whole:>10.4g} {billions * 1e9:>+10.4g}"
        lines.append(text + (f" {share * budget:>12.4g}" if budget else ""))
    lines += [
        "As published (arXiv 2512.13472), a table: it cannot be computed from the published law. A, B and gamma are",
        'not given, and the exponents and the limit "at the best allocation" are below those of every language: no',
        "weighted average gives them. Rust has no label in the figure; the others add up to 0.",
    ]
    return "\n".join(lines + (["The column for your budget only scales the shares."] if budget else []))
