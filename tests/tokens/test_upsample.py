import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import UsageError
from iqc.streams.stage import Dropped
from iqc.tokens.pack import Encoded
from iqc.tokens.sequence import Row
from iqc.tokens.upsample import Upsampling


def sample(name, size, source="web"):
    row = Row(np.zeros(size, np.uint32), np.array([size], np.uint32), np.ones(size, np.uint8), [name])
    return Encoded("document", row, source)


def drawn(samples, length, factor, **options):
    upsampling = Upsampling(length, factor, **options)
    out = list(upsampling(iter(samples)))
    return upsampling, [s for s in out if isinstance(s, Encoded)], [s for s in out if isinstance(s, Dropped)]


def mixed(seed, count=4000):
    """Two sources: in one a quarter of the tokens are in long samples, in the other three quarters."""
    chance, out = random.Random(seed), []
    for number in range(count):
        source = chance.choice(["web", "code"])
        long = chance.random() < (0.04 if source == "web" else 0.27)
        out.append(sample(f"{source}-{number}", 1000 if long else chance.randint(50, 200), source))
    return out


def tokens(samples, source, longer_than=0):
    return sum(s.row.tokens.size for s in samples if s.source == source and s.row.tokens.size > longer_than)


@pytest.mark.parametrize("factor", [1.5, 2.3, 4])
def test_long_samples_get_the_factor_and_sources_keep_their_tokens(factor):
    samples = mixed(0)
    _, out, _ = drawn(samples, 1000, factor, window=1000)
    for source in ("web", "code"):
        before, after = tokens(samples, source), tokens(out, source)
        assert after == pytest.approx(before, rel=0.05)
        odds = [
            tokens(some, source, 500) / (tokens(some, source) - tokens(some, source, 500)) for some in (samples, out)
        ]
        assert odds[1] / odds[0] == pytest.approx(factor, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from("ab")), max_size=40), st.floats(1, 5), st.integers(0, 3))
def test_each_sample_is_kept_copied_or_dropped_in_order(shapes, factor, seed):
    samples = [sample(f"s{n}", size, source) for n, (size, source) in enumerate(shapes)]
    counts, out, dropped = drawn(samples, 20, factor, seed=seed, window=15)
    stems = [s.row.ids[0].partition("~")[0] for s in out]
    assert list(dict.fromkeys(stems)) == [s.row.ids[0] for s in samples if s.row.ids[0] in stems]
    assert {d.record["id"] for d in dropped} == {s.row.ids[0] for s in samples} - set(stems)
    assert all(d.rule == "thinned" and d.value >= d.threshold for d in dropped)
    assert len({s.row.ids[0] for s in out}) == len(out)
    for number, (size, _) in enumerate(shapes):
        assert stems.count(f"s{number}") <= (np.ceil(factor) if size >= 20 else 1)
    assert counts.copies == len(out) - len(set(stems)) and counts.long == sum(size >= 20 for size, _ in shapes)
    assert [s.row.ids for s in drawn(samples, 20, factor, seed=seed, window=15)[1]] == [s.row.ids for s in out]


def test_a_factor_of_1_and_a_length_that_none_has_change_nothing():
    samples = mixed(1, 300)
    for length, factor in ((1000, 1), (1001, 3), (1, 3)):
        _, out, dropped = drawn(samples, length, factor)
        assert [s.row.ids for s in out] == [s.row.ids for s in samples] and not dropped


def test_the_draw_of_a_sample_depends_on_seed_and_id_alone():
    """Within one window, whose weights do not depend on the order."""
    samples = mixed(2, 300)
    names = [{s.row.ids[0] for s in drawn(some, 1000, 2.5)[1]} for some in (samples, samples[::-1])]
    assert names[0] == names[1] != {s.row.ids[0] for s in drawn(samples, 1000, 2.5, seed=1)[1]}


@pytest.mark.parametrize("wrong", [(0, 2), (10, 0.5), (10, float("nan")), (10, float("inf"))])
def test_wrong_options(wrong):
    with pytest.raises(UsageError):
        Upsampling(*wrong)
