"""Group-relative policy optimisation on programming tasks: rollouts, rewards, advantages, the clipped update.

For each task of an update a group of answers is drawn from the current model and judged by the task's tests. An
answer's advantage is its reward less its group's mean, over the group's standard deviation (GRPO, Shao et al. 2024,
equation 3, without the KL term); groups whose answers all did equally well teach nothing and are left out. The loss
is the clipped surrogate with a higher upper bound (clip-higher) and one weight a token over the whole update (DAPO,
Yu et al. 2025). The reward is the share of tests passed (LoopCoder: the pass rate on a task's tests).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iqc.model.complete import encode, prompt_segments, sample_seed
from iqc.model.decoder import Decoder
from iqc.model.generate import generate
from iqc.streams.stage import Record
from iqc.tokens.special import EOS, PAD
from iqc.tokens.tokenizer import Tokenizer


@dataclass(slots=True)
class Rollout:
    """One answer: its tokens with the log-probabilities that they were drawn with, and what it earned."""

    task: Record
    prompt: list[int]
    answer: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
    reward: float = 0.0
    passed: bool = False
    advantage: float = 0.0


def roll_out(
    model: Decoder,
    tokenizer: Tokenizer,
    tasks: Sequence[Record],
    group: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[Rollout]:
    """`group` answers of each task, groups in order. A task that comes twice is answered anew."""
    model.eval()
    repeated = [task for task in tasks for _ in range(group)]
    prompts = [encode(prompt_segments(task), tokenizer) for task in tasks for _ in range(group)]
    answered: Counter[str] = Counter()
    seeds = []
    for task in repeated:
        seeds.append(sample_seed(seed, task["id"], answered[task["id"]]))
        answered[task["id"]] += 1
    done = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        stop=(tokenizer.control[EOS], tokenizer.control[PAD]),
        seeds=seeds,
    )
    model.train()
    return [
        Rollout(
            task,
            prompt,
            answer.tokens,
            answer.logprobs,
            tokenizer.decode(answer.tokens[:-1] if answer.finish_reason == "stop" else answer.tokens),
            answer.finish_reason,
        )
        for task, prompt, answer in zip(repeated, prompts, done)
    ]


def advantages(rewards: Sequence[float], group: int) -> np.ndarray:
    """[n] from rewards [n] of consecutive groups: (r - mean) / standard deviation, 0 where all are equal."""
    table = np.asarray(rewards, dtype=np.float64).reshape(-1, group)
    centred = table - table.mean(axis=1, keepdims=True)
    spread = table.std(axis=1, keepdims=True)
    differ = spread > 1e-9  # the mean of equal rewards may round away from them
    return np.where(differ, centred / np.where(differ, spread, 1.0), 0.0).reshape(-1)


def surrogate(logprobs: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate to be minimised and whether it is clipped, each a token.

    logprobs, old and advantage have one shape; the ratio p / p_old is bounded to [1 - low, 1 + high] where moving
    further would pay.
    """
    ratio = (logprobs - old).exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantage, bounded * advantage), (bounded * advantage < ratio * advantage)


@dataclass(slots=True)
class Rows:
    """Rollouts as padded rows. tokens [B, T]; the others [B, T] are of the token at their place, 0 outside answers."""

    tokens: Tensor
    lengths: list[list[int]]
    old: Tensor
    advantage: Tensor
    answered: Tensor


def to_rows(rollouts: Sequence[Rollout], pad_id: int, device: torch.device) -> Rows:
    width = max(len(rollout.prompt) + len(rollout.answer) for rollout in rollouts)

    def padded(rows: list[list], fill: float, dtype: torch.dtype) -> Tensor:
        return torch.stack([F.pad(torch.tensor(row, dtype=dtype), (0, width - len(row)), value=fill) for row in rows])

    before = [[0.0] * len(rollout.prompt) for rollout in rollouts]
    old = [head + rollout.logprobs for head, rollout in zip(before, rollouts)]
    gain = [head + [rollout.advantage] * len(rollout.answer) for head, rollout in zip(before, rollouts)]
    answered = [head + [1.0] * len(rollout.answer) for head, rollout in zip(before, rollouts)]
    return Rows(
        padded([rollout.prompt + rollout.answer for rollout in rollouts], pad_id, torch.int64).to(device),
        [[len(rollout.prompt) + len(rollout.answer)] for rollout in rollouts],
        padded(old, 0.0, torch.float32).to(device),
        padded(gain, 0.0, torch.float32).to(device),
        padded(answered, 0.0, torch.float32).to(device),
    )


def policy_loss(model: Decoder, rows: Rows, low: float, high: float, tokens: float) -> tuple[Tensor, dict[str, float]]:
    """The loss of these rows as their part of an update of `tokens` answer tokens, and what to log of them, summed."""
    logprobs = model.token_logprobs(rows.tokens, rows.lengths)
    loss, clipped = surrogate(logprobs, rows.old, rows.advantage, low, high)
    moved = ((logprobs.detach() - rows.old).abs() * rows.answered).sum().item()
    sums = {"clipped": (clipped * rows.answered).sum().item(), "moved": moved}
    return (loss * rows.answered).sum() / tokens, sums
