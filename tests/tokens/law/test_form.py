from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.streams.writer import dump
from iqc.syntax.languages import languages
from iqc.tokens.law.form import (
    SCALARS,
    VECTORS,
    drawn,
    gradients,
    mixture,
    predict,
    published,
    published_law,
    read_law,
    terms,
    to_record,
    with_values,
)

YOURS = ("A", "B", "gamma", "N0", "D0")
WHOLE = '{"A":1,"B":1,"gamma":0,"alpha_N":{"c":1},"alpha_D":{"c":1},"L_inf":{"c":1},"tau":{"c":{}}}'


def test_the_loss_is_the_formula_written_out(make_law):
    law = make_law("go", "java", "rust")
    p, n, d = (0.2, 0.5, 0.3), 3e8, 2e10
    synergy = sum(p[i] * p[j] * law.tau[i, j] for i in range(3) for j in range(3) if i != j)
    alpha_n, alpha_d, floor = (
        sum(share * float(x) for share, x in zip(p, v)) for v in (law.alpha_N, law.alpha_D, law.L_inf)
    )
    wanted = law.A * (n / law.N0) ** -alpha_n + law.B * (d * (1 + law.gamma * synergy) / law.D0) ** -alpha_d + floor
    assert predict(law, n, d, p)[0] == pytest.approx(wanted, rel=1e-14)


@given(st.integers(0, 99), st.floats(1e6, 1e11), st.floats(1e7, 1e13), st.floats(1.01, 100))
def test_more_parameters_and_more_tokens_never_hurt(make_law, seed, n, d, factor):
    law = make_law("c", "go", "java", seed=seed)
    p = np.random.default_rng(seed).dirichlet(np.ones(3))
    here = predict(law, n, d, p)[0]
    assert predict(law, n * factor, d, p)[0] < here and predict(law, n, d * factor, p)[0] < here
    assert here > terms(law, n, d, p).floor[0]


@given(st.integers(0, 99), st.permutations(range(4)))
def test_the_order_of_languages_does_not_matter(make_law, seed, order):
    law = make_law("c", "go", "java", "rust", seed=seed)
    order = list(order)
    moved = replace(
        law,
        languages=tuple(law.languages[at] for at in order),
        tau=law.tau[np.ix_(order, order)],
        **{name: getattr(law, name)[order] for name in VECTORS},
    )
    p = np.random.default_rng(seed).dirichlet(np.ones(4))
    assert predict(law, 1e9, 1e10, p) == pytest.approx(predict(moved, 1e9, 1e10, p[order]), rel=1e-13)


def test_points_at_once_are_points_one_by_one(make_law):
    law = make_law("c", "go")
    n, d, p = np.array([1e8, 1e9]), np.array([1e10, 3e9]), np.array([[0.3, 0.7], [1, 0]])
    assert predict(law, n, d, p).tolist() == [float(predict(law, *point)[0]) for point in zip(n, d, p)]


def test_gradients_equal_differences(make_law):
    law, step = make_law("c", "go", "java"), 1e-6
    n, d, p = np.array([2e8, 3e9]), np.array([1e10, 6e9]), np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0]])
    found = gradients(law, n, d, p)

    def difference(changed):
        return (predict(changed(step), n, d, p) - predict(changed(-step), n, d, p)) / (2 * step)

    def with_one(name, at, by):
        values = getattr(law, name).copy()
        values[at] += by
        return replace(law, **{name: values})

    for name in ("A", "B"):
        wanted = difference(lambda by, name=name: replace(law, **{name: getattr(law, name) * np.exp(by)}))
        assert found[name] == pytest.approx(wanted, rel=1e-6)
    assert found["gamma"] == pytest.approx(difference(lambda by: replace(law, gamma=law.gamma + by)), rel=1e-6)
    for name in (*VECTORS, "tau"):
        for at in np.ndindex(getattr(law, name).shape):
            wanted = difference(lambda by, name=name, at=at: with_one(name, at, by))
            assert found[name][(slice(None), *at)] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    for at in range(3):
        moved = [predict(law, n, d, p + by * np.eye(3)[at]) for by in (step, -step)]
        assert found["p"][:, at] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-6)


def test_without_gain_there_is_an_error(make_law):
    law = replace(make_law("c", "go"), gamma=-1e3)
    with pytest.raises(IqcError, match="less than no data"):
        predict(law, 1e9, 1e9, [0.5, 0.5])
    assert np.isfinite(predict(law, 1e9, 1e9, [1, 0]))  # one language has no synergy


