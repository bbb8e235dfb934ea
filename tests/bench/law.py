"""The multilingual law: how well it is recovered, how sure its intervals are, what its allocations are worth.

    python tests/bench/law.py [--laws 20] [--draws 100] [--real tests/bench/results/law_runs.jsonl]

Planted laws with random parameters and the published synergy give runs of 3 sizes x 3 budgets x 7 mixtures of three
languages, with normal noise of the log loss. Of each fit: the median relative error of its parameters, the part of its
95 % intervals that hold the true value, the true loss of the shares that it finds (each language 5 % at least) beside
that of the even mixture and of the truly best shares.

The peer of the optimiser is L-BFGS (scipy's, with the exact gradient) on the same Huber loss from the same starts, as
Hoffmann et al. 2022 fit theirs, on 660 runs of seven languages: the better cost that either finds is the yardstick, and
no ratio of times is given where one of them missed it.

--real fits measured runs (law_runs.py makes them) and adds three figures that need no law: how much the seeds of one
training differ; the error on mixtures of the plainest prediction, the average of the languages' own losses; and the
loss on a language after a mixture, beside that after its own tokens alone (the mixture had as many of them, and the
others on top, so more updates, too).
"""

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
from measure import REPO, save
from scipy.optimize import minimize

sys.path.insert(0, str(REPO))

from iqc.tokens.law.allocate import allocate, bounds_of
from iqc.tokens.law.fit import FREE, Runs, Space, fit, intervals, minimise, runs_of
from iqc.tokens.law.form import SCALARS, VECTORS, Law, predict, published_tau
from iqc.tokens.law.text import fit_text

NOISES = (0.003, 0.01, 0.03)  # standard deviations of log loss
MODEL, BUDGET = 7e9, 2e11  # allocated for: larger than any run
SEVEN = ("csharp", "go", "java", "javascript", "python", "rust", "typescript")


def planted(languages: tuple[str, ...], seed: int) -> Law:
    draw = np.random.default_rng([seed, 0])
    count = len(languages)
    vectors = {"alpha_N": draw.uniform(0.2, 0.6, count), "alpha_D": draw.uniform(0.2, 0.6, count)}
    vectors["L_inf"] = draw.uniform(0.3, 1.2, count)
    tau = published_tau(languages)
    return Law(languages, *draw.uniform(0.2, 0.6, 2), draw.uniform(0.5, 3), **vectors, tau=tau, N0=5e8, D0=1e10)


def measured(law: Law, noise: float, seed: int, sizes: int, budgets: int, mixtures: int) -> Runs:
    """Runs of each language alone, of all in equal shares and of random mixtures."""
    draw, count = np.random.default_rng([seed, 1]), len(law.languages)
    shares = [*np.eye(count), np.full(count, 1 / count), *draw.dirichlet(np.ones(count), mixtures)]
    rows = []
    for n in np.geomspace(1e8, 3.1e9, sizes):
        for d in np.geomspace(2e9, 64e9, budgets):
            for p in shares:
                loss = float(predict(law, n, d, p)[0] * np.exp(noise * draw.standard_normal()))
                rows.append({"N": n, "D": d, "p": dict(zip(law.languages, p)), "loss": loss})
    return runs_of(rows)


def blank(law: Law) -> Law:
    ones = {name: np.ones(len(law.languages)) for name in VECTORS}
    return replace(law, A=1.0, B=1.0, gamma=0.0, **ones)


