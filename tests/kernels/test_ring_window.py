"""The Triton kernels of the loop's window on a rank's shard of the rows, halos before its chunks, against float64 and
whole rows. Without a GPU: Triton's interpreter, and the ring in plain PyTorch."""

import threading

import pytest
import torch

pytest.importorskip("triton")

from iqc.kernels import gated_window
from iqc.kernels.documents import Documents
from iqc.kernels.gated_window import BLOCK
from iqc.kernels.loop_attention import FusedLoopAttention, loop_attention
from iqc.kernels.ring_attention import with_halo
from iqc.kernels.zigzag import Shard

torch.set_num_threads(1)
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPE = torch.float16 if GPU else torch.float32
TOLERANCE = 3e-3 if GPU else 2e-6


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch):
    """Triton's interpreter is for one thread."""
    lock = threading.Lock()

    def locked(function):
        def call(*args):
            with lock:
                return function(*args)

        return call

    for name in ("window_forward", "window_backward"):
        monkeypatch.setattr(gated_window, name, locked(getattr(gated_window, name)))


def error(got, true):
    return ((got.double() - true).norm() / true.norm()).item()


@pytest.mark.parametrize(
    ("ranks", "window", "lengths"),
    [(2, 64, [[256]]), (2, 65, [[130, 3, 160], [64, 64, 100]]), (3, 9, [[70, 300]])],
)
def test_equals_the_whole_rows(on_ring, monkeypatch, ranks, window, lengths):
    """Chunks of whole blocks; a row's end is padding. Documents that begin in a halo, before it, and at a chunk."""
    rows, width = len(lengths), max(map(sum, lengths))
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    documents = Documents.from_lengths(lengths, rows, width, DEVICE)
    made = [normal(rows, width, 4, 16), *(normal(rows, width, 2, 16) for _ in range(4)), normal(4, 16) * 0.3, normal(4)]
    inputs = [x.to(DEVICE, DTYPE if x.dim() > 1 else torch.float32) for x in made]
    grad = normal(rows, width, 4, 16).to(DEVICE, DTYPE)
    if documents.real is not None:
        grad[~documents.real] = 0.0
    exact = [x.double().requires_grad_() for x in inputs]
    true = loop_attention(*exact, documents, window)
    true_grads = torch.autograd.grad(true, exact, grad.double())

    def nan_like(x, **kwargs):
        return torch.full_like(x, float("nan"), **kwargs)

    monkeypatch.setattr(torch, "empty_like", nan_like)  # a buffer that a kernel is to fill

    def work(ring):
        shard = Shard(documents, ring, window, BLOCK)
        own = [(shard.take(x) if x.dim() == 4 else x.clone()).requires_grad_() for x in inputs]
        q, k1, v1, k2, v2, weight, bias = own
        out = FusedLoopAttention.apply(q, k1, v1, *with_halo(k2, v2, shard), weight, bias, shard, window)
        grads = torch.autograd.grad(out, own, shard.take(grad))
        real = shard.take(torch.ones(rows, width, dtype=torch.bool, device=DEVICE))
        if shard.real is not None:
            real &= shard.real
        assert error(out[real], shard.take(true.detach())[real]) < TOLERANCE
        return [(got, shard.take(want) if got.dim() == 4 else want) for got, want in zip(grads, true_grads)]

    for name, *parts in zip(("q", "k1", "v1", "k2", "v2", "weight", "bias"), *on_ring(ranks, work)):
        if parts[0][0].dim() == 4:
            assert all(error(got, want) < TOLERANCE for got, want in parts), name
        else:
            assert error(sum(got for got, _ in parts), parts[0][1]) < TOLERANCE, name


def test_chunks_that_a_block_does_not_divide_are_refused(on_ring):
    def work(ring):
        shard = Shard(Documents.from_lengths(None, 1, 100, DEVICE), ring, 9, 8)
        q, k = (
            torch.zeros(1, 2 * shard.chunk, 2, 16, device=DEVICE),
            torch.zeros(2, 8 + shard.chunk, 2, 16, device=DEVICE),
        )
        weight, bias = torch.zeros(2, 16, device=DEVICE), torch.zeros(2, device=DEVICE)
        with pytest.raises(ValueError, match="for blocks of 64"):
            FusedLoopAttention.apply(q, q, q, k, k, weight, bias, shard, 9)

    on_ring(2, work)
