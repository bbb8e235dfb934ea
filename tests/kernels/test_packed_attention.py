"""How packed documents are shared out between two libraries: here both are plain PyTorch, in float64. Their own kernels
are in test_causal_attention.py, on a GPU."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.kernels import packed_attention as module
from iqc.kernels.documents import Documents
from iqc.kernels.packed_attention import packed_backward, packed_forward

torch.set_num_threads(1)
HEADS, KEY_HEADS, SIZE = 4, 2, 8


def scores_of(q, k):
    """[H, tokens, tokens] of q [tokens, H, D] over k [tokens, K, D], causal."""
    wide = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("thd,shd->hts", q, wide) / math.sqrt(q.shape[-1])
    return scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -math.inf)


def one_forward(q, k, v):
    scores = scores_of(q, k)
    out = torch.einsum("hts,shd->thd", scores.softmax(-1), v.repeat_interleave(q.shape[1] // v.shape[1], 1))
    return out, scores.logsumexp(-1)


def one_backward(grad, q, k, v, out, lse):
    group = q.shape[1] // k.shape[1]
    p = (scores_of(q, k) - lse[..., None]).exp()
    dp = torch.einsum("thd,shd->hts", grad, v.repeat_interleave(group, 1)) - (grad * out).sum(-1).T[..., None]
    ds = p * dp / math.sqrt(q.shape[-1])
    dk = torch.einsum("hts,thd->shd", ds, q).unflatten(1, (-1, group)).sum(2)
    dv = torch.einsum("hts,thd->shd", p, grad).unflatten(1, (-1, group)).sum(2)
    return torch.einsum("hts,shd->thd", ds, k.repeat_interleave(group, 1)), dk, dv


def each(edges, of, *tensors):
    """A function of one document applied to all; log-sum-exps, [H, tokens], are cut and joined along their tokens."""
    parts = []
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist()):
        parts.append(of(*(x[start:end] if x.dim() == 3 else x[:, start:end] for x in tensors)))
    return tuple(torch.cat(x, -1 if x[0].dim() == 2 else 0) for x in zip(*parts))


@pytest.fixture
def libraries(monkeypatch):
    return in_plain_pytorch(monkeypatch)


def in_plain_pytorch(monkeypatch):
    """Both libraries, all buffers NaN at first; returns the lengths that the one for long documents is given."""
    planned = []

    def cudnn_forward(q, k, v):
        planned.append(q.shape[1])
        out, lse = one_forward(q[0], k[0], v[0])
        return out[None], lse[None]

    def cudnn_backward(grad, q, k, v, out, lse):
        return tuple(x[None] for x in one_backward(grad[0], q[0], k[0], v[0], out[0], lse[0]))

    monkeypatch.setattr(module, "cudnn_forward", cudnn_forward)
    monkeypatch.setattr(module, "cudnn_backward", cudnn_backward)
    monkeypatch.setattr(module, "flash_forward", lambda *x: each(x[3], one_forward, *x[:3]))
    monkeypatch.setattr(module, "flash_backward", lambda *x: each(x[6], one_backward, *x[:6]))
    monkeypatch.setattr(module, "LEAST", 32)
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: torch.full(shape, math.nan, dtype=torch.float64))
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, math.nan))
    return planned


def check(rows, width):
    """Forward and backward of the shared-out form against autograd through a mask."""
    documents = Documents.from_lengths(rows, len(rows), width)
    g = torch.Generator().manual_seed(width)
    tokens = len(rows) * width
    q, grad = (torch.randn(tokens, HEADS, SIZE, generator=g, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(tokens, KEY_HEADS, SIZE, generator=g, dtype=torch.float64) for _ in range(2))
    real = torch.ones(tokens).bool() if documents.real is None else documents.real.flatten()
    grad[~real] = 0.0  # nothing is learnt of padding
    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    begins = documents.flat_starts.long()
    index = torch.arange(tokens)
    seen = (index >= begins[:, None]) & (index <= index[:, None])
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in exact), seen, enable_gqa=True
    )[0].transpose(0, 1)
    want_grads = torch.autograd.grad(want, exact, grad)
    out, lse = packed_forward(q, k, v, documents)
    found = packed_backward(grad, q, k, v, out, lse, documents)
    torch.testing.assert_close(out[real], want[real].detach())
    for got, true in zip(found, want_grads):
        torch.testing.assert_close(got, true)


def test_long_and_short_documents(libraries):
    check([[40, 5, 70, 3], [33, 31, 32, 10]], 120)
    assert sorted(libraries) == [32, 34, 40, 72]  # of 32, 33, 40 and 70: up to one of 16 lengths an octave


def test_only_long_ones_the_last_reaches_over_the_end(libraries):
    check([[70, 67]], 137)
    assert libraries == [72, 68]


def test_only_short_ones(libraries):
    check([[5, 9, 31]], 45)
    assert not libraries


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=6), min_size=1, max_size=3), st.integers(0, 50))
def test_any_documents(rows, padding):
    with pytest.MonkeyPatch.context() as patch:
        in_plain_pytorch(patch)
        check(rows, max(sum(row) for row in rows) + padding)


def test_what_is_behind_a_document_is_not_seen(libraries):
    """The same document before another one gives the same bits."""
    g = torch.Generator().manual_seed(0)
    results = []
    for behind in (1.0, 1e6):
        q, k, v, grad = (
            torch.randn(150, heads, SIZE, generator=g.manual_seed(1), dtype=torch.float64)
            for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
        )
        for x in (q, k, v, grad):
            x[67:] *= behind
        documents = Documents.from_lengths([[67, 83]], 1, 150)
        out, lse = packed_forward(q, k, v, documents)
        grads = packed_backward(grad, q, k, v, out, lse, documents)
        results.append([x[:67] for x in (out, *grads)])
    assert all(torch.equal(a, b) for a, b in zip(*results))