def recovery(laws: int, draws: int) -> list[dict]:
    found = []
    for noise in NOISES:
        errors, held, losses = [], defaultdict(list), []
        for seed in range(laws):
            law = planted(("java", "python", "rust"), seed)
            result = fit(measured(law, noise, seed, 3, 3, 3), blank(law), draws=draws, hold_out=False, seed=seed)
            for name in (*SCALARS, *VECTORS):
                truth = np.atleast_1d(getattr(law, name))
                errors.append(np.abs(np.atleast_1d(getattr(result.law, name)) / truth - 1))
            for name, (low, high) in intervals(result.draws):
                truth = getattr(law, name)
                held[name] += np.atleast_1d((low <= truth) & (truth <= high)).tolist()
            losses.append(allocation_losses(law, result.law))
        ours, even, best = np.array(losses).T
        row = {"noise": noise, "laws": laws, "median_error": float(np.median(np.concatenate(errors)))}
        row["coverage"] = float(np.mean(np.concatenate(list(held.values()))))
        row["coverage_by_parameter"] = {name: round(float(np.mean(values)), 3) for name, values in held.items()}
        row |= {"better_than_even": float(np.mean(ours < even)), "worst_against_even": float((ours / even).max() - 1)}
        row |= {
            "mean_against_even": float((ours / even).mean() - 1),
            "mean_above_best": float((ours / best).mean() - 1),
        }
        found.append(row)
        print(
            f"noise {100 * noise:.1f} %: error {100 * row['median_error']:.2f} %, intervals hold the truth in "
            f"{100 * row['coverage']:.1f} %; allocation better than even in {100 * row['better_than_even']:.0f} %, "
            f"by {-100 * row['mean_against_even']:.2f} % of loss, {100 * row['mean_above_best']:.3f} % above the best",
            file=sys.stderr,
        )
    return found


def allocation_losses(law: Law, fitted: Law) -> tuple[float, float, float]:
    """True losses: of the shares that the fit finds, of even ones, of those that the true law finds."""
    bounds = bounds_of(law, BUDGET, {"*": 0.05}, {}, {}, 1)
    chosen, best = (allocate(some, MODEL, BUDGET, bounds) for some in (fitted, law))
    return float(predict(law, MODEL, BUDGET, chosen.shares)[0]), best.even_loss, best.loss


def against_lbfgs(starts: int) -> dict:
    """CPU seconds and costs of both optimisers on the same starts."""
    law = planted(SEVEN, 0)
    runs = measured(law, 0.01, 0, 10, 6, 3)
    huber = 1e-3
    space, draw = Space(blank(law), FREE), np.random.default_rng(0)
    vectors = [space.start(runs, draw) for _ in range(starts)]
    low, high = space.bounds(runs)

    def cost(vector: np.ndarray) -> tuple[float, np.ndarray]:
        errors = space.residuals(vector, runs)
        clipped = np.clip(errors, -huber, huber)
        value = np.where(np.abs(errors) <= huber, errors**2 / 2, huber * (np.abs(errors) - huber / 2))
        return float(value.sum()), clipped @ space.jacobian(vector, runs)

    started = time.process_time()
    ours = minimise(space, runs, np.ones(len(runs)), huber, vectors)
    middle = time.process_time()
    theirs = [
        minimize(cost, np.clip(start, low, high), jac=True, method="L-BFGS-B", bounds=list(zip(low, high)),
                 options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 30})
        for start in vectors
    ]  # fmt: skip
    seconds = middle - started, time.process_time() - middle
    costs = [float(end.fun) for end in theirs]
    best = min([cost(ours)[0], *costs])
    both = cost(ours)[0] <= best * (1 + 1e-4) and min(costs) <= best * (1 + 1e-4)
    found = {"runs": len(runs), "starts": starts, "cost": cost(ours)[0], "lbfgs_cost": min(costs), "cpu_s": seconds[0]}
    found |= {"lbfgs_starts_at_best": sum(end <= best * (1 + 1e-4) for end in costs), "lbfgs_cpu_s": seconds[1]}
    found["ratio"] = seconds[1] / seconds[0] if both else None
    shown = f"{found['ratio']:.1f} times as fast" if both else "no ratio: not both found the same cost"
    print(
        f"{len(runs)} runs, {len(space.names)} parameters, {starts} starts: {seconds[0]:.1f} CPU s, "
        f"cost {cost(ours)[0]:.6g};"
        f" L-BFGS {seconds[1]:.1f} CPU s, cost {min(costs):.6g} ({found['lbfgs_starts_at_best']} starts): {shown}",
        file=sys.stderr,
    )
    return found


