"""The update that a GPU has against torch's, and a run over tensors of both kinds of place."""

import pytest
import torch

from iqc.train import adamw
from iqc.train.adamw import AdamW

torch.set_num_threads(1)
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


def parameters(dtype):
    g = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (30,), (7, 30)]
    return [torch.nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)) for shape in shapes]


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        g = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()


@pytest.fixture
def on_the_cpu():
    """Not here: one of these tests is of a GPU."""


@pytest.fixture
def on_gpu(monkeypatch):
    """Tensors of 100 elements and more are updated as a GPU's are, without compiling."""
    monkeypatch.setattr(adamw, "_on_gpu", lambda p: p.numel() >= 100)
    monkeypatch.setattr(adamw, "_compiled", lambda: adamw._update)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_equals_torch(dtype, limit):
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer, reference = AdamW(ours, **OPTIONS), torch.optim.AdamW(theirs, **OPTIONS, fused=True)
    run(optimizer, ours, 5)
    run(reference, theirs, 5)
    for a, b in zip(ours, theirs):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)
        for key in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(optimizer.state[a][key], reference.state[b][key], rtol=limit, atol=limit)


@pytest.mark.usefixtures("on_gpu")
def test_bfloat16_is_rounded_once():
    """A step from the same state is within one rounding of the step in float64."""
    p = torch.linspace(0.5, 2, 400).bfloat16()
    g, m, v = (torch.linspace(low, 1, 400).bfloat16() for low in (-1, -0.5, 0.1))
    exact = [x.double() for x in (p, g, m, v)]
    scalars = torch.tensor([0.999, 0.01, 0.5])
    adamw._update(p, g, m, v, scalars, (0.9, 0.95), 1e-8)
    adamw._update(*exact, scalars.double(), (0.9, 0.95), 1e-8)
    for found, expected in zip((p, m, v), (exact[0], exact[2], exact[3])):
        assert ((found - expected).abs() <= expected.abs() * 2**-8).all()


@pytest.mark.usefixtures("on_gpu")
def test_a_state_that_was_put_back_continues_bit_for_bit():
    whole, cut = parameters(torch.float32), parameters(torch.float32)
    run(AdamW(whole, **OPTIONS), whole, 4)
    first = AdamW(cut, **OPTIONS)
    run(first, cut, 2)
    second = AdamW(cut, **OPTIONS)
    for p in cut:
        second.state[p] = {key: value.clone() for key, value in first.state[p].items()}
    run(second, cut, 2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut))


def test_a_cpu_has_torchs_own():
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    run(AdamW(ours, **OPTIONS), ours, 3)
    run(torch.optim.AdamW(theirs, **OPTIONS, fused=True), theirs, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.usefixtures("on_gpu")
def test_a_parameter_without_a_gradient_stays():
    params = parameters(torch.float32)
    before = params[0].detach().clone()
    optimizer = AdamW(params, **OPTIONS)
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert torch.equal(params[0], before) and not optimizer.state[params[0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_on_a_gpu_equals_torch(dtype, limit):
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g).to("cuda", dtype) for shape in ((1024, 1024), (512, 2000), (1000,))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizer, reference = AdamW(ours, **OPTIONS), torch.optim.AdamW(theirs, **OPTIONS, fused=True)
    for step in range(4):
        for group in (optimizer.param_groups[0], reference.param_groups[0]):
            group["lr"] = 1e-2 / (1 + step)
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=g).to("cuda", dtype)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs):
        assert ((a - b).norm() / b.norm()).item() <= limit
        assert optimizer.state[a]["step"].device.type == "cpu"
