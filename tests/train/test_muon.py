"""Muon: orthogonal updates of AdamW's size for matrices, AdamW itself for the rest."""

import pytest
import torch

from iqc.train.muon import MOMENTUM, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (16, 16), (1, 5)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    batch = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalise(batch))
    assert values.min() > 0.3  # the iteration stops early on purpose: near one is enough
    assert values.max() < 1.3


def test_a_batch_is_its_matrices_one_by_one() -> None:
    batch = torch.randn(3, 8, 5, dtype=torch.float64)
    together = orthogonalise(batch)
    for one, alone in zip(together, batch):
        torch.testing.assert_close(one, orthogonalise(alone[None])[0])


def test_vectors_follow_adamw_and_matrices_do_not() -> None:
    torch.manual_seed(0)
    start, vector = torch.randn(6, 4), torch.randn(5)

    def made(kind: type[torch.optim.Optimizer], **group: bool) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = torch.nn.Parameter(start.clone()), torch.nn.Parameter(vector.clone())
        groups = [{"params": [a], "weight_decay": 0.1, **group}, {"params": [b], "weight_decay": 0.0}]
        optimizer = kind(groups, lr=0.01, betas=(0.9, 0.95))
        for step in range(3):
            a.grad, b.grad = torch.full_like(a, step + 1.0) + start, vector * (step + 1)
            optimizer.step()
        return a.detach(), b.detach()

    matrix, other = made(Muon, muon=True)
    adam_matrix, adam_other = made(torch.optim.AdamW)
    assert torch.equal(other, adam_other)
    assert not torch.allclose(matrix, adam_matrix)


def test_one_step_by_hand() -> None:
    start = torch.randn(6, 4, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Muon([{"params": [parameter], "weight_decay": 0.1, "muon": True}], lr=0.02)
    parameter.grad = gradient.clone()
    optimizer.step()
    momentum = (1 - MOMENTUM) * gradient
    direction = orthogonalise((gradient + MOMENTUM * (momentum - gradient))[None])[0]
    expected = start * (1 - 0.02 * 0.1) - 0.02 * 0.2 * 6**0.5 * direction
    torch.testing.assert_close(parameter.detach(), expected)


def test_its_state_is_what_a_checkpoint_keeps() -> None:
    parameter = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = Muon([{"params": [parameter], "weight_decay": 0.0, "muon": True}], lr=0.02)
    parameter.grad = torch.randn(6, 4)
    optimizer.step()
    assert set(optimizer.state[parameter]) == {"momentum"}