def real(path: Path, draws: int) -> dict:
    """Fits of measured runs: with the published synergy, with that of ones, and without."""
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    first = [row for row in rows if row.get("seed", 0) == 0]
    runs = runs_of(first)
    count = len(runs.languages)
    units = {"N0": float(np.exp(np.log(runs.n).mean())), "D0": float(np.exp(np.log(runs.d).mean()))}
    zeros = {name: np.zeros(count) for name in VECTORS}
    origin = {"N0": "middle of the runs", "D0": "middle of the runs", "tau": "published"}
    base = Law(runs.languages, 1.0, 1.0, 0.0, **zeros, tau=published_tau(runs.languages), **units, origin=origin)
    ones = replace(base, tau=np.ones((count, count)) - np.eye(count), origin=origin | {"tau": "ones"})
    found: dict = {"runs": len(runs), "trainings": len(np.unique(runs.group)), "languages": list(runs.languages)}
    found |= {"N": sorted(set(runs.n)), "D": sorted(set(runs.d))}
    free = tuple(name for name in FREE if name != "gamma")
    for kind, start, names in (("published", base, FREE), ("ones", ones, FREE), ("none", base, free)):
        result = fit(runs, start, names, draws=draws)
        print(f"\nsynergy {kind}\n{fit_text(result, runs)}", file=sys.stderr)
        spans = {name: span.T.tolist() for name, span in intervals(result.draws)}
        values = {name: np.asarray(getattr(result.law, name)).tolist() for name in names}
        found[kind] = {"error": result.error, "held_out": result.held_out, "confounded": result.confounded}
        found[kind] |= {"values": values, "intervals": spans}
    found["average_of_languages"] = average_error(runs)
    found["seeds"], found["others_on_top"] = seed_spread(rows), others_on_top(first)
    print(
        f"\nmixtures by the average of the languages alone: {100 * found['average_of_languages']:.2f} % off; "
        f"trainings that differ by their seed alone: {found['seeds']}; "
        f"other languages on top of a language's own tokens: {found['others_on_top']}",
        file=sys.stderr,
    )
    return found


def average_error(runs: Runs) -> float:
    """Root mean square log error, on mixtures, of the average of what each language alone had at the same N and D."""
    alone = {(n, d, int(p.argmax())): loss for n, d, p, loss in zip(runs.n, runs.d, runs.p, runs.loss) if p.max() == 1}
    errors = [
        np.log(sum(share * alone[n, d, lang] for lang, share in enumerate(p) if share) / loss)
        for n, d, p, loss in zip(runs.n, runs.d, runs.p, runs.loss)
        if p.max() < 1
    ]
    return float(np.sqrt(np.mean(np.square(errors))))


def others_on_top(rows: list[dict]) -> dict[str, float]:
    """log(loss on a language after D tokens of a mixture / loss after its own D p tokens alone): mean, 10 and 90 %."""
    alone = {(row["N"], row["D"], lang): row["loss"] for row in rows for lang, share in row["p"].items() if share == 1}
    ratios = [
        float(np.log(row["losses"][lang] / alone[point]))
        for row in rows
        for lang, share in row["p"].items()
        if 0 < share < 1 and (point := (row["N"], row["D"] * share, lang)) in alone
    ]
    low, high = np.percentile(ratios, (10, 90))
    return {"pairs": len(ratios), "mean": float(np.mean(ratios)), "p10": float(low), "p90": float(high)}


def seed_spread(rows: list[dict]) -> dict[str, float]:
    """By budget: standard deviation of the log loss of trainings that differ by their seed alone."""
    by_point = defaultdict(list)
    for row in rows:
        by_point[row["N"], row["D"], tuple(sorted(row["p"].items()))].append(np.log(row["loss"]))
    return {f"D={d:g}": float(np.std(x, ddof=1)) for (_, d, _), x in sorted(by_point.items()) if len(x) > 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--laws", type=int, default=20, help="planted laws for each level of noise; 0: none")
    parser.add_argument("--draws", type=int, default=100, help="of each bootstrap")
    parser.add_argument("--starts", type=int, default=8, help="of both optimisers; 0: do not compare them")
    parser.add_argument("--real", type=Path, metavar="FILE", help="measured runs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    found: dict = {}
    if args.starts:
        found["optimiser"] = against_lbfgs(args.starts)
    if args.laws:
        found["planted"] = recovery(args.laws, args.draws)
    if args.real:
        found["real"] = real(args.real, max(args.draws, 200))
    save("law", found, ["numpy", "scipy"], output=args.output)


if __name__ == "__main__":
    main()
