"""The loss of each source of rows, from what an update computes anyway."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iqc.tokens.loader import Batch


def domain_sums(batch: Batch, row_losses: Tensor | None, domains: int) -> Tensor:
    """[2, domains] float64: of the rows of each source the loss, and the weights of their tokens.

    `row_losses` [B]: of each row the sum of weight * loss. To be added up over micro-batches and ranks; a GPU is not
    waited for.
    """
    if batch.domains is None or row_losses is None:
        return torch.zeros(2, domains, dtype=torch.float64)
    weights = torch.from_numpy(batch.weights.sum(axis=1, dtype=np.float64)).to(row_losses.device)
    rows = F.one_hot(torch.from_numpy(batch.domains), domains).double().to(row_losses.device)
    return torch.stack((row_losses.double(), weights)) @ rows  # a product: sums by index have no fixed order on a GPU


def domain_losses(sums: Tensor, domains: tuple[str, ...]) -> dict[str, float]:
    """The mean loss of each source that had a token to learn, in nats a token, from the sum of `domain_sums`."""
    return {name: loss / weight for name, loss, weight in zip(domains, *sums.tolist()) if weight}
