import pytest
import torch


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Trainers take a GPU where there is one; these tests are of what is the same everywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
