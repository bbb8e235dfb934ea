"""Attention over a ring of ranks against the whole rows in one place, float64: values and every gradient."""

import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.kernels import causal_attention as of_rows
from iqc.kernels import packed_attention, partial_attention
from iqc.kernels import ring_attention as ring_module
from iqc.kernels.causal_attention import causal_attention
from iqc.kernels.documents import Documents
from iqc.kernels.loop_attention import loop_attention
from iqc.kernels.partial_attention import plain_backward, plain_forward
from iqc.kernels.ring_attention import ring_attention
from iqc.kernels.zigzag import Shard

torch.set_num_threads(1)


def tensors(rows, width, heads=4, kv=2, size=6, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    made = [normal(rows, width, heads, size), *(normal(rows, width, kv, size) for _ in range(4))]
    return [*made, normal(heads, size), normal(heads)], normal(rows, width, heads, size)


def whole(function, inputs, grad, documents):
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = function(*inputs, documents)
    if documents.real is not None:
        grad = grad * documents.real[..., None, None]
    return out.detach(), torch.autograd.grad(out, inputs, grad)


def shared(on_ring, ranks, function, inputs, grad, documents, window):
    """Outputs and gradients of all ranks put back into rows: tensors of tokens by position, others summed."""
    width = grad.shape[1]

    def work(ring):
        shard = Shard(documents, ring, window)
        own = [(shard.take(x) if x.dim() == 4 else x.clone()).requires_grad_() for x in inputs]
        out = function(*own, shard)
        mask = torch.ones_like(shard.starts, dtype=torch.bool) if shard.real is None else shard.real
        grads = torch.autograd.grad(out, own, shard.take(grad) * mask[..., None, None])
        return shard.take(torch.arange(2 * ring.size * shard.chunk).expand(len(grad), -1)), out.detach(), grads

    results = on_ring(ranks, work)

    def joined(parts):
        rows = torch.zeros(len(grad), sum(x.shape[1] for x in parts), *parts[0].shape[2:], dtype=parts[0].dtype)
        for (at, *_), part in zip(results, parts):
            rows[:, at[0]] = part
        return rows[:, :width]

    by_input = zip(*(grads for *_, grads in results))
    gradients = [joined(parts) if parts[0].dim() == 4 else sum(parts) for parts in by_input]
    return joined([out for _, out, _ in results]), gradients


def compare(on_ring, ranks, function, inputs, grad, documents, window=1):
    true, true_grads = whole(function, inputs, grad, documents)
    got, grads = shared(on_ring, ranks, function, inputs, grad, documents, window)
    real = slice(None) if documents.real is None else documents.real
    torch.testing.assert_close(got[real], true[real], rtol=0, atol=1e-13)
    for ours, theirs in zip(grads, true_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def dense(q, k, v, documents):
    return (ring_attention if isinstance(documents, Shard) else causal_attention)(q, k, v, documents)


def looped(window):
    def function(*inputs):
        return loop_attention(*inputs, window)

    return function


def rows_of(lengths, spare):
    width = max(1, max(map(sum, lengths)) + spare)
    return width, Documents.from_lengths(lengths, len(lengths), width)


packed = st.lists(st.lists(st.integers(1, 13), max_size=4), min_size=1, max_size=2)
groups = st.sampled_from([(4, 2), (3, 3), (4, 1)])


@settings(max_examples=20)
@given(packed, st.integers(0, 3), st.integers(2, 5), groups, st.integers(0, 99))
def test_dense_rows_of_any_documents(on_ring, lengths, spare, ranks, heads, seed):
    width, documents = rows_of(lengths, spare)
    inputs, grad = tensors(len(lengths), width, *heads, seed=seed)
    compare(on_ring, ranks, dense, inputs[:3], grad, documents)


@settings(max_examples=25)
@given(packed, st.integers(0, 3), st.integers(2, 4), st.integers(1, 9), groups, st.integers(0, 99))
def test_looped_rows_of_any_documents(on_ring, lengths, spare, ranks, window, heads, seed):
    """Windows shorter and longer than a chunk would be; rows of fewer tokens than chunks."""
    width, documents = rows_of(lengths, spare)
    inputs, grad = tensors(len(lengths), width, *heads, seed=seed)
    compare(on_ring, ranks, looped(window), inputs, grad, documents, window)


@pytest.mark.parametrize("width", [64, 61, 5])
@pytest.mark.parametrize("ranks", [2, 4])
def test_rows_of_one_document(on_ring, ranks, width):
    """Plain causal rows, which a GPU's libraries take whole; the last lengths are padded inside."""
    inputs, grad = tensors(2, width)
    documents = Documents.from_lengths(None, 2, width)
    assert documents.whole
    compare(on_ring, ranks, dense, inputs[:3], grad, documents)
    compare(on_ring, ranks, looped(4), inputs, grad, documents, 4)


def test_every_rank_has_the_same_work(on_ring):
    """Scores that are computed, of one document: all ranks' within a part of one chunk's triangle of each other."""

    def work(ring):
        shard = Shard(Documents.from_lengths(None, 1, 800), ring)
        parts = [part for source in range(4) if source != ring.rank for part in shard.rectangles(source)]
        assert all(part.full for part in parts) and len(parts) == 3
        return sum((p.queries.stop - p.queries.start) * (p.keys.stop - p.keys.start) for p in parts)

    assert on_ring(4, work) == [3 * 2 * 100 * 100] * 4


def test_no_document_of_a_rectangle_sees_another(on_ring):
    """What crosses between ranks is one document; short ones inside a chunk leave nothing to do elsewhere."""

    def work(ring):
        short = Shard(Documents.from_lengths([[5] * 16], 1, 80), ring)
        long = Shard(Documents.from_lengths([[5, 70, 5]], 1, 80), ring)
        return short.rectangles(1 - ring.rank), long.rectangles(1 - ring.rank)

    (none, parts), _ = on_ring(2, work)
    assert none == []
    (part,) = parts  # rank 0 has tokens 0 to 19 and 60 to 79, rank 1 the 40 between, of which its last chunk sees all
    assert (part.queries, part.keys) == (slice(20, 35), slice(0, 40))


def test_messages_are_what_the_layout_says(on_ring):
    """Keys and values of P - 1 shards forward; backward those again and P shards of their gradients; and two halos each
    way, of window - 1 tokens, not of the row."""
    ranks, width, window = 4, 160, 9
    inputs, grad = tensors(1, width)

    def work(ring):
        shard = Shard(Documents.from_lengths(None, 1, width), ring, window)
        own = [(shard.take(x) if x.dim() == 4 else x.clone()).requires_grad_() for x in inputs]
        out = loop_attention(*own, shard, window)
        forward = ring.sent
        torch.autograd.grad(out, own, shard.take(grad))
        return forward, ring.sent - forward

    token = 2 * 2 * 6 * 8  # keys and values, two heads of 6 numbers of 8 bytes
    held, tail = token * width // ranks, token * (window - 1)
    ends = [1, 2, 2, 1]  # of the first rank's two tails one goes nowhere, of the last's one stays
    assert on_ring(ranks, work) == [(3 * held + n * tail, (3 + 4) * held + n * tail) for n in ends]


def test_the_next_keys_are_on_their_way_while_others_are_attended_to(on_ring, monkeypatch):
    """A transfer of keys begins before each part's attention and is waited for after it, in backward too; there the
    gradients of a part travel during the next one."""
    log: dict[int, list[str]] = {0: [], 1: [], 2: []}
    here = threading.local()

    def noted(name):
        function = getattr(ring_module, name)

        def call(*args):
            log[here.rank].append(name)
            return function(*args)

        monkeypatch.setattr(ring_module, name, call)

    for name in ("causal_forward", "full_forward", "causal_backward", "full_backward"):
        noted(name)
    inputs, grad = tensors(1, 60)

    def work(ring):
        here.rank, transfer, sizes = ring.rank, ring.transfer, []

        def told(sends, receives):
            sizes.append(len(sizes))
            number, wait = sizes[-1], transfer(sends, receives)
            log[ring.rank].append(f"send {number}")

            def waited():
                log[ring.rank].append(f"wait {number}")
                wait()

            return waited

        ring.transfer = told
        shard = Shard(Documents.from_lengths(None, 1, 60), ring)
        own = [shard.take(x).requires_grad_() for x in inputs[:3]]
        torch.autograd.grad(ring_attention(*own, shard), own, shard.take(grad))

    on_ring(3, work)
    forward = "send 0, causal_forward, wait 0, send 1, full_forward, wait 1, full_forward"
    keys = (
        "send 2, causal_backward, send 3, wait 2, send 4, full_backward, wait 3, send 5, wait 4, full_backward, wait 5"
    )
    for said in log.values():
        assert ", ".join(said) == f"{forward}, {keys}, send 6, wait 6"


def test_memory_kept_for_backward_falls_with_the_ranks(on_ring):
    inputs, _ = tensors(1, 320)

    def work(ring):
        kept = {}
        shard = Shard(Documents.from_lengths(None, 1, 320), ring)
        own = [shard.take(x).requires_grad_() for x in inputs[:3]]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
            ring_attention(*own, shard)
        return sum(x.nbytes for x in kept.values())

    one = {ranks: max(on_ring(ranks, work)) for ranks in (2, 4)}
    assert one[2] == 2 * one[4]


@pytest.fixture
def libraries(monkeypatch):
    """The way of a GPU, with plain PyTorch in place of its libraries, which takes and gives their layouts; returns the
    shapes (queries, keys) that cuDNN is given."""
    planned = []

    def triangle(q, causal):
        return torch.ones(1, 1, q.shape[1], q.shape[1], dtype=torch.bool).tril() if causal else None

    def cudnn_forward(q, k, v, *, causal=True):
        planned.append((q.shape[1], k.shape[1]))
        return plain_forward(q, k, v, triangle(q, causal))

    def cudnn_backward(*tensors, causal=True):
        assert all(x.is_contiguous() for x in tensors)
        return plain_backward(*tensors, triangle(tensors[1], causal))

    def sequences(edges, key_edges):
        of_keys = edges if key_edges is None else key_edges
        return [
            (slice(*a), slice(*b)) for a, b in zip(pairwise(edges.tolist()), pairwise(of_keys.tolist()), strict=True)
        ]

    def flash_forward(q, k, v, edges, longest, *, key_edges=None, longest_key=0, causal=True):
        of_keys = edges if key_edges is None else key_edges
        assert of_keys[-1] == len(k) and of_keys.diff().max() == (longest_key or longest)
        parts = []
        for own, keys in sequences(edges, key_edges):
            out, lse = plain_forward(q[None, own], k[None, keys], v[None, keys], triangle(q[None, own], causal))
            parts.append((out[0], lse[0]))
        outs, lses = zip(*parts)
        return torch.cat(outs), torch.cat(lses, 1)

    def flash_backward(grad, q, k, v, out, lse, edges, longest, *, key_edges=None, longest_key=0, causal=True):
        assert all(x.is_contiguous() for x in (grad, q, k, v, out, lse)) and lse.shape == (q.shape[1], len(q))
        parts = []
        for own, keys in sequences(edges, key_edges):
            queries, held = (x[None, own] for x in (grad, q)), (x[None, keys] for x in (k, v))
            saved = out[None, own], lse[None, :, own]
            parts.append(plain_backward(*queries, *held, *saved, triangle(q[None, own], causal)))
        return tuple(torch.cat([x[0] for x in each]) for each in zip(*parts))

    ours = {f.__name__: f for f in (cudnn_forward, cudnn_backward, flash_forward, flash_backward)}
    for module in (packed_attention, partial_attention, of_rows):
        for name, function in ours.items():
            monkeypatch.setattr(module, name, function)
    monkeypatch.setattr(partial_attention, "use_kernels", lambda q: True)
    return planned


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("lengths", [None, [[9, 40, 11], [60]], [[60], [57]]])
def test_the_way_of_a_gpu(on_ring, libraries, lengths, deterministic):
    """Whole rows go to cuDNN, in three shapes; parts of chunks, and all in a fixed order, to FlashAttention-2."""
    documents = Documents.from_lengths(lengths, 2, 60)
    inputs, grad = tensors(2, 60)
    torch.use_deterministic_algorithms(deterministic)
    try:
        compare(on_ring, 3, dense, inputs[:3], grad, documents)
    finally:
        torch.use_deterministic_algorithms(False)
    if deterministic:
        assert not libraries
    elif documents.whole:
        assert set(libraries) == {(20, 20), (20, 10), (10, 20)}
    else:
        assert set(libraries) <= {(20, 10), (10, 20), (10, 10)}
