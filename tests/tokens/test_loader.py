"""Batches depend on the seed and their number alone: not on where a run starts, the ranks, or how rows are stored."""

import threading
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.tokens.dataset import open_dataset
from iqc.tokens.loader import Limits, assemble, batches, in_order
from iqc.tokens.order import row_indices
from iqc.tokens.sequence import encode_sequence

LIMITS = Limits(context=12, vocab_size=10_000, pad_id=7)


@pytest.fixture
def rows(tmp_path, rows_of, write_rows):
    write_rows(tmp_path / "rows.zst", rows_of(11))
    found, _ = open_dataset([str(tmp_path / "rows.zst")])
    with found:
        yield found


def run(found, start, count, limits=LIMITS, **how):
    with closing(batches(found, limits, **{"seed": 1, "batch_rows": 4, "start": start} | how)) as source:
        return list(islice(source, count))


def same(a, b):
    equal = (a.tokens == b.tokens).all() and (a.weights == b.weights).all()
    return equal and [x.tolist() for x in a.lengths] == [x.tolist() for x in b.lengths]


def test_batch_layout(rows):
    batch = assemble(rows, [0, 4], Limits(8, 10_000, 7))
    assert batch.tokens.tolist() == [[0, 1, *[7] * 6], [400, 401, 402, 403, 404, 405, 7, 7]]
    assert batch.weights.tolist() == [[0, 1, *[0] * 6], [0, 1, 0, 1, 1, 1, 0, 0]]
    assert [lengths.tolist() for lengths in batch.lengths] == [[2], [2, 4]]
    assert batch.tokens.dtype == batch.lengths[0].dtype == np.int64 and batch.weights.dtype == np.float32


def test_weights_of_both_kinds_mix(tmp_path, rows_of, write_rows):
    write_rows(tmp_path / "rows", rows_of(3) + rows_of(3, weight=0.5))
    with open_dataset([str(tmp_path / "rows")])[0] as found:
        assert assemble(found, [2, 5], Limits(4, 300, 0)).weights.tolist() == [[0, 1, 0, 1], [0, 0.5, 0, 0.5]]


def test_any_step_starts_at_once(rows):
    whole = run(rows, 0, 12)
    for start in (0, 1, 5, 11):
        assert all(same(a, b) for a, b in zip(whole[start:], run(rows, start, 12 - start), strict=True))
    assert not same(whole[0], whole[1])


def test_an_epoch_has_every_row_once(rows):
    first = [int(row[0]) // 100 for batch in run(rows, 0, 11) for row in batch.tokens]
    assert [sorted(first[at : at + 11]) for at in (0, 11, 22, 33)] == [list(range(11))] * 4
    assert len({tuple(first[at : at + 11]) for at in (0, 11, 22, 33)}) == 4


@given(ranks=st.sampled_from([1, 2, 3, 4, 7]), batch_rows=st.integers(1, 9), start=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_ranks_share_the_global_batches(tmp_path_factory, rows_of, write_rows, ranks, batch_rows, start):
    place = tmp_path_factory.getbasetemp() / "ranks.zst"
    write_rows(place, rows_of(23))
    with open_dataset([str(place)])[0] as found:
        whole = run(found, start, 3, batch_rows=batch_rows)
        parts = [run(found, start, 3, batch_rows=batch_rows, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        assert np.concatenate([part[step].tokens for part in parts]).tolist() == batch.tokens.tolist()
        assert np.concatenate([part[step].weights for part in parts]).tolist() == batch.weights.tolist()
        sizes = [len(part[step].tokens) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_rank_reads_its_own_rows(rows, monkeypatch):
    asked = []
    real = type(rows).rows

    def rows_that_are_noted(self, indices):
        asked.append(indices.tolist())
        return real(self, indices)

    monkeypatch.setattr(type(rows), "rows", rows_that_are_noted)
    wanted = row_indices(11, 1, 5 * 6, 6).tolist()
    for rank in range(3):
        asked.clear()
        run(rows, 5, 1, rank=rank, ranks=3, batch_rows=6)
        assert asked[0] == wanted[2 * rank : 2 * rank + 2] and len(asked) <= 3  # two were made ahead


def test_the_storage_does_not_matter(tmp_path, rows, rows_of, write_shards):
    write_shards(tmp_path / "shards", rows_of(11), [1, 4, 6])
    with open_dataset([str(tmp_path / "shards")])[0] as found:
        assert all(same(a, b) for a, b in zip(run(found, 3, 5), run(rows, 3, 5), strict=True))


def test_one_row(tmp_path, rows_of, write_rows):
    write_rows(tmp_path / "row", rows_of(1))
    with open_dataset([str(tmp_path / "row")])[0] as found:
        assert [batch.tokens[:, :2].tolist() for batch in run(found, 0, 3)] == [[[0, 1]] * 4] * 3


def test_an_empty_row_is_padding(tmp_path, rows_of, write_rows):
    nothing = np.zeros(0, np.uint32)
    empty = encode_sequence(id="e", ids=[], tokens=nothing, lengths=nothing, loss=np.zeros(0, "u1"))
    write_rows(tmp_path / "rows", [*rows_of(1), empty])
    with open_dataset([str(tmp_path / "rows")])[0] as found:
        batch = assemble(found, [0, 1], Limits(3, 300, 7))
    assert batch.tokens.tolist() == [[0, 1, 7], [7, 7, 7]] and batch.weights.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_in_order(rows):
    found = list(in_order(rows, LIMITS, 4))
    assert [len(batch.tokens) for batch in found] == [4, 4, 3]
    assert [int(row[0]) for batch in found for row in batch.tokens] == [100 * i for i in range(11)]


def test_what_the_model_does_not_take_is_named(rows):
    with pytest.raises(BadRecord, match="a row of 10 tokens for a context of 9") as caught:
        list(in_order(rows, Limits(9, 10_000, 0), 11))
    assert caught.value.where.endswith("rows.zst:9") and caught.value.remedy == "iqc pack --context 9"
    with pytest.raises(BadRecord, match="token 1002 for a vocabulary of 1002") as caught:
        list(in_order(rows, Limits(12, 1002, 0), 11))
    assert caught.value.where.endswith("rows.zst:11") and "tokenizer" in caught.value.remedy
    assert len(list(in_order(rows, Limits(12, 1003, 0), 11))) == 1


def test_an_error_in_the_thread_comes_with_its_batch_and_the_thread_ends(rows):
    alive = threading.active_count()
    source = batches(rows, Limits(9, 10_000, 7), seed=0, batch_rows=1)
    made = []
    with pytest.raises(IqcError, match=r"rows.zst:9: a row of 10 tokens"):
        made.extend(source)
    assert threading.active_count() == alive
    with closing(batches(rows, LIMITS, seed=0, batch_rows=1)) as whole:
        first = list(islice(whole, 11))
        assert threading.active_count() == alive + 1
    assert threading.active_count() == alive
    assert [int(batch.tokens[0, 0]) for batch in first].index(800) == len(made)
    assert all((a.tokens == b.tokens[:, :9]).all() for a, b in zip(made, first))
