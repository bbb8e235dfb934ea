"""Where documents begin, in the forms that kernels and libraries take, against the lengths they were made of."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from iqc.kernels.documents import Documents

rows = st.lists(st.lists(st.integers(1, 7), max_size=4), min_size=1, max_size=3)


@given(rows, st.integers(0, 3))
def test_offsets_are_the_lengths_and_padding(lengths, spare):
    """Laid end to end, the rows' documents are as long as they were, and what a row has left is one document more."""
    width = max(max(map(sum, lengths)) + spare, 1)
    edges, longest = Documents.from_lengths(lengths, len(lengths), width).offsets
    expected = [n for row in lengths for n in (*row, width - sum(row)) if n]
    assert edges.tolist()[0] == 0 and edges.diff().tolist() == expected and longest == max(expected)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=3))
def test_offsets_of_rows_padded_on_either_side(shape):
    width = max(sum(row) for row in shape)
    real = torch.zeros(len(shape), width, dtype=torch.bool)
    expected = []
    for b, (before, length, _) in enumerate(shape):
        real[b, before : before + length] = True
        expected += [n for n in (before, length, width - before - length) if n]
    edges, longest = Documents.from_mask(real).offsets
    assert edges.diff().tolist() == expected and longest == max(expected)


@given(rows)
def test_flat_starts_index_the_rows_laid_end_to_end(lengths):
    width = max(*map(sum, lengths), 1)
    documents = Documents.from_lengths(lengths, len(lengths), width)
    flat = documents.flat_starts.view(len(lengths), width)
    for b in range(len(lengths)):
        assert torch.equal(flat[b], (documents.starts[b] + b * width).int())
