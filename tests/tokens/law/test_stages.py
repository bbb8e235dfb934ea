"""`iqc mix --law` from files to files."""

import json
import tomllib

import numpy as np
import pytest

from iqc.errors import BadRecord, IqcError, UsageError
from iqc.streams.runner import Settings, StreamInput, read_records
from iqc.tokens.law.form import predict, read_law
from iqc.tokens.law.stages import Asked, allocation, fit_stage, point_of, predict_point, predict_stage
from iqc.tokens.mix.recipe_file import RecipeFile

LANGUAGES = ("go", "java", "rust")
RUN = {"N": 1e8, "D": 2e9, "p": {"go": 0.5, "java": 0.5}, "loss": 1.3}


@pytest.fixture(scope="session")
def runs_file(make_law, tmp_path_factory):
    """Runs of a planted law with published languages, as JSON lines."""
    law, draw = make_law(*LANGUAGES), np.random.default_rng(0)
    mixtures = [*np.eye(3), np.full(3, 1 / 3), *draw.dirichlet(np.ones(3), 2)]
    path = tmp_path_factory.mktemp("law") / "runs.jsonl"
    with open(path, "w") as out:
        for n in (1e8, 5e8, 2e9):
            for d in (2e9, 1e10, 5e10):
                for p in mixtures:
                    loss = predict(law, n, d, p)[0] * np.exp(2e-3 * draw.normal())
                    out.write(json.dumps({"N": n, "D": d, "p": dict(zip(LANGUAGES, p)), "loss": loss}) + "\n")
    return path


