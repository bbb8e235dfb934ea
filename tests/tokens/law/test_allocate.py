"""Allocations, against a grid of all mixtures and against what must hold at any optimum."""

import tomllib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.tokens.law.allocate import allocate, best_move, bounds_of, onto, residual, spread, toml
from iqc.tokens.law.fit import fit, runs_of
from iqc.tokens.law.form import VECTORS, predict, terms

N, D = 1e9, 2e10


def free(law, **limits):
    return bounds_of(law, D, limits.get("least", {}), limits.get("most", {}), {}, 1)


@settings(max_examples=12)
@given(st.integers(0, 1000), st.booleans(), st.lists(st.floats(0, 0.3), min_size=3, max_size=3))
def test_no_mixture_of_a_grid_is_better(make_law, seed, reducible, least):
    law = make_law("c", "go", "java", seed=seed)
    bounds = free(law, least=dict(zip(law.languages, least)))
    found = allocate(law, N, D, bounds, reducible=reducible)
    steps = np.arange(0, 1.0001, 0.05)
    grid = np.array([(a, b, 1 - a - b) for a, b in product(steps, steps) if a + b <= 1 + 1e-9])
    grid = np.array([p for p in grid if (p >= bounds.least - 1e-12).all() and (p <= bounds.most + 1e-12).all()])
    if len(grid):
        parts = terms(law, N, D, grid)
        assert (parts.loss - reducible * parts.floor).min() >= found.loss - reducible * found.shares @ law.L_inf - 1e-9
    assert found.residual < 1e-5 and found.saved < 1e-9
    assert found.shares.sum() == pytest.approx(1, abs=1e-9)
    assert (found.shares >= bounds.least - 1e-12).all() and (found.shares <= bounds.most + 1e-12).all()
    assert (found.ranges[:, 0] <= found.shares + 1e-9).all() and (found.shares <= found.ranges[:, 1] + 1e-9).all()


@settings(max_examples=6)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_permuted_languages_permute_the_shares(make_law, seed, order):
    law = make_law("c", "go", "java", "rust", seed=seed)
    order = list(order)
    vectors = {name: getattr(law, name)[order] for name in VECTORS}
    moved = replace(
        law, languages=tuple(law.languages[at] for at in order), tau=law.tau[np.ix_(order, order)], **vectors
    )
    one, other = (allocate(some, N, D, free(some), reducible=True) for some in (law, moved))
    assert one.loss - one.shares @ law.L_inf == pytest.approx(other.loss - other.shares @ moved.L_inf, rel=1e-7)
    assert other.shares == pytest.approx(one.shares[order], abs=2e-3)


def test_a_mixture_that_is_not_the_best_fails_the_certificate(make_law):
    law = make_law("c", "go", "java")
    even = np.full(3, 1 / 3)
    assert residual(law, N, D, free(law), even, False) > 1e-3
    assert best_move(law, N, D, free(law), even, False) > 1e-4


def test_languages_that_are_alike_get_equal_shares_and_one_that_is_dearer_less(make_law):
    law = make_law("c", "go", "java")
    ones = np.ones((3, 3)) - np.eye(3)
    alike = replace(law, tau=ones, gamma=3.0, **{name: np.full(3, 0.3) for name in VECTORS})
    assert allocate(alike, N, D, free(alike)).shares == pytest.approx(np.full(3, 1 / 3), abs=1e-3)
    dear = replace(alike, L_inf=np.array([0.3, 0.3, 0.31]))
    shares = allocate(dear, N, D, free(dear)).shares
    assert shares[2] < shares[0] - 1e-3 and shares[0] == pytest.approx(shares[1], abs=1e-3)
    assert allocate(dear, N, D, free(dear), reducible=True).shares == pytest.approx(np.full(3, 1 / 3), abs=1e-3)


def test_without_synergy_the_best_mixture_is_one_language_unless_shares_are_bound(make_law):
    """What the manual warns of: the law's loss is of the mixture on itself."""
    law = replace(make_law("c", "go", "java"), gamma=0.0, L_inf=np.array([0.9, 0.3, 0.9]))
    assert allocate(law, N, D, free(law)).shares == pytest.approx([0, 1, 0], abs=1e-6)
    bound = free(law, least={"c": 0.2}, most={"go": 0.5})
    shares = allocate(law, N, D, bound).shares
    assert shares[1] == pytest.approx(0.5, abs=1e-6) and shares[0] >= 0.2 - 1e-9


def test_what_is_available_bounds_a_share(make_law):
    law = make_law("c", "go")
    bounds = bounds_of(law, D, {}, {}, {"go": 1e9}, 4.0)
    assert bounds.most.tolist() == [1.0, 0.2]
    for limits in (({"c": 0.6, "go": 0.6}, {}, {}), ({}, {"c": 0.4, "go": 0.4}, {}), ({}, {}, {"c": 1e9, "go": 1e9})):
        with pytest.raises(IqcError, match="add up to"):
            bounds_of(law, D, *limits, 1.0)
    with pytest.raises(IqcError, match=r"at least 0\.5 and at most 0\.2"):
        bounds_of(law, D, {"go": 0.5}, {}, {"go": 1e9}, 4.0)
    with pytest.raises(IqcError, match="no language 'lisp'"):
        bounds_of(law, D, {"lisp": 0.5}, {}, {}, 1.0)


@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_the_projection_lies_on_the_simplex_and_leaves_its_points_alone(make_law, values):
    bounds = free(make_law("c", "go", "java", "rust"), least={"c": 0.1}, most={"go": 0.5})
    found = onto(np.array(values), bounds)
    assert found.sum() == pytest.approx(1, abs=1e-9) and (found >= bounds.least).all() and (found <= bounds.most).all()
    assert onto(found, bounds) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_allocation_of_a_fit_on_noisy_runs_beats_the_even_mixture_under_the_true_law(make_law, seed):
    languages = ("c", "go", "java")
    law, draw = make_law(*languages, seed=seed), np.random.default_rng([seed, 9])
    mixtures = [*np.eye(3), np.full(3, 1 / 3), *draw.dirichlet(np.ones(3), 3)]
    made = [
        {"N": n, "D": d, "p": dict(zip(languages, p)), "loss": predict(law, n, d, p)[0] * np.exp(0.01 * draw.normal())}
        for n in (1e8, 5e8, 2e9)
        for d in (2e9, 1e10, 5e10)
        for p in mixtures
    ]
    fitted = fit(runs_of(made), law, draws=5, hold_out=False, starts=3)
    bounds = bounds_of(law, D, dict.fromkeys(languages, 0.05), {}, {}, 1)
    found = allocate(fitted.law, N, D, bounds)
    assert predict(law, N, D, found.shares)[0] < predict(law, N, D, np.full(3, 1 / 3))[0]
    laws = [replace(fitted.law, gamma=float(value)) for value in fitted.draws["gamma"]]
    among = spread(laws, N, D, bounds, found.shares, (0, 100), False)
    assert among.better == 1 and among.shares.shape == (3, 2)


def test_the_recipe_is_a_table_of_shares():
    text = toml(("c", "go", "java"), np.array([0.25, 0.0, 0.75]), ["why"])
    assert text.startswith("# why\n") and tomllib.loads(text) == {"languages": {"c": 0.25, "java": 0.75}}
    assert tomllib.loads(toml(("c++", 'a "b"\n'), np.array([0.5, 0.5]), []))["languages"] == {
        "c++": 0.5,
        'a "b"\n': 0.5,
    }
