"""What a model thinks of given tokens: records with `ids` in, their log-probabilities out.

float32 on one thread of the processor, so that the numbers are the same whatever the number of processes.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from iqc.errors import BadRecord, IqcError
from iqc.kernels.linear_cross_entropy import CHUNK_LOGITS
from iqc.model.checkpoint import load_model
from iqc.model.decoder import Decoder
from iqc.streams.stage import Record, Transform, require


def logprobs_stage(checkpoint: Path) -> Transform:
    """The map of `model logprobs`: a record with `ids` gets `next_token_logprobs` and `argmax_after_each`.

    BadRecord when `ids` are no tokens of the model, or more than its context.
    """
    torch.set_num_threads(1)
    model = load_model(checkpoint, dtype=torch.float32).eval()

    def transform(record: Record) -> Iterable[Record]:
        ids = checked_ids(record, model.config.vocab_size, model.config.max_position_embeddings)
        logprobs, best = score(model, ids)
        yield record | {"next_token_logprobs": logprobs, "argmax_after_each": best}

    return transform


def checked_ids(record: Record, vocab_size: int, context: int) -> list[int]:
    ids = require(record, "ids", list)
    remedy = "ids are the numbers of a text's tokens, in the model's vocabulary and context"
    if not ids:
        raise BadRecord("no ids", remedy=remedy)
    if len(ids) > context:
        raise BadRecord(f"{len(ids)} ids for a context of {context}", remedy=remedy)
    for place, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise BadRecord(f"ids[{place}] is {token!r}, not a token of {vocab_size}", remedy=remedy)
    return ids


@torch.inference_mode()
def score(model: Decoder, ids: list[int]) -> tuple[list[float], list[int]]:
    """(log p(ids[i + 1] | ids[..i]) in nats for all but the last i; the likeliest next token after each ids[..i])."""
    hidden = model(torch.tensor([ids]))[0]
    following = torch.tensor([*ids[1:], 0])
    logprobs, best = [], []
    rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    for part, targets in zip(hidden.split(rows), following.split(rows)):
        scores = model.logits(part).float()
        logprobs.append(scores.gather(1, targets[:, None])[:, 0] - scores.logsumexp(-1))
        best.append(scores.argmax(-1))
    values = torch.cat(logprobs)[:-1]
    if not values.isfinite().all():
        raise IqcError("the model gives numbers that are not finite", remedy="IQC_DEBUG=1 names the layer")
    return values.tolist(), torch.cat(best).tolist()