@pytest.fixture(scope="session")
def law_file(runs_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("law") / "law.zst"
    fit_stage(Asked(draws=8), Settings(inputs=[str(runs_file)], output=str(path), jobs=1, quiet=True))
    return path


def test_a_law_file_says_what_it_was_made_of(law_file, iqc):
    law, found = read_law(str(law_file))
    assert law.languages == LANGUAGES and law.origin["A"] == "fit" and law.origin["tau"] == "published"
    assert found["runs"] == found["trainings"] == 54 and found["digest"].startswith("sha256:")
    assert set(found["held_out"]) == {"N", "D", "p"} and len(found["draws"]["A"]) == 8 and not found["confounded"]
    lineage = iqc("lineage", law_file).stdout.decode()
    assert "read 54, kept 1" in lineage and "law=fit" in lineage


def test_the_order_of_runs_does_not_change_the_law(runs_file, tmp_path):
    lines = runs_file.read_text().splitlines()[::2]
    found = []
    for place, some in enumerate((lines, lines[::-1])):
        (tmp_path / "in").write_text("\n".join(some))
        out = tmp_path / f"{place}"
        settings = Settings(inputs=[str(tmp_path / "in")], output=str(out), jobs=1, quiet=True, plain=True)
        fit_stage(Asked(draws=1, free=("A", "B", "L_inf"), given={"gamma": 0}), settings)
        found.append(out.read_bytes())
    assert found[0] == found[1] and b'"gamma":"given"' in found[0]


def test_predictions_are_the_laws_and_say_where_its_numbers_are_from(law_file, runs_file, tmp_path):
    law, _ = read_law(str(law_file))
    out = tmp_path / "out.zst"
    said = predict_stage(Asked(law_file=str(law_file)), Settings(inputs=[str(runs_file)], output=str(out), jobs=1))
    for point in read_records(StreamInput([str(out)])):
        wanted = predict(law, point["N"], point["D"], list(point["p"].values()))[0]
        assert point["predicted_loss"] == pytest.approx(wanted, rel=1e-12)
        low, high = point["predicted_interval"]
        assert low <= high and point["predicted_loss"] == pytest.approx(point["loss"], rel=0.02)
        assert point["law"]["gamma"] == "fit" and "extrapolated" not in point
    assert said == "not published, but yours: A, B, gamma from the fit"
    given = {"A": 0.4, "B": 0.3, "gamma": 1.0, "N0": 1e9, "D0": 1e9}
    shown = predict_point(Asked(given=given, size=1e9, budget=1e9, shares={"go": 1.0}))
    assert f"loss {0.4 + 0.3 + 0.414:.5g}\n" in shown and "not published, but yours: A = 0.4, B = 0.3" in shown


def test_an_allocation_is_a_recipe(law_file, tmp_path):
    limits = {"least": {"*": 0.1}, "most": {"java": 0.6}, "available": {"go": 1e10}}
    text, recipe = allocation(Asked(law_file=str(law_file), size=1e9, budget=2e10, **limits))
    shares = tomllib.loads(recipe)["languages"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5) and min(shares.values()) >= 0.1 - 1e-6
    assert shares["java"] <= 0.6 and shares["go"] <= 0.5
    path = tmp_path / "shares.toml"
    path.write_text(recipe)
    assert RecipeFile(str(path)).recipe()[0].languages == shares
    assert "KKT" in text and "of the draws the allocation is better" in text and "easy to predict" in text
    text, recipe = allocation(Asked(published=True, budget=7e11))
    assert tomllib.loads(recipe)["languages"]["python"] == pytest.approx(76.77 / 350, abs=1e-6)
    assert "cannot be computed from the published law" in text


def test_a_point_without_a_loss_is_a_bad_record(tmp_path):
    path = tmp_path / "points.jsonl"
    path.write_text(json.dumps(RUN) + "\n" + json.dumps(RUN | {"N": 1e-300}) + "\n")
    asked = Asked(given={"A": 1.0, "B": 1.0, "gamma": 1.0, "N0": 1e300, "D0": 1.0})
    with pytest.raises(BadRecord, match="no finite loss") as error:
        predict_stage(asked, Settings(inputs=[str(path)], output=str(tmp_path / "out"), jobs=1, quiet=True))
    assert error.value.where == f"{path}:2"


def test_what_the_runs_do_not_tell_is_said_by_the_fit_and_by_what_uses_it(tmp_path):
    (tmp_path / "runs.jsonl").write_text((json.dumps(RUN | {"p": {"go": 1.0}}) + "\n") * 40)
    path = tmp_path / "law.zst"
    settings = Settings(inputs=[str(tmp_path / "runs.jsonl")], output=str(path), jobs=1, quiet=True)
    text = fit_stage(Asked(draws=2), settings)
    assert "the runs say nothing about: gamma" in text and "gamma, the transfer" not in text
    asked = Asked(law_file=str(path), size=1e8, budget=2e9, shares={"go": 1.0})
    for said in (predict_point(asked), *allocation(asked)):
        assert "the runs say nothing about: gamma" in said and "cannot tell apart: A, B, L_inf[go]" in said
    assert "no share can be moved" in allocation(asked)[0]


def test_what_lies_beyond_the_runs_is_said(law_file):
    asked = Asked(law_file=str(law_file), size=8e9, budget=1e9, shares={"go": 1.0})
    text = predict_point(asked)
    assert "N is 4 times the largest of the runs" in text and "D is 0.5 of the least of the runs" in text
    assert "extrapolated: N is 4 times" in allocation(asked)[1]
    asked.size, asked.budget = 1e9, 1e10
    assert "extrapolated" not in predict_point(asked)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss": -1.0}, "loss is -1.0"),
        ({"loss": None}, "loss is None"),
        ({"N": 0}, "N is 0"),
        ({"D": True}, "D is True"),
        ({"D": "2e9"}, "D is '2e9'"),
        ({"p": {}}, "not shares"),
        ({"p": {"go": 0.5, "java": 0.4}}, "add up to 0.9"),
        ({"p": {"go": 1.5, "java": -0.5}}, "shares"),
        ({"p": {"go": None, "java": 1}}, "share of go is None"),
        ({"p": {"go": 0.5, "cobol": 0.5}}, "unknown language 'cobol'"),
    ],
)
def test_a_bad_run_is_refused_with_its_line(change, says, tmp_path):
    with pytest.raises(BadRecord, match=says):
        point_of(RUN | change, loss=True, languages=LANGUAGES)
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(RUN) + "\n" + json.dumps(RUN | change) + "\n")
    with pytest.raises(BadRecord) as error:
        fit_stage(Asked(), Settings(inputs=[str(path)], output=str(tmp_path / "out"), jobs=1, quiet=True))
    assert error.value.where == f"{path}:2" and error.value.remedy


