"""Generated tasks: references pass, near misses and trivial programs do not, the splits share no constants."""

from itertools import groupby

import pytest

from iqc.errors import UsageError
from iqc.rl.tasks import TEMPLATES, as_chat, generate_tasks, make_task, near_misses, split_of
from iqc.sandbox import Sandbox, available
from iqc.sandbox.verdict import calls_of

BY_NAME = {template.name: template for template in TEMPLATES}


@pytest.fixture(scope="module")
def sandbox():
    layers = available()
    if not layers[0].holds:
        pytest.skip(f"no isolation here: {layers[0].detail}")
    with Sandbox(2) as pool:
        yield pool


def test_tasks_are_repeatable_and_the_seed_chooses():
    assert list(generate_tasks(50, 1)) == list(generate_tasks(50, 1))
    assert list(generate_tasks(50, 1)) != list(generate_tasks(50, 2))
    assert list(generate_tasks(20, 1)) == list(generate_tasks(50, 1))[:20]


def test_the_splits_are_apart_and_both_have_every_template():
    train, test = list(generate_tasks(2000, 0)), list(generate_tasks(500, 0, "test"))
    keys = [
        {(task["metadata"]["template"], *task["metadata"]["parameters"].values()) for task in tasks}
        for tasks in (train, test)
    ]
    assert keys[0].isdisjoint(keys[1])
    assert {task["messages"][1]["content"] for task in train}.isdisjoint(
        task["messages"][1]["content"] for task in test
    )
    for tasks, split in ((train, "train"), (test, "test")):
        assert {task["metadata"]["template"] for task in tasks} == set(BY_NAME)
        assert {task["metadata"]["split"] for task in tasks} == {split}
        assert len({task["id"] for task in tasks}) == len(tasks)


def test_more_tasks_than_there_are():
    with pytest.raises(UsageError, match="has"):
        list(generate_tasks(10**6, 0))
    with pytest.raises(UsageError, match="no split"):
        list(generate_tasks(1, 0, "dev"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_task_has_telling_tests(split):
    for task in generate_tasks(900, 3, split):
        tests = calls_of(task)
        assert len(tests) >= 5
        assert len({repr(test.args) for test in tests}) == len(tests)
        assert not all(test.accepts(tests[0].expected) for test in tests)
        assert not all(test.accepts(test.args[0]) for test in tests)
        template, constants = BY_NAME[task["metadata"]["template"]], task["metadata"]["parameters"]
        for other in near_misses(template, constants):
            wrong = template.value(**other)
            assert not all(test.accepts(wrong(*test.args)) for test in tests), (task["id"], other)


def test_references_pass_and_mutants_fail_in_the_sandbox(sandbox):
    tasks = [
        task
        for _, group in groupby(
            sorted(generate_tasks(64, 5), key=lambda t: t["id"]), lambda t: t["metadata"]["template"]
        )
        for task in list(group)[:3]
    ]
    programs = [(task, task["references"][0], True) for task in tasks]
    for task in tasks:
        template, constants = BY_NAME[task["metadata"]["template"]], task["metadata"]["parameters"]
        programs += [
            (task, make_task(template, c, 0)["references"][0], False) for c in near_misses(template, constants)
        ][:4]
        argument = template.argument
        programs += [(task, f"def f({argument}):\n    return {argument}\n", False)]
    assert len(tasks) == 3 * len(TEMPLATES) and len(programs) > 5 * len(tasks)
    verdicts = sandbox.map(lambda p: sandbox.run_tests(p[0], p[1]), programs)
    wrong = [(task["id"], code) for (task, code, good), v in zip(programs, verdicts) if v.passed is not good]
    assert wrong == []


def test_chat_record_teaches_the_reference_alone():
    [task] = generate_tasks(1, 0)
    chat = as_chat(task)
    assert [(m["role"], m["loss"]) for m in chat["messages"]] == [
        ("system", False),
        ("user", False),
        ("assistant", True),
    ]
    assert chat["messages"][-1]["content"] == task["references"][0]
    assert (chat["id"], chat["metadata"]) == (task["id"], task["metadata"])
    assert split_of(BY_NAME[task["metadata"]["template"]], task["metadata"]["parameters"]) == "train"
