"""The Triton kernels of the loop's attention against plain PyTorch in float64, outputs and every gradient.

Without a GPU they run in Triton's interpreter, in float32 and float16 (it multiplies bfloat16 as raw bits), and the
library's part of the work, the global branch, is computed here. With one they run on it, in bfloat16 too.
"""

import math

import pytest
import torch

pytest.importorskip("triton")

from iqc.kernels import loop_attention as module
from iqc.kernels.causal_attention import Unsupported
from iqc.kernels.documents import Documents
from iqc.kernels.loop_attention import FusedLoopAttention, gate, local_attention

torch.set_num_threads(1)
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
EXACT = torch.float16 if GPU else torch.float32
NAMES = ("q", "k1", "v1", "k2", "v2", "weight", "bias")


def plain_forward(q, k, v, documents):
    """What iqc.kernels.causal_attention.library_forward gives on a GPU, here in plain PyTorch."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.float().repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q.float(), k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~documents.causal_mask(), -math.inf)
    out = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    return out.to(q.dtype), scores.logsumexp(-1)


def plain_backward(grad, q, k, v, out, lse, documents):
    group = q.shape[2] // k.shape[2]
    grad, wide_k, wide_v, x = grad.float(), k.float(), v.float(), q.float()
    wide_k, wide_v = (t.repeat_interleave(group, 2) for t in (wide_k, wide_v))
    scale = 1 / math.sqrt(q.shape[-1])
    scores = torch.einsum("bthd,bshd->bhts", x, wide_k) * scale - lse[..., None]
    p = scores.exp().masked_fill(~documents.causal_mask(), 0.0)
    dp = torch.einsum("bthd,bshd->bhts", grad, wide_v) - (grad * out.float()).sum(-1).transpose(1, 2)[..., None]
    ds = p * dp * scale
    made = (
        torch.einsum("bhts,bshd->bthd", ds, wide_k),
        torch.einsum("bhts,bthd->bshd", ds, x).unflatten(2, (-1, group)).sum(3),
        torch.einsum("bhts,bthd->bshd", p, grad).unflatten(2, (-1, group)).sum(3),
    )
    return tuple(g.to(q.dtype) for g in made)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    if not GPU:
        monkeypatch.setattr(module, "library_forward", plain_forward)
        monkeypatch.setattr(module, "library_backward", plain_backward)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every buffer that a kernel is to fill begins as NaN."""

    def nan_like(x, **kwargs):
        return torch.full_like(x, math.nan, **kwargs)

    def nan(*shape, **kwargs):
        return torch.full(shape, math.nan, **kwargs)

    monkeypatch.setattr(torch, "empty_like", nan_like)
    monkeypatch.setattr(torch, "empty", nan)


