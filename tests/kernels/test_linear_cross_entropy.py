"""The chunked head against torch's own cross-entropy over whole logits."""

import pytest
import torch
import torch.nn.functional as F

from iqc.kernels import linear_cross_entropy as module
from iqc.kernels.linear_cross_entropy import linear_cross_entropy, linear_logprobs

torch.set_num_threads(1)


@pytest.fixture(params=[1, 7, 100])
def problem(request, monkeypatch):
    """x, weight, targets, weights in float64, 13 rows in chunks of one, of seven, and whole."""
    monkeypatch.setattr(module, "CHUNK_LOGITS", request.param * 11)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(13, 5, dtype=torch.float64, generator=g).requires_grad_()
    weight = torch.randn(11, 5, dtype=torch.float64, generator=g).requires_grad_()
    return x, weight, torch.randint(11, (13,), generator=g), torch.randn(13, dtype=torch.float64, generator=g)


def test_loss_and_gradients_equal_whole_logits(problem):
    x, weight, targets, weights = problem
    ours = linear_cross_entropy(x, weight, targets, weights)
    theirs = (F.cross_entropy(F.linear(x, weight), targets, reduction="none") * weights).sum()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours / 3, (x, weight)), torch.autograd.grad(theirs / 3, (x, weight))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("learns", [True, False])
def test_losses_are_those_of_the_targets_without_weights(problem, learns):
    x, weight, targets, weights = problem
    losses, expected = torch.full_like(weights, torch.nan), F.cross_entropy(x @ weight.T, targets, reduction="none")
    with torch.set_grad_enabled(learns):
        total = linear_cross_entropy(x, weight, targets, weights, losses=losses)
    torch.testing.assert_close(losses, expected.detach(), rtol=0, atol=1e-12)
    assert not losses.requires_grad
    assert total.item() == linear_cross_entropy(x, weight, targets, weights).item()


