import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import BadRecord, UsageError
from iqc.streams.stage import Dropped
from iqc.tokens.pack import Packer
from iqc.tokens.sequence import decode_sequence, encode_sequence, starts


def sample(number, size, kind="document", weight=1.0):
    """A sample whose tokens say whose they are and where: number * 1000 + place."""
    tokens = number * 1000 + np.arange(size, dtype=np.uint32)
    loss = np.full(size, weight, np.float32)
    lengths = np.array([size], np.uint32)
    return encode_sequence(id=f"s{number}", ids=[f"s{number}"], tokens=tokens, lengths=lengths, loss=loss) | {
        "kind": kind
    }


def pack(samples, context, **options):
    packer = Packer(context, **options)
    out = [record for s in samples for record in packer.add(s)] + packer.finish()
    rows = [r for r in out if not isinstance(r, Dropped)]
    return packer.stats, rows, [r for r in out if isinstance(r, Dropped)]


inputs = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["document", "chat", "fim"])), max_size=40)
methods = st.sampled_from(["best_fit", "concat"])
longs = st.sampled_from(["split", "drop"])


@given(shapes=inputs, context=st.integers(2, 24), method=methods, long=longs, window=st.integers(1, 12))
def test_every_token_is_in_one_row_or_its_sample_is_dropped(shapes, context, method, long, window):
    samples = [sample(i, size, kind) for i, (size, kind) in enumerate(shapes)]
    stats, rows, dropped = pack(samples, context, method=method, long=long, window=window)
    decoded = [decode_sequence(row) for row in rows]

    expected_dropped = [
        f"s{i}" for i, (size, kind) in enumerate(shapes) if size > context and (kind != "document" or long == "drop")
    ]
    assert [d.record["id"] for d in dropped] == expected_dropped
    assert all(d.rule == "longer_than_context" and d.value > d.threshold == context for d in dropped)

    kept = [i for i in range(len(shapes)) if f"s{i}" not in expected_dropped]
    assert sorted(t for row in decoded for t in row.tokens.tolist()) == [
        i * 1000 + place for i in kept for place in range(shapes[i][0])
    ]

    pieces = {}
    for row in decoded:
        assert 0 < row.tokens.size <= context and row.lengths.sum() == row.tokens.size
        for name, begin, size in zip(row.ids, starts(row.lengths).tolist(), row.lengths.tolist()):
            part = row.tokens[begin : begin + size].astype(int)
            assert (np.diff(part) == 1).all()  # whole and in order
            assert row.loss[begin] == 0 and row.loss[begin + 1 : begin + size].all()
            assert name not in pieces
            pieces[name] = part
    for i in kept:
        size, kind = shapes[i]
        parts = [pieces[f"s{i}"]] if f"s{i}" in pieces else []
        while f"s{i}#{len(parts)}" in pieces:
            parts.append(pieces[f"s{i}#{len(parts)}"])
        assert np.concatenate(parts).tolist() == list(range(i * 1000, i * 1000 + size))
        if kind != "document" or (method == "best_fit" and size <= context):
            assert len(parts) == 1 and f"s{i}" in pieces
        if method == "best_fit":
            assert all(len(part) == context for part in parts[:-1])

    assert stats.samples == len(shapes) and stats.dropped == len(dropped) and stats.rows == len(rows)
    assert stats.tokens == sum(row.tokens.size for row in decoded)
    assert stats.learnt == sum(int(np.count_nonzero(row.loss)) for row in decoded)
    assert stats.pieces == sum("#" in name for name in pieces)
    assert stats.split == len({name.split("#")[0] for name in pieces if "#" in name})
    assert stats.fill == (stats.tokens / (context * stats.rows) if rows else 0)
    assert len({row["id"] for row in rows}) == len(rows)


@given(shapes=inputs, method=methods)
def test_the_same_samples_give_the_same_rows(shapes, method):
    samples = [sample(i, size, kind) for i, (size, kind) in enumerate(shapes)]
    assert pack(samples, 16, method=method, window=7)[1] == pack(samples, 16, method=method, window=7)[1]


@given(shapes=inputs)
def test_rows_leave_in_the_order_of_their_earliest_sample(shapes):
    samples = [sample(i, min(size, 16), kind) for i, (size, kind) in enumerate(shapes)]
    firsts = []
    for row in pack(samples, 16)[1]:
        numbers = [int(name[1:]) for name in row["ids"]]
        assert numbers == sorted(numbers)
        firsts.append(numbers[0])
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("seed", range(8))
def test_best_fit_is_at_least_as_full_as_rows_in_order(seed):
    """Samples that must not be cut, of log-normal length: best fit makes no more rows than taking them in order."""
    chance = random.Random(seed)
    samples = [sample(i, max(1, min(256, int(chance.lognormvariate(4, 0.8)))), "chat") for i in range(600)]
    best, in_order = (pack(samples, 256, method=method)[0] for method in ("best_fit", "concat"))
    assert best.tokens == in_order.tokens and best.rows < in_order.rows
    assert best.fill > 0.98 and in_order.fill < 0.9


def test_concat_fills_every_row_but_the_last():
    stats, rows, _ = pack([sample(i, 30) for i in range(10)], 64, method="concat")
    assert [decode_sequence(row).tokens.size for row in rows] == [64, 64, 64, 64, 44] and stats.split == 4
    assert rows[0]["ids"] == ["s0", "s1", "s2#0"] and rows[1]["ids"] == ["s2#1", "s3", "s4#0"]


def test_a_window_bounds_what_waits():
    packer = Packer(8, window=4)
    out = [packer.add(sample(i, 5)) for i in range(20)]
    assert max(map(len, out)) <= 4 and sum(map(len, out)) + len(packer.finish()) == 20


def test_weights_other_than_0_and_1_stay():
    _, rows, _ = pack([sample(0, 4, weight=0.5), sample(1, 4)], 8)
    row = decode_sequence(rows[0])
    assert row.loss.dtype == np.float32 and row.loss.tolist() == [0, 0.5, 0.5, 0.5, 0, 1, 1, 1]


@pytest.mark.parametrize("field", ["tokens", "lengths", "loss", "ids"])
def test_a_damaged_sequence_is_refused(field):
    good = sample(0, 4)
    for bad in ({k: v for k, v in good.items() if k != field}, good | {field: "AAAAA"}, good | {field: good["id"]}):
        with pytest.raises(BadRecord):
            decode_sequence(bad)


def test_a_loss_on_the_first_token_of_a_document_is_refused():
    with pytest.raises(BadRecord, match="first token"):
        decode_sequence(sample(0, 2) | {"loss": "AQE="})


def test_packed_rows_are_not_packed_again():
    row = pack([sample(0, 4), sample(1, 4)], 8)[1][0]
    with pytest.raises(BadRecord, match="2 documents"):
        Packer(16).add(row)


@pytest.mark.parametrize("options", [{"context": 1}, {"method": "greedy"}, {"long": "keep"}, {"window": 0}])
def test_wrong_options(options):
    with pytest.raises(UsageError):
        Packer(**({"context": 8} | options))
