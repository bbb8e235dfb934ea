"""The RL loop without a sandbox where that is enough: what is refused, what is judged, and that rewards rise.

Kills and the whole command are in tests/commands.
"""

import numpy as np
import pytest
import torch

from iqc.errors import BadRecord, IqcError
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.rl.grpo import Rollout, advantages, roll_out
from iqc.rl.tasks import generate_tasks
from iqc.rl.trainer import RlSettings, check_tasks, judge, update
from iqc.sandbox import pool
from iqc.sandbox.verdict import Verdict
from iqc.tokens import tokenizer
from iqc.tokens.special import PAD
from iqc.train.optimizer import make_optimizer

torch.set_num_threads(1)


def test_tasks_that_could_be_forged_are_refused():
    tasks = list(generate_tasks(3, 0))
    check_tasks(tasks, False)
    suite = tasks[0] | {"id": "suite", "tests": "import os\nassert f(os.sep) == 1\nfor i in range(3): assert f(i)"}
    with pytest.raises(IqcError, match="run in the process") as caught:
        check_tasks([*tasks, suite], False)
    assert "--allow-same-process" in caught.value.remedy
    check_tasks([*tasks, suite], True)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"tests": None}, "no tests"), ({"tests": [{"args": 3}]}, "malformed"), ({"language": "c"}, "no runner for 'c'"),
     ({"id": None}, '"id"')],
)  # fmt: skip
def test_bad_tasks_are_refused_by_name(change, match):
    with pytest.raises(BadRecord, match=match):
        check_tasks([next(generate_tasks(1, 0)) | change], True)


def test_an_id_names_one_task():
    task, other = generate_tasks(2, 0)
    check_tasks([task, other, task], False)
    with pytest.raises(BadRecord, match="two different tasks"):
        check_tasks([task, other | {"id": task["id"]}], False)


def test_no_tasks():
    with pytest.raises(IqcError, match="no tasks"):
        check_tasks([], False)


class Judge:
    """In place of the sandbox: the reward is a function of the text."""

    def __init__(self, reward):
        self.reward, self.asked = reward, []

    def run_tests(self, task, code):
        self.asked.append((task["id"], code))
        value = self.reward(code)
        return Verdict(value == 1.0, value, "calls", "")

    map = staticmethod(map)


def test_a_program_is_judged_once_a_task():
    rollouts = [
        Rollout({"id": task}, [1], [2], [0.0], text, "stop")
        for task, text in [("a", "x"), ("a", "x"), ("b", "x"), ("a", "```python\nyy\n```"), ("b", "x")]
    ]
    judged = Judge(lambda code: len(code.strip()) / 2)
    judge(rollouts, judged)
    assert judged.asked == [("a", "x"), ("b", "x"), ("a", "yy\n")] or judged.asked[-1][1].strip() == "yy"
    assert len(judged.asked) == 3
    assert [rollout.reward for rollout in rollouts] == [0.5, 0.5, 0.5, 1.0, 0.5]
    assert [rollout.passed for rollout in rollouts] == [False, False, False, True, False]


@pytest.fixture(scope="module")
def tok():
    import argparse
    from pathlib import Path

    return tokenizer.train(iter([Path(argparse.__file__).read_text(encoding="utf-8")]), 320)


def test_rewards_rise(tok):
    """A task that sampling can solve: the more of the letter e, the better."""
    model = Decoder(ModelConfig(320, 32, 64, 2, 4, 2, 64, loop_num=2, loop_window_size=16), seed=0)
    optimizer = make_optimizer(model, 1e-2, "adamw")
    settings = RlSettings("", tasks=2, group=8, minibatches=2)
    tasks = [{"id": str(n), "prompt": text} for n, text in enumerate(["def f(", "return x"])]
    wanted = Judge(lambda text: min(1.0, text.count("e") / 4))
    rewards, metrics = [], []
    for step in range(20):
        rollouts = roll_out(model, tok, tasks, settings.group, 8, 1.0, step)
        judge(rollouts, wanted)
        for rollout, gain in zip(rollouts, advantages([r.reward for r in rollouts], settings.group)):
            rollout.advantage = float(gain)
        rewards.append(np.mean([rollout.reward for rollout in rollouts]))
        metrics.append(update(model, optimizer, rollouts, settings, tok.control[PAD]))
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2
    assert max(line["mismatch"] for line in metrics) < 1e-4  # before the first step of an update
    assert any(line["clip_fraction"] > 0 for line in metrics) and all(0 < m["useful"] <= 1 for m in metrics[:1])


def test_no_difference_no_step(tok):
    model = Decoder(ModelConfig(320, 32, 64, 2, 4, 2, 64), seed=0)
    before = [parameter.clone() for parameter in model.parameters()]
    rollouts = roll_out(model, tok, [{"id": "a", "prompt": "x"}], 4, 4, 1.0, 0)
    metrics = update(model, make_optimizer(model, 1e-2, "adamw"), rollouts, RlSettings(""), 0)
    assert metrics == {"useful": 0.0, "clip_fraction": 0.0, "mismatch": 0.0, "grad_norm": 0.0}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_rollouts_depend_on_seed_task_and_sample_alone(tok):
    model = Decoder(ModelConfig(320, 32, 64, 2, 4, 2, 64), seed=0)
    tasks = [{"id": "a", "prompt": "x ="}, {"id": "b", "prompt": "def"}]
    both = roll_out(model, tok, tasks, 3, 6, 1.0, 5)
    alone = roll_out(model, tok, tasks[1:], 3, 6, 1.0, 5)
    assert [r.answer for r in both[3:]] == [r.answer for r in alone]
    assert [r.answer for r in both] != [r.answer for r in roll_out(model, tok, tasks, 3, 6, 1.0, 6)]
    assert len({tuple(r.answer) for r in both[:3]}) > 1


def test_without_isolation_it_refuses(monkeypatch, tmp_path, tok):
    """Before anything is written."""
    from iqc.model.checkpoint import save_model
    from iqc.rl.trainer import train

    tok.save(tmp_path / "tokenizer")
    names = [tmp_path / "tokenizer" / name for name in ("tokenizer.json", "tokenizer_config.json")]
    model = Decoder(ModelConfig(320, 32, 64, 1, 4, 2, 256), seed=0)
    save_model(tmp_path / "model", model, files=names)
    start = pool._Worker.__init__

    def broken(self, isolated):
        start(self, isolated)
        if isolated:
            self.close() if hasattr(self, "close") else self.process.kill()
            raise IqcError("no isolation: simulated", remedy="--unsafe-exec runs the code without a wall")

    monkeypatch.setattr(pool._Worker, "__init__", broken)
    settings = RlSettings(str(tmp_path / "model"), updates=1, tasks=1, group=2, max_new_tokens=4)
    tasks = list(generate_tasks(2, 0))
    with pytest.raises(IqcError, match="isolation"):
        train(settings, tasks, [], tmp_path / "model", tok, str(tmp_path / "run"), True)
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_does_not_fit_is_found_before_the_first_update(tmp_path, tok):
    from iqc.model.checkpoint import save_model
    from iqc.rl.trainer import train

    save_model(tmp_path / "model", Decoder(ModelConfig(320, 32, 64, 1, 4, 2, 32), seed=0))
    settings = RlSettings(str(tmp_path / "model"), updates=1, max_new_tokens=8)
    with pytest.raises(BadRecord, match=r"a prompt of .* tokens, where 24 fit"):
        train(settings, list(generate_tasks(2, 0)), [], tmp_path / "model", tok, str(tmp_path / "run"), True)
    assert not (tmp_path / "run").exists()
