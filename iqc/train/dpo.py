"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): of two answers to the same prompt the chosen
one is made more likely than it was in the starting checkpoint, by more than the rejected one.

    loss = -log sigmoid(beta ((log p(c) - log p0(c)) - (log p(r) - log p0(r))))        equation 7, a pair
         + sft * -log p(c) / tokens of c                                               Pang et al. 2024, 2404.19733

log p of an answer is the sum over its tokens, each by its weight in the row (a prompt's are 0). p0 is the frozen
starting checkpoint. Its values are computed for every batch: a forward more, in place of a file that must fit the rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from iqc.model.decoder import Decoder
from iqc.tokens.loader import Batch
from iqc.train.step import to_device


class Dpo:
    """The loss over rows of pairs, of which the loader has checked that documents 2k and 2k + 1 are one."""

    def __init__(self, reference: Decoder, beta: float = 0.1, sft: float = 0.0) -> None:
        self.reference, self.beta, self.sft = reference.eval().requires_grad_(False), beta, sft

    def count(self, batch: Batch) -> float:
        """Pairs."""
        return sum(len(lengths) for lengths in batch.lengths) / 2

    def __call__(self, model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over pairs. The metrics: `accuracy` is of pairs whose chosen answer gained more than the rejected
        one, `margin` by how much times beta, `chosen` and `rejected` are the gains of each, in nats."""
        tokens, lengths, weights = to_device(batch, model.lm_head.weight.device)
        policy = answer_logprobs(model, tokens, lengths, weights)
        with torch.no_grad():
            self.reference.to(tokens.device, model.lm_head.weight.dtype)  # nothing, from the second batch on
            before = answer_logprobs(self.reference, tokens, lengths, weights)
        chosen, rejected = (policy - before).view(-1, 2).unbind(1)
        margin = self.beta * (chosen - rejected)
        total = -F.logsigmoid(margin).sum()
        if self.sft:
            total = total - self.sft * (policy / by_document(weights, lengths))[::2].sum()
        sums = {"loss": total, "accuracy": (margin > 0).double().sum(), "margin": margin.sum()}
        sums |= {"chosen": chosen.sum(), "rejected": rejected.sum()}
        return total, {name: value.detach() for name, value in sums.items()}


def answer_logprobs(model: Decoder, tokens: Tensor, lengths: list[list[int]], weights: Tensor) -> Tensor:
    """The log-probability of what is learnt of each document, in nats, float64: [documents of all rows]."""
    return by_document(model.token_logprobs(tokens, lengths, weights != 0) * weights, lengths)


def by_document(values: Tensor, lengths: list[list[int]]) -> Tensor:
    """The sums of values [B, T] over each document: [documents of all rows], float64."""
    parts = [part.double().sum() for row, sizes in zip(values, lengths) for part in row[: sum(sizes)].split(sizes)]
    return torch.stack(parts) if parts else values[:0, 0].double()