def test_shares_are_normalised_and_a_point_needs_no_loss():
    found = point_of({"N": 1, "D": 2, "p": {"go": 0.333, "java": 0.333, "rust": 0.333}}, loss=False)
    assert found == {"N": 1.0, "D": 2.0, "p": dict.fromkeys(LANGUAGES, pytest.approx(1 / 3))}


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        (Asked(free=("A", "C")), UsageError, "--free C"),
        (Asked(free=("A",), given={"A": 1.0}), UsageError, "nothing to fit"),
        (Asked(free=("B", "gamma", "L_inf")), UsageError, "A is not free and has no value"),
        (Asked(given={"alpha_N": 1.0}), IqcError, "no parameter 'alpha_N'"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(asked, kind, says, runs_file, tmp_path):
    with pytest.raises(kind, match=says):
        fit_stage(asked, Settings(inputs=[str(runs_file)], output=str(tmp_path / "out"), jobs=1, quiet=True))


def test_half_a_question_is_refused(tmp_path):
    given = dict.fromkeys(("A", "B", "gamma", "N0", "D0"), 1.0)
    for ask, asked, says in (
        (predict_point, Asked(given=given, size=1e9), "half a point"),
        (
            predict_point,
            Asked(size=1e9, budget=1e9, shares={"go": 1.0}),
            "A, B, gamma, N0, D0 not given, and not published",
        ),
        (allocation, Asked(given=given, size=1e9), "no budget"),
    ):
        with pytest.raises(IqcError, match=says):
            ask(asked)
    with pytest.raises(UsageError, match="writes one file"):
        fit_stage(Asked(), Settings(output=f"{tmp_path}/"))


def test_too_few_runs_and_none_are_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    for text, says in ((json.dumps(RUN) + "\n", "1 runs for 9 free parameters"), ("", "no runs")):
        path.write_text(text)
        with pytest.raises(IqcError, match=says):
            fit_stage(Asked(), Settings(inputs=[str(path)], output=str(tmp_path / "out"), jobs=1, quiet=True))
        assert not (tmp_path / "out").exists()


def test_the_command_line_hands_everything_on(iqc, law_file, runs_file, tmp_path):
    where = ("--law-file", law_file, "--model-size", "1e9", "--total", "20G")
    done = iqc("mix", "--law", "allocate", *where, "--least", "*=0.2", "--reducible", "-o", tmp_path / "mix.toml")
    assert done.returncode == 0 and b"least L - L_inf(p)" in done.stdout
    assert min(tomllib.loads((tmp_path / "mix.toml").read_text())["languages"].values()) >= 0.2
    done = iqc("mix", "--law", "predict", *where, "--languages", "go=0.5,rust=0.5")
    assert done.returncode == 0 and done.stdout.startswith(b"N = 1e+09, D = 2e+10, go 0.5, rust 0.5\nloss ")
    (tmp_path / "bad.jsonl").write_text('{"N": 1}\n')
    done = iqc("mix", "--law", "fit", tmp_path / "bad.jsonl", "-o", tmp_path / "law.zst", "--huber", 0.01, "--draws", 5)
    assert done.returncode == 1 and f"{tmp_path}/bad.jsonl:1: D is None".encode() in done.stderr
    refused = iqc("mix", "--law", "allocate", *where, runs_file)
    assert refused.returncode == 2 and b"nothing is read here" in refused.stderr
    for wrong in (
        ("--least", "go=0.1", runs_file),
        ("--law", "fit", "--weight", "a=1", runs_file),
        ("--law", "fit", "--set", "A"),
        ("--law", "fit", "--model-size", "1B"),
    ):
        done = iqc("mix", *wrong)
        assert done.returncode == 2, (wrong, done.stderr)