def tensors(rows, width, heads=4, kv=2, size=16, dtype=EXACT, bias=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    made = [normal(rows, width, heads, size), *(normal(rows, width, kv, size) for _ in range(4))]
    made += [(normal(heads, size) * 0.3), (normal(heads) + bias).float()]
    return [x.to(DEVICE).requires_grad_() for x in made], normal(rows, width, heads, size).to(DEVICE)


def reference(inputs, grad, documents, window):
    exact = [x.detach().double().requires_grad_() for x in inputs]
    q, k1, v1, k2, v2, weight, bias = exact
    group = q.shape[2] // k1.shape[2]
    scores = torch.einsum("bthd,bshd->bhts", q, k1.repeat_interleave(group, 2)) / math.sqrt(q.shape[-1])
    p = scores.masked_fill(~documents.causal_mask(), -math.inf).softmax(-1)
    far = torch.einsum("bhts,bshd->bthd", p, v1.repeat_interleave(group, 2))
    near = local_attention(q, k2, v2, documents, window)
    out = torch.lerp(near, far, gate(q, weight, bias))
    return out, torch.autograd.grad(out, exact, grad.double())


def error(got, true):
    return ((got.double() - true).norm() / true.norm()).item()


def compare(inputs, grad, documents, window, tolerance):
    true, true_grads = reference(inputs, grad, documents, window)
    out = FusedLoopAttention.apply(*inputs, documents, window)
    grads = torch.autograd.grad(out, inputs, grad)
    assert out.dtype == inputs[0].dtype
    real = slice(None) if documents.real is None else documents.real  # what padding sees is nobody's business
    assert error(out[real], true[real]) < tolerance
    for name, got, want, of in zip(NAMES, grads, true_grads, inputs):
        assert got.dtype == of.dtype and error(got, want) < tolerance, (name, error(got, want))


def tolerance_of(dtype):
    return {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("window", [2, 16, 64, 65, 100])
@pytest.mark.parametrize("width", [1, 63, 150])
def test_equals_plain_pytorch(width, window):
    """Rows shorter and longer than a block of 64 queries, windows shorter, as long and longer; odd sizes throughout."""
    inputs, grad = tensors(2, width)
    if width == 1:  # a token alone gives its query and keys no gradient, so no relative error
        documents = Documents.from_lengths(None, 2, 1, DEVICE)
        out = FusedLoopAttention.apply(*inputs, documents, window)
        q, _, v1, _, v2, weight, bias = inputs
        g = gate(q, weight, bias)
        want = g * v1.repeat_interleave(2, 2) + (1 - g) * v2.repeat_interleave(2, 2)
        assert error(out, want.double()) < tolerance_of(EXACT)
        return
    compare(inputs, grad, Documents.from_lengths(None, 2, width, DEVICE), window, tolerance_of(EXACT))


@pytest.mark.parametrize("window", [9, 64, 80])
def test_packed_documents(window):
    """Documents that begin and end inside a block, at its edge, and padding; a row end inside a block."""
    lengths = [[20, 1, 43, 30, 66], [64, 64, 3]]
    documents = Documents.from_lengths(lengths, 2, 170, DEVICE)
    inputs, grad = tensors(2, 170, seed=1)
    grad[~documents.real] = 0.0
    compare(inputs, grad, documents, window, tolerance_of(EXACT))


@pytest.mark.parametrize("bias", [-8.0, 0.0, 8.0])
def test_gates_near_none_half_and_all(bias):
    inputs, grad = tensors(1, 100, bias=bias, seed=2)
    compare(inputs, grad, Documents.from_lengths(None, 1, 100, DEVICE), 16, 10 * tolerance_of(EXACT))


def test_saturated_gates_give_no_nan():
    inputs, grad = tensors(1, 70, seed=3)
    for bias in (-200.0, 200.0):
        inputs[-1] = torch.full_like(inputs[-1], bias).requires_grad_()
        out = FusedLoopAttention.apply(*inputs, Documents.from_lengths(None, 1, 70, DEVICE), 16)
        for x in (out, *torch.autograd.grad(out, inputs, grad)):
            assert torch.isfinite(x).all()


@pytest.mark.parametrize(("heads", "kv", "size"), [(5, 1, 32), (3, 3, 64), (16, 2, 16), (2, 1, 128)])
def test_groups_and_head_sizes(heads, kv, size):
    inputs, grad = tensors(1, 90, heads, kv, size, seed=4)
    compare(inputs, grad, Documents.from_lengths(None, 1, 90, DEVICE), 33, tolerance_of(EXACT))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    if dtype == torch.bfloat16 and not GPU:
        pytest.skip("Triton's interpreter multiplies bfloat16 as raw bits: shown on a GPU")
    inputs, grad = tensors(1, 150, 5, 1, 32, dtype=dtype, seed=5)
    compare(inputs, grad, Documents.from_lengths(None, 1, 150, DEVICE), 64, tolerance_of(dtype))


def test_same_bits_each_time():
    inputs, grad = tensors(1, 130, seed=6)
    documents = Documents.from_lengths([[50, 80]], 1, 130, DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            out = FusedLoopAttention.apply(*inputs, documents, 20)
            runs.append([out, *torch.autograd.grad(out, inputs, grad)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize(
    ("heads", "kv", "size", "window", "what"),
    [(4, 2, 24, 16, "head size of 24"), (17, 1, 16, 16, "17 query heads"), (4, 2, 16, 300, "window of 300")],
)
def test_refuses_by_name(heads, kv, size, window, what):
    inputs, _ = tensors(1, 10, heads, kv, size)
    with pytest.raises(Unsupported, match=what):
        FusedLoopAttention.apply(*inputs, Documents.from_lengths(None, 1, 10, DEVICE), window)
