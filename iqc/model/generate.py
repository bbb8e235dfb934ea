"""Batched sampling from a decoder with a key/value cache.

A row's random numbers come from its own seed, one uniform number a token, so a completion does not depend on what else
is in the batch (up to the rounding of matrix products). Finished rows leave the batch when half of it is finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from iqc.errors import IqcError
from iqc.model.cache import Cache
from iqc.model.decoder import Decoder

FIRST_CANDIDATES = 128  # a nucleus that fits these needs no sort of the vocabulary


@dataclass(slots=True)
class Completion:
    """tokens include the stop token, which is sampled like any other. logprobs[i] is the model's own log p(tokens[i]),
    in nats, before temperature, top_k and top_p: what `Decoder.token_logprobs` gives. finish_reason: stop or length."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[int] = (),
    seeds: Sequence[int] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order. temperature 0 is greedy; top_k 0 and top_p 1 cut nothing.

    `seeds` is one integer per prompt (default: 0, 1, 2...). top_k is applied before top_p, as Transformers and vLLM do.
    Raises IqcError when a prompt is empty or does not leave room for max_new_tokens in the context.
    """
    _check(model, prompts, max_new_tokens, temperature, top_k, top_p, seeds)
    if not prompts or max_new_tokens == 0:
        return [Completion() for _ in prompts]
    weight = model.lm_head.weight
    rows, widest = len(prompts), max(map(len, prompts))
    tokens = torch.zeros(rows, widest, dtype=torch.int64)
    real = torch.zeros(rows, widest, dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        tokens[b, widest - len(prompt) :] = torch.as_tensor(prompt)
        real[b, widest - len(prompt) :] = True
    uniform = torch.stack(
        [
            torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed))
            for seed in (seeds if seeds is not None else range(rows))
        ]
    ).to(weight.device)

    out = torch.zeros(rows, max_new_tokens, dtype=torch.int64, device=weight.device)
    logprobs = torch.zeros(rows, max_new_tokens, device=weight.device)
    counts = torch.full((rows,), max_new_tokens, device=weight.device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=weight.device)
    stops = torch.tensor(sorted(set(stop)), dtype=torch.int64, device=weight.device)

    cache = Cache(model.config, real.to(weight.device), widest + max_new_tokens, weight.dtype)
    rows_here = torch.arange(rows, device=weight.device)  # which completions the batch still holds
    following = tokens.to(weight.device)
    for step in range(max_new_tokens):
        hidden = model.model(following, cache.documents, cache)[:, -1]
        scores = model.logits(hidden).float()
        chosen = _sample(scores, temperature, top_k, top_p, uniform[rows_here, step])
        out[rows_here, step] = chosen
        logprobs[rows_here, step] = scores.gather(1, chosen[:, None])[:, 0] - scores.logsumexp(-1)
        ended = torch.isin(chosen, stops) & ~stopped[rows_here]
        stopped[rows_here[ended]] = True
        counts[rows_here[ended]] = step + 1
        running = (~stopped[rows_here]).nonzero()[:, 0]
        if len(running) == 0 or step + 1 == max_new_tokens:
            break
        if len(running) <= len(rows_here) // 2:
            rows_here, chosen = rows_here[running], chosen[running]
            cache.select(running)
        cache.advance()
        following = chosen[:, None]

    return [
        Completion(row[:n], lp[:n], "stop" if end else "length")
        for row, lp, n, end in zip(out.tolist(), logprobs.tolist(), counts.tolist(), stopped.tolist())
    ]


def _sample(scores: Tensor, temperature: float, top_k: int, top_p: float, uniform: Tensor) -> Tensor:
    """One token per row of scores [B, V]: the one whose stretch of the cumulative distribution holds uniform [B]."""
    if temperature == 0:
        return scores.argmax(-1)
    scores = scores / temperature
    order: Tensor | None = None
    if 0 < top_k < scores.shape[1]:
        scores, order = scores.topk(top_k)
        p = scores.softmax(-1)
    elif top_p < 1:
        p = scores.softmax(-1)
        best, order = p.topk(min(FIRST_CANDIDATES, p.shape[1]))
        if bool((best.sum(-1) < top_p).any()):
            best, order = p.sort(-1, descending=True)
        p = best
    else:
        p = scores.softmax(-1)
    if top_p < 1:  # the smallest set that reaches top_p: a token stays while those before it fall short
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    sums = p.cumsum(-1)
    # uniform < 1 scaled by the total falls inside it; rounding up to the total would point at a token of no mass.
    point = (uniform * sums[:, -1]).clamp(max=sums[:, -1].nextafter(torch.zeros_like(uniform)))
    index = torch.searchsorted(sums, point[:, None], right=True)
    return (index if order is None else order.gather(1, index))[:, 0]


def _check(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seeds: Sequence[int] | None,
) -> None:
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or max_new_tokens < 0:
        raise IqcError(
            f"temperature {temperature}, top_k {top_k}, top_p {top_p}, max_new_tokens {max_new_tokens}",
            remedy="temperature, top_k and max_new_tokens are at least 0; top_p is above 0 and at most 1",
        )
    if seeds is not None and len(seeds) != len(prompts):
        raise IqcError(f"{len(seeds)} seeds for {len(prompts)} prompts", remedy="give one seed per prompt")
    context = model.config.max_position_embeddings
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise IqcError(f"prompt {i} is empty", remedy="start it with a token, for example the end-of-text token")
        if len(prompt) + max_new_tokens > context:
            raise IqcError(
                f"prompt {i} of {len(prompt)} tokens and {max_new_tokens} new ones pass the context of {context}",
                remedy="shorten the prompt or ask for fewer new tokens",
            )