def test_the_published_table_is_whole_and_says_what_is_missing():
    table = published()
    names = set(table["alpha_N"])
    assert len(names) == 7 and names <= set(languages())
    for part in (*VECTORS, "synergy_percent", "allocation_change_billions"):
        assert set(table[part]) == names
    assert all(set(row) == names - {name} for name, row in table["synergy_percent"].items())
    assert sum(table["allocation_change_billions"].values()) == pytest.approx(0, abs=1e-9)
    for name in YOURS:
        given = dict.fromkeys(set(YOURS) - {name}, 1.0)
        with pytest.raises(IqcError, match=f"{name} not given, and not published"):
            published_law(given)
    law = published_law(dict.fromkeys(YOURS, 1.0))
    assert law.origin == dict.fromkeys(YOURS, "given") | dict.fromkeys((*VECTORS, "tau"), "published")
    java, csharp = law.languages.index("java"), law.languages.index("csharp")
    assert (law.tau[java, csharp], law.tau[csharp, java]) == pytest.approx((0.2058, 0.0193))


def test_the_published_best_values_are_no_average_of_the_languages():
    """The trap that law.toml names: no shares give them."""
    for name, best in (("alpha_N", 0.2186), ("alpha_D", 0.6859), ("L_inf", 0.2025)):
        assert best < min(published()[name].values())


def test_a_law_file_gives_the_same_law(make_law, make_stream, tmp_path):
    law = make_law("c", "go", "java")
    draws = {"A": [0.5, 0.6], "L_inf": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
    record = to_record(law, {"runs": 3, "draws": draws, "spans": {"N": [1, 2]}})
    plain = tmp_path / "law.jsonl"
    plain.write_bytes(dump(record) + b"\n")
    for path in (plain, make_stream(tmp_path / "law.zst", [record])):
        again, fit = read_law(str(path))
        assert fit == {"runs": 3, "draws": draws, "spans": {"N": [1.0, 2.0]}, "confounded": []}
        assert all(np.array_equal(getattr(law, name), getattr(again, name)) for name in (*VECTORS, "tau", *SCALARS))
    first, second = drawn(again, draws)
    assert (first.A, second.A, first.B) == (0.5, 0.6, law.B) and second.L_inf.tolist() == [4, 5, 6]


def test_a_law_by_hand_is_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "A = 1\nB = 2\ngamma = 0\nalpha_N = {c = 0.3}\nalpha_D = {c = 0.4}\nL_inf = {c = 0.5}\ntau = {c = {}}\n"
    )
    law, fit = read_law(str(path))
    assert law.languages == ("c",) and law.N0 == 1 and fit == {"spans": {}, "confounded": []}
    assert predict(law, 10, 100, [1])[0] == pytest.approx(10**-0.3 + 2 * 100**-0.4 + 0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no record"),
        ('{"a":1}\n{"a":1}\n', "several records"),
        ('{"a":1}\n', "no 'alpha_N'"),
        ('{"kind":"other","alpha_N":{"c":1}}\n', "kind 'other'"),
        ('{"A":1,"B":1,"gamma":0,"alpha_N":{"c":"x"},"alpha_D":{"c":1},"L_inf":{"c":1},"tau":{"c":{}}}\n', "convert"),
        ('{"A":-1,"B":1,"gamma":0,"alpha_N":{"c":1},"alpha_D":{"c":1},"L_inf":{"c":1},"tau":{"c":{}}}\n', "negative"),
        (WHOLE[:-1] + ',"fit":{"draws":{"A":[[1,2]]}}}\n', "draws of A"),
        (WHOLE[:-1] + ',"fit":{"draws":{"C":[1]}}}\n', "no attribute 'C'"),
        (WHOLE[:-1] + ',"fit":{"spans":{"N":[1]}}}\n', "not enough values"),
        (WHOLE[:-1] + ',"origin":3}\n', "not iterable"),
    ],
)
def test_what_is_no_law_file_is_refused(tmp_path, text, says):
    path = tmp_path / "law.jsonl"
    path.write_text(text)
    with pytest.raises(IqcError, match=says) as error:
        read_law(str(path))
    assert error.value.where == str(path)


def test_shares_must_be_a_mixture_of_the_languages_of_the_law():
    assert mixture({"go": 0.25, "c": 0.75}, ("c", "go", "java")).tolist() == [0.75, 0.25, 0]
    for shares in ({"go": 0.5}, {"go": 1.5, "c": -0.5}, {"go": float("nan"), "c": 1}, {"lisp": 1}):
        with pytest.raises(IqcError):
            mixture(shares, ("c", "go", "java"))


@pytest.mark.parametrize("wrong", [{"alpha_N": 1.0}, {"A": -1.0}, {"N0": 0.0}, {"gamma": float("nan")}])
def test_a_value_that_cannot_be_is_refused(make_law, wrong):
    with pytest.raises(IqcError):
        with_values(make_law("c", "go"), wrong)
