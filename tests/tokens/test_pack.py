import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import BadRecord, UsageError
from iqc.tokens.pack import CUTTABLE, Encoded, Packer
from iqc.tokens.sequence import Row, chain, decode_sequence, encode_sequence, starts

KINDS = ("document", "repository", "chat", "fim", "preference", "tree")
LINE = 5  # in these samples every fifth token ends a line
LINE_ENDS = np.arange(1_000_000) % LINE == LINE - 1


def sample(number, size, kind="document", weight=1.0):
    """A sample whose tokens say whose they are and where: number * 1000 + place. Pairs are two documents; a tree is a
    trie of two branches where it has the tokens for it."""
    tokens = number * 1000 + np.arange(size, dtype=np.uint32)
    loss = np.ones(size, np.uint8) if weight == 1 else np.full(size, weight, np.float32)
    loss[:1] = 0
    lengths, ids, parents = np.array([size], np.uint32), [f"s{number}"], None
    if kind == "preference" and size > 1:
        lengths, ids = np.array([size // 2, size - size // 2], np.uint32), [f"s{number}#chosen", f"s{number}#rejected"]
    if kind == "tree" and size > 2:
        parents = chain(size)
        parents[-1] = 0
    return Encoded(kind, Row(tokens, lengths, loss, ids, parents))


def pack(samples, context, **options):
    packer = Packer(context, **options)
    rows = [record for s in samples for record in packer.add(s)] + list(packer.finish())
    return packer.stats, rows


def fitting(shapes, context):
    """Samples of those sizes and kinds; one that is too long and is no text is shortened to the context."""
    return [sample(i, size if kind in CUTTABLE else min(size, context), kind) for i, (size, kind) in enumerate(shapes)]


inputs = st.lists(st.tuples(st.integers(1, 60), st.sampled_from(KINDS)), max_size=60)
options = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["best_fit", "concat"]),
        "window": st.integers(1, 12),
        "fill": st.sampled_from([0, 0.9, 0.995, 1]),
        "line_ends": st.sampled_from([None, LINE_ENDS]),
    }
)