@pytest.mark.parametrize("z_loss", [1e-4, 0.3])
def test_z_loss_and_its_gradients_equal_whole_logits(problem, z_loss):
    x, weight, targets, weights = problem
    losses = torch.empty_like(weights)
    ours = linear_cross_entropy(x, weight, targets, weights, losses=losses, z_loss=z_loss)
    logits = F.linear(x, weight)
    nll = F.cross_entropy(logits, targets, reduction="none")
    theirs = ((nll + z_loss * logits.logsumexp(-1) ** 2) * weights).sum()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(losses, nll.detach(), rtol=0, atol=1e-12)  # without it
    for a, b in zip(torch.autograd.grad(ours / 3, (x, weight)), torch.autograd.grad(theirs / 3, (x, weight))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_logprobs_and_gradients_equal_whole_logits(problem):
    x, weight, targets, weights = problem
    ours = linear_logprobs(x, weight, targets)
    theirs = -F.cross_entropy(F.linear(x, weight), targets, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(linear_logprobs(x, weight, targets), ours)
    for a, b in zip(torch.autograd.grad(ours, (x, weight), weights), torch.autograd.grad(theirs, (x, weight), weights)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gradient_reaches_only_what_asks_for_it():
    weight = torch.randn(6, 3)
    x = torch.randn(4, 3, requires_grad=True)
    linear_cross_entropy(x, weight, torch.arange(4), torch.ones(4)).backward()
    assert x.grad is not None
    assert weight.grad is None
    weight.requires_grad_()
    linear_cross_entropy(x.detach(), weight, torch.arange(4), torch.ones(4)).backward()
    assert weight.grad is not None


def test_nothing_to_predict_is_zero_with_zero_gradients():
    x, weight = torch.zeros(0, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad.abs().sum().item() == 0
    assert linear_logprobs(x, weight, torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_rows_are_those_of_a_copy(problem):
    x, weight, targets, weights = problem
    rows = torch.tensor([12, 0, 5, 7])
    ours = linear_cross_entropy(x, weight, targets[:4], weights[:4], rows)
    theirs = linear_cross_entropy(x[rows], weight, targets[:4], weights[:4])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for a, b in zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(theirs, (x, weight))):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [7, 100])
def test_bfloat16_gradients_are_rounded_once(monkeypatch, chunk):
    """As close to float64 as the plain form is, though the loss is scaled after the gradients are made."""
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk * 80)
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(67, 32, generator=g).bfloat16(), torch.randn(80, 32, generator=g).mul_(0.2).bfloat16()
    targets = torch.randint(80, (67,), generator=g)

    def gradients(make, dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (x, weight)]
        return torch.autograd.grad(make(*inputs) / 67, inputs)

    def plain(x, weight):
        logits = F.linear(x, weight)
        return F.cross_entropy(logits.to(torch.promote_types(x.dtype, torch.float32)), targets, reduction="sum")

    def ours(x, weight):
        return linear_cross_entropy(x, weight, targets, torch.ones(67))

    exact = gradients(plain, torch.float64)
    for a, b, e in zip(gradients(ours, torch.bfloat16), gradients(plain, torch.bfloat16), exact):
        assert a.dtype == torch.bfloat16
        assert (a - e).norm() <= 1.2 * (b - e).norm()


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_the_slope_of_a_gpu_is_the_gradient_of_its_loss(monkeypatch, z_loss):
    """What a GPU runs in place of the lines for a CPU, not compiled; a token that is certain among the others."""
    monkeypatch.setattr(module, "_fused", lambda function: function)
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, dtype=torch.float64, generator=g)
    logits[3, 7] = 60.0
    targets, weights = torch.tensor([0, 10, 4, 7, 2]), torch.randn(5, dtype=torch.float64, generator=g)
    slope = logits.clone()
    logits.requires_grad_()
    losses, lses = F.cross_entropy(logits, targets, reduction="none"), logits.logsumexp(-1)
    for made, expected in zip(module._to_slope(slope, targets, weights, z_loss), (losses, lses)):
        torch.testing.assert_close(made, expected.detach(), rtol=0, atol=1e-12)
    total = ((losses + z_loss * lses**2) * weights).sum()
    torch.testing.assert_close(slope, torch.autograd.grad(total, logits)[0], rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("chunks", "z_loss"), [(1, 0.0), (3, 0.0), (3, 1e-2)])
def test_on_a_gpu_as_close_to_float64_as_whole_logits(monkeypatch, chunks, z_loss, dtype):
    """Poisoned rows that are not chosen stay out; their gradient is zero."""
    tokens, width, vocabulary = 700, 96, 1000
    monkeypatch.setattr(module, "GPU_CHUNK_LOGITS", tokens * vocabulary // chunks)
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(tokens + 50, width, generator=g, device="cuda").to(dtype)
    weight = torch.randn(vocabulary, width, generator=g, device="cuda").mul_(0.2).to(dtype)
    rows = torch.randperm(tokens + 50, generator=g, device="cuda")[:tokens].sort().values
    targets = torch.randint(vocabulary, (tokens,), generator=g, device="cuda")
    weights = torch.rand(tokens, generator=g, device="cuda")
    left = torch.ones(tokens + 50, dtype=torch.bool, device="cuda").index_fill(0, rows, False)

    def gradients(make, dtype, poison=0.0):
        inputs = [x.to(dtype).masked_fill(left[:, None], poison).requires_grad_(), weight.to(dtype).requires_grad_()]
        loss = make(*inputs) / 67
        return loss, *torch.autograd.grad(loss, inputs)

    def plain(x, weight):
        logits = F.linear(x[rows], weight)
        logits = logits.to(torch.promote_types(x.dtype, torch.float32))
        return (
            (F.cross_entropy(logits, targets, reduction="none") + z_loss * logits.logsumexp(-1) ** 2) * weights
        ).sum()

    def ours(x, weight):
        return linear_cross_entropy(x, weight, targets, weights, rows, z_loss=z_loss)

    exact = gradients(plain, torch.float64)
    for a, b, e in zip(gradients(ours, dtype, float("nan")), gradients(plain, dtype), exact):
        assert torch.isfinite(a).all()
        assert (a - e).norm() <= 1.2 * (b - e).norm() + 1e-7 * e.norm()
