from itertools import islice

import numpy as np
import pytest

from iqc.errors import BadRecord, IqcError
from iqc.tokens.loader import SequenceStore, assemble, batches, row_indices
from iqc.tokens.sequence import encode_sequence

PAD = 7


def records(count=11, weight=1.0):
    """Row i has i + 2 tokens 100 * i + place, in two documents where it has more than three."""
    out = []
    for i in range(count):
        size = i + 2
        lengths = np.array([size] if size < 4 else [2, size - 2], np.uint32)
        tokens = 100 * i + np.arange(size, dtype=np.uint32)
        ids = [f"{i}-{d}" for d in range(lengths.size)]
        out.append(
            encode_sequence(id=str(i), ids=ids, tokens=tokens, lengths=lengths, loss=np.full(size, weight, "f4"))
        )
    return out


@pytest.fixture
def store():
    return SequenceStore(records())


def test_every_row_comes_back(store):
    assert len(store) == 11 and store.longest == 12
    for i in range(len(store)):
        tokens, loss, lengths = store.row(i)
        assert tokens.tolist() == [100 * i + place for place in range(i + 2)] and lengths.sum() == i + 2
        assert loss.sum() == i + 2 - lengths.size


def test_batch_layout(store):
    batch = assemble(store, [0, 4], context=8, pad_id=PAD)
    assert batch.tokens.tolist() == [[0, 1, *[PAD] * 6], [400, 401, 402, 403, 404, 405, PAD, PAD]]
    assert batch.weights.tolist() == [[0, 1, *[0] * 6], [0, 1, 0, 1, 1, 1, 0, 0]]
    assert [lengths.tolist() for lengths in batch.lengths] == [[2], [2, 4]]
    assert batch.tokens.dtype == batch.lengths[0].dtype == np.int64 and batch.weights.dtype == np.float32


def test_weights_of_both_kinds_mix():
    store = SequenceStore(records(3) + records(3, weight=0.5))
    assert assemble(store, [2, 5], context=4, pad_id=PAD).weights.tolist() == [[0, 1, 0, 1], [0, 0.5, 0, 0.5]]


def test_every_epoch_has_every_row_once_in_another_order(store):
    epochs = [row_indices(11, 3, 11 * e, 11).tolist() for e in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert row_indices(11, 4, 0, 11).tolist() != epochs[0]


def test_the_order_is_frozen():
    """A run that is resumed under another version must see the order that it started with."""
    assert row_indices(8, 0, 0, 16).tolist() == [3, 2, 1, 6, 0, 7, 4, 5, 7, 4, 5, 1, 6, 2, 0, 3]


def test_any_step_starts_at_once(store):
    def run(start, count):
        return list(islice(batches(store, seed=1, batch_rows=4, context=12, pad_id=PAD, start=start), count))

    whole = run(0, 12)
    for start in (0, 1, 5, 11):
        for a, b in zip(whole[start:], run(start, 12 - start), strict=True):
            assert (a.tokens == b.tokens).all() and (a.weights == b.weights).all()
            assert all((x == y).all() for x, y in zip(a.lengths, b.lengths, strict=True))
    assert not (whole[0].tokens == whole[1].tokens).all()


def test_ranks_share_the_global_batches(store):
    whole = row_indices(len(store), 5, 0, 24)
    two = [[row_indices(len(store), 5, step * 8 + rank * 4, 4) for rank in range(2)] for step in range(3)]
    assert np.concatenate([part for step in two for part in step]).tolist() == whole.tolist()


def test_refusals(store):
    with pytest.raises(BadRecord, match="context of 4"):
        assemble(store, [10], context=4, pad_id=PAD)
    with pytest.raises(IqcError, match="no training rows"):
        SequenceStore([])
    with pytest.raises(IqcError, match="more than 5 tokens"):
        SequenceStore(records(), max_tokens=5)
    with pytest.raises(BadRecord):
        SequenceStore([{"id": "x", "text": "no sequence"}])