@given(shapes=inputs, context=st.integers(2, 40), asked=options)
def test_every_token_is_in_one_row_once_and_in_order(shapes, context, asked):
    samples = fitting(shapes, context)
    stats, rows = pack(samples, context, **asked)
    decoded = [decode_sequence(row) for row in rows]

    pieces = {}
    for row in decoded:
        assert 0 < row.tokens.size <= context and row.lengths.sum() == row.tokens.size
        for name, begin, size in zip(row.ids, starts(row.lengths).tolist(), row.lengths.tolist()):
            part = row.tokens[begin : begin + size].astype(int)
            assert (np.diff(part) == 1).all()  # whole and in order
            assert row.loss[begin] == 0 and row.loss[begin + 1 : begin + size].all()
            assert name not in pieces
            pieces[name] = part
            if row.parents is not None:
                wanted = samples[part[0] // 1000].row.parents
                assert (
                    row.parents[begin : begin + size].tolist() == (chain(size) if wanted is None else wanted).tolist()
                )
    cut = 0
    for i, one in enumerate(samples):
        names = [name for name in pieces if name.partition("#")[0] == f"s{i}"]
        joined = np.concatenate([pieces[name] for name in one.row.ids if name in pieces] or [[]])
        if names and one.row.ids[0] not in pieces:
            assert one.kind in CUTTABLE and sorted(names) == sorted(f"s{i}#{part}" for part in range(len(names)))
            joined = np.concatenate([pieces[f"s{i}#{part}"] for part in range(len(names))])
            cut += 1
        assert joined.tolist() == one.row.tokens.tolist()

    assert stats.samples == len(samples) and stats.rows == len(rows) and stats.split + stats.cut == cut
    assert stats.tokens == sum(row.tokens.size for row in decoded) == sum(stats.by_kind.values())
    assert stats.learnt == sum(int(np.count_nonzero(row.loss)) for row in decoded) == sum(stats.learnt_by_kind.values())
    parts = [name for name in pieces if name.partition("#")[2].isdigit()]
    assert stats.pieces == len(parts)
    assert stats.tails == sum(pieces[name].size for name in parts if not name.endswith("#0"))
    assert stats.split == sum(one.row.tokens.size > context for one in samples)
    assert stats.tries == sum(row.parents is not None for row in decoded)
    assert stats.longest == max((row.tokens.size for row in decoded), default=0)
    assert stats.fill == (stats.tokens / (context * stats.rows) if rows else 0)
    assert len({row["id"] for row in rows}) == len(rows)


@given(shapes=inputs, asked=options)
def test_the_same_samples_give_the_same_rows(shapes, asked):
    assert pack(fitting(shapes, 16), 16, **asked)[1] == pack(fitting(shapes, 16), 16, **asked)[1]


@given(shapes=inputs, context=st.integers(8, 40))
def test_the_documents_of_a_pair_are_neighbours(shapes, context):
    for row in pack(fitting(shapes, context), context)[1]:
        for at, name in enumerate(row["ids"]):
            if name.endswith("#chosen"):
                assert row["ids"][at + 1] == name.replace("chosen", "rejected")
    assert all(row["ids"][0].endswith("#rejected") is False for row in pack(fitting(shapes, context), context)[1])


@given(shapes=inputs)
def test_rows_of_a_window_leave_in_the_order_of_their_earliest_sample(shapes):
    firsts = []
    for row in pack(fitting(shapes, 60), 60, fill=0)[1]:
        numbers = [int(name[1:].partition("#")[0]) for name in row["ids"]]
        assert numbers == sorted(numbers)
        firsts.append(numbers[0])
    assert firsts == sorted(firsts)


def lengths(seed, count, longest):
    chance = random.Random(seed)
    return [max(1, min(longest, int(chance.lognormvariate(4, 0.8)))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_best_fit_is_at_least_as_full_as_rows_in_order(seed):
    """Samples that must not be cut, of log-normal length: best fit makes no more rows than taking them in order."""
    samples = [sample(i, size, "chat") for i, size in enumerate(lengths(seed, 600, 256))]
    best, in_order = (pack(samples, 256, method=method)[0] for method in ("best_fit", "concat"))
    assert best.tokens == in_order.tokens and best.rows < in_order.rows and best.cut == in_order.cut == 0
    assert best.fill > 0.98 and in_order.fill < 0.9


@pytest.mark.parametrize("window", [50, 400])
@pytest.mark.parametrize("fill", [0.9, 0.97, 0.99])
def test_documents_are_cut_until_rows_are_as_full_as_asked(window, fill):
    """Documents of more than half a row: no two share one, so without cuts rows are two thirds full."""
    chance = random.Random(0)
    samples = [sample(i, chance.randint(130, 200)) for i in range(400)]
    plain = pack(samples, 256, window=window, fill=0)[0]
    asked = pack(samples, 256, window=window, fill=fill)[0]
    concat = pack(samples, 256, method="concat")[0]
    assert plain.fill < 0.7 and plain.cut == 0
    assert asked.fill > fill - 0.01  # the last rows, of 260
    assert 0 < asked.cut < concat.cut and concat.fill > 0.99


def test_nothing_is_cut_where_rows_are_full_without():
    stats, _ = pack([sample(i, size) for i, size in enumerate(lengths(0, 3000, 256))], 256, fill=0.98)
    assert stats.cut == stats.split == 0 and stats.fill > 0.98


def test_pieces_end_with_a_line_and_are_no_crumbs():
    samples = [sample(i, 400 + 17 * i) for i in range(30)]
    _, rows = pack(samples, 512, line_ends=LINE_ENDS, fill=1)
    parts = {}
    for row in map(decode_sequence, rows):
        for name, begin, size in zip(row.ids, starts(row.lengths).tolist(), row.lengths.tolist()):
            if "#" in name:
                parts[name] = row.tokens[begin : begin + size]
    assert len(parts) > 30
    for name, part in parts.items():
        stem, _, number = name.partition("#")
        if f"{stem}#{int(number) + 1}" in parts:
            assert LINE_ENDS[part[-1]]
        assert part.size >= 64 or samples[int(stem[1:])].row.tokens.size > 512


def test_concat_fills_every_row_but_the_last():
    stats, rows = pack([sample(i, 30) for i in range(10)], 64, method="concat")
    assert [decode_sequence(row).tokens.size for row in rows] == [64, 64, 64, 64, 44] and stats.cut == 4
    assert rows[0]["ids"] == ["s0", "s1", "s2#0"] and rows[1]["ids"] == ["s2#1", "s3", "s4#0"]
    assert stats.tails == 26 + 22 + 18 + 14  # what is left of the third, fifth, seventh and ninth


@pytest.mark.parametrize("context", [64, 1 << 20])
def test_a_window_bounds_what_waits(context):
    """In a window there are so many samples, or eight rows of them where they are short, or eight times as many."""
    packer, waiting = Packer(context, window=40), 0
    for i in range(2000):
        waiting += 1 - sum(len(row["ids"]) for row in packer.add(sample(i, 5)))
        assert waiting <= 8 * 40
    assert sum(len(row["ids"]) for row in packer.finish()) == waiting


def test_weights_other_than_0_and_1_stay():
    _, rows = pack([sample(0, 4, weight=0.5), sample(1, 4)], 8)
    row = decode_sequence(rows[0])
    assert row.loss.dtype == np.float32 and row.loss.tolist() == [0, 0.5, 0.5, 0.5, 0, 1, 1, 1]


def test_a_sample_that_no_row_holds_is_refused():
    with pytest.raises(BadRecord, match="a chat of 9 tokens for rows of 8"):
        Packer(8).add(sample(0, 9, "chat"))


def record_of(row):
    return encode_sequence(
        id="r", ids=row.ids, tokens=row.tokens, lengths=row.lengths, loss=row.loss, parents=row.parents
    )


@pytest.mark.parametrize("field", ["tokens", "lengths", "loss", "ids"])
def test_a_damaged_sequence_is_refused(field):
    good = record_of(sample(0, 4).row)
    for bad in ({k: v for k, v in good.items() if k != field}, good | {field: "AAAAA"}, good | {field: good["id"]}):
        with pytest.raises(BadRecord):
            decode_sequence(bad)


def test_a_loss_on_the_first_token_of_a_document_is_refused():
    with pytest.raises(BadRecord, match="first token"):
        decode_sequence(record_of(sample(0, 2).row) | {"loss": "AQE="})


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf])
def test_a_loss_that_is_no_weight_is_refused(weight):
    with pytest.raises(BadRecord, match="negative or no number"):
        decode_sequence(record_of(sample(0, 3, weight=weight).row))


@pytest.mark.parametrize(
    "parents", [[-1, 0, 1], [-1, 0, 2, 1], [-1, -1, 0, 1], [0, 0, 1, 2], [-2, 0, 1, 2], [-1, 1, 1, 2]]
)
def test_parents_that_are_no_trie_are_refused(parents):
    row = sample(0, 4).row
    row.parents = np.array(parents, np.int32)
    with pytest.raises(BadRecord, match="no tries"):
        decode_sequence(record_of(row))


def test_parents_go_out_and_in():
    row = sample(0, 6, "tree").row
    found = decode_sequence(record_of(row))
    assert found.parents is not None and found.parents.tolist() == [-1, 0, 1, 2, 3, 0]
    assert decode_sequence(record_of(sample(0, 6).row)).parents is None


@pytest.mark.parametrize("options", [{"context": 1}, {"method": "greedy"}, {"fill": 2}, {"window": 0}])
def test_wrong_options(options):
    with pytest.raises(UsageError):
        Packer(**({"context": 8} | options))
