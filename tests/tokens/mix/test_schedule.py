"""Turns and curves: the bounds of the schedule, whatever the sizes, shares and phases."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.tokens.mix.schedule import Curve, curves, turns

SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=40)


@st.composite
def mixtures(draw):
    """Phases of amounts and, for each lane, the sizes of its records: they come again when they are used up."""
    lanes = draw(st.integers(1, 7))
    amount = st.one_of(st.just(0.0), st.floats(0.001, 1500))
    phases = draw(st.lists(st.lists(amount, min_size=lanes, max_size=lanes), min_size=1, max_size=4))
    sizes = draw(st.lists(SIZES.map(lambda sizes: [*sizes, 1]), min_size=lanes, max_size=lanes))
    return phases, sizes


def run(phases, sizes, given=None, taken=None):
    """(lane, what every lane has given after it) of all turns."""
    taken = taken or [0] * len(sizes)
    given = given or [0] * len(sizes)
    size_of = lambda lane: sizes[lane][taken[lane] % len(sizes[lane])]  # noqa: E731
    for lane, _ in turns(curves(phases), sum(map(sum, phases)), given, size_of):
        taken[lane] += 1
        yield lane, list(given), list(taken)


@settings(max_examples=60)
@given(mixtures())
def test_every_prefix_is_within_one_record_of_what_is_wanted(mixture):
    phases, sizes = mixture
    wanted, total = curves(phases), sum(map(sum, phases))
    largest = max(map(max, sizes))
    for _, amounts, _ in run(phases, sizes):
        done = sum(amounts)
        assert done < total + largest
        for number, amount in enumerate(amounts):
            share = wanted[number].at(min(done, total))
            assert share - largest - 1e-6 <= amount <= share + max(sizes[number]) + 1e-6


@settings(max_examples=40)
@given(mixtures(), st.data())
def test_a_run_goes_on_from_what_was_given(mixture, data):
    phases, sizes = mixture
    whole = list(run(phases, sizes))
    if whole:
        place = data.draw(st.integers(0, len(whole) - 1))
        _, amounts, taken = whole[place]
        assert list(run(phases, sizes, list(amounts), list(taken))) == whole[place + 1 :]


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
def test_a_curve_and_its_inverses_agree(steps, share):
    lengths, amounts = [0.0], [0.0]
    for length, slope in steps:
        lengths.append(lengths[-1] + length)
        amounts.append(amounts[-1] + slope * length)
    curve = Curve(lengths, amounts)
    amount = share * amounts[-1]
    release, deadline = curve.span(amount, 0)
    assert release == deadline == inf or abs(curve.at(release) - amount) < 1e-6
    for size in (0.001, 1.0, amounts[-1]):
        _, deadline = curve.span(amount, size)
        if deadline < inf:
            assert abs(curve.at(deadline) - amount - size) < 1e-6
            assert deadline >= release
        else:
            assert amount + size > amounts[-1] - 1e-6
