"""Advantages, the clipped surrogate against a loop over tokens, and that the update raises what was rewarded."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.model.generate import generate
from iqc.rl.grpo import Rollout, advantages, policy_loss, surrogate, to_rows

torch.set_num_threads(1)
LOW, HIGH = 0.2, 0.28


def fresh(dtype=torch.float32, seed=1):
    model = Decoder(ModelConfig(50, 24, 40, 2, 6, 2, 64, loop_num=2, loop_window_size=8), seed=seed).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that the distribution is not flat
    return model


@given(st.integers(2, 9).flatmap(lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=1)))
def test_advantages_have_mean_0_and_deviation_1_or_are_0(groups):
    size = len(groups[0])
    found = advantages([reward for group in groups for reward in group], size).reshape(-1, size)
    for rewards, gains in zip(groups, found):
        if len(set(rewards)) == 1:
            assert not gains.any()
        elif np.std(rewards) > 1e-6:
            assert abs(gains.mean()) < 1e-9 and gains.std() == pytest.approx(1.0)
            assert (np.diff(gains[np.argsort(rewards)]) >= 0).all()


@pytest.mark.parametrize("size", range(2, 10))
def test_equal_rewards_are_no_advantage_whatever_the_rounding(size):
    for reward in (0.1, 1 / 3, 0.7, 5 / 6):
        assert not advantages([reward] * size, size).any()


def test_the_surrogate_is_the_loop_over_tokens():
    """And its gradient is -ratio * advantage where it is not clipped, 0 where it is."""
    draw = np.random.Generator(np.random.PCG64(0))
    shape = (5, 40)
    old = draw.normal(-2, 1, shape)
    new = old + draw.normal(0, 0.4, shape)
    gain = draw.normal(0, 1, shape)
    gain[:, ::7] = 0.0
    logprobs = torch.tensor(new, requires_grad=True)
    loss, clipped = surrogate(logprobs, torch.tensor(old), torch.tensor(gain), LOW, HIGH)
    loss.sum().backward()
    kinds = set()
    for place in np.ndindex(shape):
        ratio, a = math.exp(new[place] - old[place]), gain[place]
        if a > 0 and ratio > 1 + HIGH:
            expected, slope, cut = -(1 + HIGH) * a, 0.0, True
        elif a < 0 and ratio < 1 - LOW:
            expected, slope, cut = -(1 - LOW) * a, 0.0, True
        else:
            expected, slope, cut = -ratio * a, -ratio * a, False
        kinds.add((np.sign(a), cut))
        assert loss[place].item() == pytest.approx(expected, abs=1e-12)
        assert logprobs.grad[place].item() == pytest.approx(slope, abs=1e-12)
        assert bool(clipped[place]) is cut
    assert kinds == {(1, True), (1, False), (-1, True), (-1, False), (0, False)}


def sampled(model, prompts, group=3, new=6):
    repeated = [prompt for prompt in prompts for _ in range(group)]
    done = generate(model.eval(), repeated, max_new_tokens=new, stop=(7,), seeds=range(len(repeated)))
    model.train()
    return [
        Rollout({"id": str(n)}, list(prompt), answer.tokens, answer.logprobs, "", answer.finish_reason)
        for n, (prompt, answer) in enumerate(zip(repeated, done))
    ]


def test_sampling_and_training_agree_on_the_probabilities():
    """Prompts of several lengths: generation pads in front, training behind."""
    model = fresh()
    rollouts = sampled(model, [[3, 4, 5], [6], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17]])
    rows = to_rows(rollouts, 0, torch.device("cpu"))
    with torch.no_grad():
        logprobs = model.token_logprobs(rows.tokens, rows.lengths)
    assert len({len(rollout.answer) for rollout in rollouts}) > 1
    assert ((logprobs - rows.old) * rows.answered).abs().max() < 1e-4
    for number, rollout in enumerate(rollouts):
        here = rows.answered[number].nonzero()[:, 0].tolist()
        assert rows.tokens[number, here].tolist() == rollout.answer
        assert rows.old[number, here].tolist() == pytest.approx(rollout.logprobs)
        assert rows.answered[number].sum() == len(rollout.answer)


def test_the_loss_of_parts_adds_up_to_that_of_all():
    model = fresh(torch.float64)
    rollouts = sampled(fresh(seed=2), [[3, 4, 5], [6]])
    for number, rollout in enumerate(rollouts):
        rollout.advantage = [1.0, -0.5, 0.25][number % 3]
    tokens = float(sum(len(rollout.answer) for rollout in rollouts))
    whole, sums = policy_loss(model, to_rows(rollouts, 0, torch.device("cpu")), LOW, HIGH, tokens)
    parts = [
        policy_loss(model, to_rows(rollouts[start : start + 2], 0, torch.device("cpu")), LOW, HIGH, tokens)
        for start in range(0, len(rollouts), 2)
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-9)
    assert sum(part["clipped"] for _, part in parts) == sums["clipped"]


def test_at_the_first_step_the_gradient_is_the_policy_gradient():
    """d/dtheta of -advantage * log p, summed over answer tokens and divided by their number."""
    model = fresh()
    rollouts = sampled(model, [[3, 4, 5], [6, 7]])
    for number, rollout in enumerate(rollouts):
        rollout.advantage = [1.0, -1.5, 0.5][number % 3]
    rows = to_rows(rollouts, 0, torch.device("cpu"))
    tokens = float(rows.answered.sum())
    policy_loss(model, rows, LOW, HIGH, tokens)[0].backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logprobs = model.token_logprobs(rows.tokens, rows.lengths)
    (-(logprobs * rows.advantage * rows.answered).sum() / tokens).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_step_raises_the_rewarded_answer_and_lowers_the_other():
    model = fresh(torch.float64)
    prompt, good, bad = [3, 4], [10, 11, 12], [20, 21]

    def chance(answer):
        with torch.no_grad():
            return model.token_logprobs(torch.tensor([prompt + answer]))[0, 2:]

    rollouts = [Rollout({}, prompt, answer, chance(answer).tolist(), "", "stop") for answer in (good, bad)]
    rollouts[0].advantage, rollouts[1].advantage = 1.0, -1.0
    before = [chance(answer).sum().item() for answer in (good, bad)]
    policy_loss(model, to_rows(rollouts, 0, torch.device("cpu")), LOW, HIGH, 5.0)[0].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1e-2 * parameter.grad)
    after = [chance(answer).sum().item() for answer in (good, bad)]
    assert after[0] > before[0] and after[1] < before[1]
