"""The attention of the loop against loops over positions in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.kernels.causal_attention import causal_attention
from iqc.kernels.documents import Documents
from iqc.kernels.loop_attention import gate, local_attention, loop_attention

torch.set_num_threads(1)


def naive(q, k, v, visible):
    """Softmax attention, one query at a time; visible(b, t) are the positions that it sees."""
    out = torch.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = visible(b, t)
            for h in range(q.shape[2]):
                scores = torch.stack([q[b, t, h] @ k[b, j, h // group] for j in seen]) / math.sqrt(q.shape[-1])
                p = scores.softmax(0)
                out[b, t, h] = sum(w * v[b, j, h // group] for w, j in zip(p, seen))
    return out


def document_starts(lengths, width):
    """Index of the first token of each token's document; padding tokens are alone."""
    starts = []
    for row in lengths:
        s = []
        for n in row:
            s += [len(s)] * n
        starts.append(s + list(range(len(s), width)))
    return starts


def tensors(seed, b, t, heads=4, kv=2, size=6, scale=1.0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).requires_grad_()

    return (
        normal(b, t, heads, size),
        *(normal(b, t, kv, size) for _ in range(4)),
        normal(heads, size),
        normal(heads),
    )


rows = st.lists(st.lists(st.integers(1, 7), max_size=4), min_size=1, max_size=2)


@settings(max_examples=20, deadline=None)
@given(rows, st.integers(0, 3), st.integers(1, 9), st.sampled_from([(4, 2), (3, 3), (4, 1)]), st.integers(0, 99))
def test_equals_loops_over_positions(lengths, spare, window, heads, seed):
    width = max(max(map(sum, lengths)) + spare, 1)
    q, k1, v1, k2, v2, w, bias = (x.detach() for x in tensors(seed, len(lengths), width, *heads))
    starts = document_starts(lengths, width)
    docs = Documents.from_lengths(lengths, len(lengths), width)
    everywhere = naive(q, k1, v1, lambda b, t: range(starts[b][t], t + 1))
    nearby = naive(q, k2, v2, lambda b, t: range(max(starts[b][t], t - window + 1), t + 1))
    g = torch.sigmoid(torch.einsum("bthd,hd->bth", q, w) + bias)[..., None]
    real = torch.ones(len(lengths), width, dtype=torch.bool) if docs.real is None else docs.real
    local = local_attention(q, k2, v2, docs, window)
    mixed = loop_attention(q, k1, v1, k2, v2, w, bias, docs, window)
    torch.testing.assert_close(local[real], nearby[real], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed[real], (g * everywhere + (1 - g) * nearby)[real], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("bias", "share"), [(-40.0, 0.0), (0.0, 0.5), (40.0, 1.0)])
def test_each_branch_reads_its_own_keys(bias, share):
    """End-to-end log-probabilities hardly move with the local branch (trained gates are 0.88), so it is tested here."""
    q, k1, v1, k2, v2, w, _ = (x.detach() for x in tensors(5, 2, 23))
    docs = Documents.from_lengths(None, 2, 23)
    out = loop_attention(q, k1, v1, k2, v2, torch.zeros_like(w), torch.full((4,), bias).double(), docs, 5)
    everywhere = naive(q, k1, v1, lambda b, t: range(t + 1))
    nearby = naive(q, k2, v2, lambda b, t: range(max(0, t - 4), t + 1))
    torch.testing.assert_close(out, share * everywhere + (1 - share) * nearby, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [None, [[9, 8], [3, 1, 11]]])
def test_gradients_equal_those_of_one_masked_softmax(lengths):
    """The blocks of the local branch against a [T, T] mask, through every input."""
    inputs = tensors(3, 2, 17)
    docs = Documents.from_lengths(lengths, 2, 17)
    index = torch.arange(17)
    causal = (index >= docs.starts[:, :, None]) & (index <= index[:, None])
    local = causal & (index > index[:, None] - 4)

    def plain(q, k1, v1, k2, v2, w, bias):
        def attend(k, v, mask):
            scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2, 2)) / math.sqrt(q.shape[-1])
            p = scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)
            return torch.einsum("bhts,bshd->bthd", p, v.repeat_interleave(2, 2))

        g = torch.sigmoid(torch.einsum("bthd,hd->bth", q, w) + bias)[..., None]
        return g * attend(k1, v1, causal) + (1 - g) * attend(k2, v2, local)

    upstream = torch.randn(2, 17, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if docs.real is not None:
        upstream = upstream * docs.real[..., None, None]
    ours = torch.autograd.grad(loop_attention(*inputs, docs, 4), inputs, upstream)
    theirs = torch.autograd.grad(plain(*inputs), inputs, upstream)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_gate_reads_each_head_with_its_own_row():
    q, *_, w, bias = (x.detach() for x in tensors(0, 1, 3))
    g = gate(q, w, bias)
    for t in range(3):
        for h in range(4):
            assert g[0, t, h, 0].item() == pytest.approx(1 / (1 + math.exp(-(q[0, t, h] @ w[h] + bias[h]).item())))


def test_documents_count_positions_and_padding():
    docs = Documents.from_lengths([[2, 3], [1]], 2, 6)
    assert docs.positions.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 0, 0, 0]]
    assert docs.real.tolist() == [[True] * 5 + [False], [True] + [False] * 5]
    assert docs.causal_mask()[0, 0].sum().item() == (1 + 2) + (1 + 2 + 3) + 1


def test_one_document_a_row_needs_no_mask_and_agrees_with_it():
    q, k, v, *_ = (x.detach() for x in tensors(8, 2, 9))
    short = Documents.from_lengths([[9], [4]], 2, 9)
    assert short.whole
    masked = Documents(short.starts, short.real, whole=False)
    ours, theirs = causal_attention(q, k, v, short), causal_attention(q, k, v, masked)
    torch.testing.assert_close(ours[short.real], theirs[short.real], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [[[4, 4]], [[1], [1]], [[-1, 2]]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="do not fit"):
        Documents.from_lengths(lengths, 1, 7)
