"""Plans: amounts add up, shares are those asked for, limits hold, two margins are met or refused."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError, UsageError
from iqc.tokens.mix.lanes import Lane
from iqc.tokens.mix.plan import plan
from iqc.tokens.mix.recipe import REST, Difficulty, Phase, Recipe, Wish
from iqc.tokens.mix.schedule import curves, turns
from iqc.tokens.mix.shares import fit_margins

POSITIVE = st.floats(0.01, 100)


def lane(source, records, language="", band=""):
    return Lane(source, language, band, records=records, amount=10 * records, text=10 * records)


def totals(made):
    return [sum(column) for column in zip(*made.phases)]


@st.composite
def weighted(draw):
    """A recipe of sources with weights, some of epochs and some that replay, and their lanes."""
    count = draw(st.integers(1, 6))
    names = [f"s{number}" for number in range(count)]
    kinds = draw(st.lists(st.sampled_from(["weight", "weight", "epochs", "replay"]), min_size=count, max_size=count))
    wishes = {}
    for name, kind in zip(names, kinds):
        wishes[name] = Wish(**{kind: draw(st.floats(0.01, 0.15) if kind == "replay" else POSITIVE)})
    lanes = [lane(name, draw(st.integers(1, 10_000))) for name in names]
    shares = draw(st.lists(POSITIVE, min_size=1, max_size=3))
    weighted = [name for name, kind in zip(names, kinds) if kind == "weight"]
    phases = [Phase(share, {name: draw(POSITIVE) for name in weighted if draw(st.booleans())}) for share in shares]
    return Recipe(wishes, max_epochs=draw(st.floats(0.5, 5)), phases=phases), lanes


@given(weighted())
def test_without_a_total_the_first_source_is_just_used_up(mixture):
    recipe, lanes = mixture
    assume(any(wish.replay is None for wish in recipe.wishes.values()))
    try:
        made = plan(recipe, lanes)
    except IqcError as error:
        assert "epochs; allowed are" in error.what  # a replay share of the epochs alone is more than there is
        return
    allowed = [recipe.max_epochs * lane.amount for lane in lanes if recipe.wishes[lane.source].epochs is None]
    needed = [need for lane, need in zip(lanes, totals(made)) if recipe.wishes[lane.source].epochs is None]
    assert all(need <= most * (1 + 1e-6) + 1e-5 for need, most in zip(needed, allowed))
    if any(wish.weight for wish in recipe.wishes.values()):
        assert any(need >= most * (1 - 1e-6) - 1e-5 for need, most in zip(needed, allowed))
    for one, need in zip(lanes, totals(made)):
        wish = recipe.wishes[one.source]
        if wish.epochs is not None:
            assert need == pytest.approx(wish.epochs * one.amount)
        if wish.replay is not None:
            assert need == pytest.approx(wish.replay * made.total)
            number = lanes.index(one)
            assert all(row[number] == pytest.approx(wish.replay * sum(row)) for row in made.phases)


@settings(max_examples=60)
@given(weighted(), st.randoms(use_true_random=False))
def test_lanes_that_end_stay_within_one_record_of_their_curves(mixture, draw):
    """The bounds of the schedule hold for a whole plan, whose lanes end after their epochs; and what is to be given
    whole is given whole."""
    recipe, lanes = mixture
    sizes = []
    for one in lanes:
        one.records = one.records % 40 + 1
        sizes.append([draw.choice((0, 1, 9, 200)) for _ in range(one.records)])
        one.amount = sum(sizes[-1])
    try:
        made = plan(recipe, lanes)
    except IqcError as error:
        assert "is empty" in error.what or "epochs; allowed are" in error.what
        return
    taken, given = [0] * len(lanes), [0] * len(lanes)
    largest, wanted, total = max(map(max, sizes)), curves(made.phases), made.total

    def next_size(lane):
        return sizes[lane][taken[lane] % lanes[lane].records] if taken[lane] < made.limits[lane] else None

    for lane, _ in turns(wanted, total, given, next_size):
        taken[lane] += 1
        done = min(sum(given), total)
        for amount, curve, own in zip(given, wanted, sizes):
            assert curve.at(done) - largest - 1e-6 <= amount <= curve.at(done) + max(own) + 1e-6
    assert sum(given) >= total - 1e-6
    for amount, limit, owed, own, one in zip(given, made.limits, made.owed, sizes, lanes):
        assert not owed or amount >= limit // one.records * sum(own) - largest


@given(st.lists(st.tuples(POSITIVE, st.integers(1, 1000)), min_size=1, max_size=6), st.integers(1, 50_000))
def test_a_total_is_given_by_weights_or_refused_or_taken_from_the_others(sources, total):
    wishes = {f"s{number}": Wish(weight) for number, (weight, _) in enumerate(sources)}
    lanes = [lane(name, records) for name, (_, records) in zip(wishes, sources)]
    whole, weights = sum(one.amount for one in lanes), sum(weight for weight, _ in sources)
    enough = all(total * weight / weights <= one.amount for one, (weight, _) in zip(lanes, sources))
    if enough:
        for one, (weight, _) in zip(totals(plan(Recipe(wishes, total=total), lanes)), sources):
            assert one == pytest.approx(total * weight / weights)
    else:
        with pytest.raises(IqcError, match="allowed"):
            plan(Recipe(wishes, total=total), lanes)
    recipe = Recipe(wishes, total=total, short="rescale")
    if total > whole:
        with pytest.raises(IqcError, match="there are"):
            plan(recipe, lanes)
        return
    made = plan(recipe, lanes)
    assert made.total == pytest.approx(total)
    found = totals(made)
    assert all(one <= lane.amount * (1 + 1e-6) + 1e-5 for one, lane in zip(found, lanes))
    rates = [one / weight for one, (weight, _), lane in zip(found, sources, lanes) if one < lane.amount * (1 - 1e-6)]
    assert not rates or max(rates) == pytest.approx(min(rates))  # what is not used up keeps its proportions


CELLS = st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), POSITIVE, min_size=1)


@given(CELLS, CELLS)
def test_margins_that_can_be_met_are_met(seeds, other):
    """The margins are those of some table with the same cells, so there is a solution."""
    cells = {cell: other.get(cell, 1.0) for cell in seeds}
    rows, columns = ({cell[k]: 0.0 for cell in cells} for k in (0, 1))
    for (row, column), size in cells.items():
        rows[row] += size
        columns[column] += size
    scale = sum(rows.values())
    rows, columns = ({name: size / scale for name, size in margin.items()} for margin in (rows, columns))
    found = fit_margins(seeds, rows, columns)
    for row, size in rows.items():
        assert sum(found[cell] for cell in found if cell[0] == row) == pytest.approx(size, abs=1e-6)
    for column, size in columns.items():
        assert sum(found[cell] for cell in found if cell[1] == column) == pytest.approx(size, abs=1e-6)


def test_margins_that_cannot_be_met_are_refused():
    seeds = {("a", "x"): 1.0, ("b", "x"): 1.0, ("b", "y"): 1.0}
    with pytest.raises(IqcError, match="no mixture has both"):
        fit_margins(seeds, {"a": 0.7, "b": 0.3}, {"x": 0.5, "y": 0.5})


def test_a_temperature_of_languages_leaves_records_without_one_alone():
    lanes = [lane("s", 900, "python"), lane("s", 100, "rust"), lane("s", 250, REST)]
    made = plan(Recipe({"s": Wish()}, total=1000, language_temperature=2.0), lanes)
    assert [need / 1000 for need in totals(made)] == pytest.approx([0.8 * 0.75, 0.8 * 0.25, 0.2])


def test_phases_weigh_bands_and_leave_records_without_a_score_alone():
    lanes = [lane("s", 30, band="easy"), lane("s", 50, band="hard"), lane("s", 20)]
    difficulty = Difficulty("score", [0.5], ["easy", "hard"])
    phases = [Phase(1, difficulty={"easy": 3, "hard": 1}), Phase(3, difficulty={"easy": 1, "hard": 3})]
    made = plan(Recipe({"s": Wish(1)}, total=400, difficulty=difficulty, phases=phases), lanes)
    assert [pytest.approx(row) for row in made.phases] == [[60, 20, 20], [60, 180, 60]]
    once = plan(Recipe({"s": Wish(epochs=1)}, difficulty=difficulty, phases=phases), lanes)
    assert totals(once) == pytest.approx([300, 500, 200])
    with pytest.raises(UsageError, match="no phase has room for the band hard of source s"):
        plan(Recipe({"s": Wish(epochs=1)}, difficulty=difficulty, phases=[Phase(1, difficulty={"easy": 1})]), lanes)


def test_replay_leaves_something_for_the_others():
    with pytest.raises(UsageError, match="leave nothing"):
        plan(Recipe({"a": Wish(1), "b": Wish(replay=1.0)}), [lane("a", 1), lane("b", 1)])


def test_no_source_is_given_more_often_than_is_allowed():
    made = plan(Recipe({"a": Wish(), "b": Wish(epochs=2)}, max_epochs=0.5), [lane("a", 60), lane("b", 60)])
    assert totals(made) == [300, 1200]
