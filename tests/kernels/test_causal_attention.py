"""What attention on a GPU takes and refuses; its values there against float64 need a GPU."""

import types

import pytest
import torch

from iqc.kernels.causal_attention import Unsupported, causal_attention, use_kernels
from iqc.kernels.documents import Documents

torch.set_num_threads(1)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_gpu(size, dtype):
    """What `use_kernels` looks at of a tensor there."""
    return types.SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 2, 3, size))


def test_a_cpu_has_no_kernels():
    assert not use_kernels(torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16))


def test_half_precision_on_a_gpu_has(monkeypatch):
    monkeypatch.delenv("IQC_ATTENTION", raising=False)
    assert use_kernels(on_gpu(64, torch.bfloat16)) and use_kernels(on_gpu(40, torch.float16))


def test_other_sizes_are_refused_by_name(monkeypatch):
    monkeypatch.delenv("IQC_ATTENTION", raising=False)
    for size in (12, 136):
        with pytest.raises(Unsupported, match=f"not {size}"):
            use_kernels(on_gpu(size, torch.bfloat16))


def test_plain_pytorch_on_a_gpu_is_never_silent(monkeypatch):
    with pytest.warns(UserWarning, match="no fast attention for torch.float32"):
        assert not use_kernels(on_gpu(64, torch.float32))
    monkeypatch.setenv("IQC_ATTENTION", "reference")
    with pytest.warns(UserWarning, match="IQC_ATTENTION=reference"):
        assert not use_kernels(on_gpu(136, torch.bfloat16))


@needs_gpu
@pytest.mark.parametrize("lengths", [None, [[100, 57], [30]], [[1100, 40, 1460], [2500, 99], [30, 1024]]])
@pytest.mark.parametrize("deterministic", [False, True])
def test_equals_float64(lengths, deterministic):
    """Rows of one document, of short ones, of long and short ones with padding behind."""
    g = torch.Generator("cuda").manual_seed(0)
    rows, width = (len(lengths), max(map(sum, lengths))) if lengths else (2, 157)
    shapes = [(rows, width, 6, 64), (rows, width, 2, 64), (rows, width, 2, 64)]
    inputs = [torch.randn(s, generator=g, device="cuda").bfloat16().requires_grad_() for s in shapes]
    grad = torch.randn(shapes[0], generator=g, device="cuda").bfloat16()
    documents = Documents.from_lengths(lengths, rows, width, "cuda")
    if documents.real is not None:
        grad[~documents.real] = 0.0
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    want = causal_attention(*exact, Documents.from_lengths(lengths, rows, width))
    torch.use_deterministic_algorithms(deterministic)
    try:
        out = causal_attention(*inputs, documents)
        found = [out, *torch.autograd.grad(out, inputs, grad)]
    finally:
        torch.use_deterministic_algorithms(False)
    wanted = [want, *torch.autograd.grad(want, exact, grad.double().cpu())]
    seen = torch.ones(rows, width).bool() if documents.real is None else documents.real.cpu()  # padding is nobody's
    for got, true in zip(found, wanted):
        off = (got.detach().double().cpu() - true.detach())[seen]
        assert (off.norm() / true[seen].norm()).item() < 1e-2
