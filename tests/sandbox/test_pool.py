"""What a run comes back with; workers are reused, replaced and shared by threads."""

import os
import time

import pytest

from iqc.errors import IqcError
from iqc.sandbox import Limits, Sandbox, pool


def test_results_and_errors_come_back_in_order(sandbox):
    code = "import sys\ndef f(x, k=0):\n    print('hello', file=sys.stderr)\n    return [1 / x, k]"
    result = sandbox.run(code, [("f", [2], {"k": "a"}), ("f", [0], {}), ("g", [], {}), ("f", [4], {})])
    assert result.status == "ok"
    assert [o.value for o in result.results] == [[0.5, "a"], None, None, [0.25, 0]]
    assert result.results[1].error == "ZeroDivisionError: division by zero"
    assert result.results[2].error.startswith("KeyError")
    assert "hello" in result.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("def f(): pass", "ok"),
        ("def f(): raise ValueError('x')", "ok"),
        ("raise ValueError('x')", "error"),
        ("def f(:", "error"),
        ("import os\nos._exit(0)", "error"),
        ("while True: pass", "timeout"),
        ("import time\ntime.sleep(9)", "timeout"),
        ("x = bytearray(1 << 32)", "memory"),
        ("def f(): return bytearray(1 << 32)", "memory"),
        ("def f(): return 'x' * (1 << 20)", "output"),
    ],
)
def test_status(code, status, sandbox):
    assert sandbox.run(code, [("f", [], {})]).status == status


def test_outcomes_before_a_timeout_are_kept(sandbox):
    result = sandbox.run("def f(x):\n    while x: pass\n    return x", [("f", [0], {}), ("f", [1], {})])
    assert result.status == "timeout"
    assert [o.value for o in result.results] == [0]


def test_wall_clock_is_kept(sandbox):
    start = time.monotonic()
    sandbox.run("import time\ntime.sleep(30)", [], Limits(seconds=0.3))
    assert 0.25 < time.monotonic() - start < 3


def test_the_same_program_gives_the_same_answer(isolation):
    code = "import random\ndef f(): return [list({'a', 'b', 'c', 'd', 'e'}), random.random()]"
    answers = []
    for _ in range(2):
        with Sandbox(1) as one:
            answers += [one.run(code, [("f", [], {})]).results[0].value for _ in range(2)]
    assert all(answer == answers[0] for answer in answers)


def test_large_requests_and_modules(sandbox):
    code = (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef f(x): return A(len(x)).x\n"
        + "#" * 300_000
    )
    assert sandbox.run(code, [("f", ["a" * 500_000], {})]).results[0].value == 500_000


def test_threads_share_the_pool(isolation):
    with Sandbox(2) as two:
        work = two.map(lambda x: two.run("def f(x): return x * x", [("f", [x], {})]).results[0].value, range(30))
        assert list(work) == [x * x for x in range(30)]


def test_a_lost_worker_is_replaced(isolation, host):
    with Sandbox(1) as one:
        before = len(host()[0])
        worker = one._idle.queue[0]
        os.kill(worker.process.pid, 9)
        lost = one.run("def f(): return 1", [("f", [], {})])
        assert lost.status != "ok"
        assert one.run("def f(): return 1", [("f", [], {})]).results[0].value == 1
        assert len(host()[0]) == before


def test_closing_leaves_no_process(isolation, host):
    before = host()
    with Sandbox(2) as two:
        list(two.map(lambda x: two.run("x = 1", []), range(4)))
        assert host()[0] > before[0]
    assert host() == before
    with pytest.raises(ValueError):
        two.run("x = 1", [])


def test_no_isolation_is_an_error_with_a_remedy(monkeypatch):
    # a worker that cannot make its namespaces: here, because it may not load the module that does
    monkeypatch.setattr(pool, "_START", "raise OSError('unshare: Operation not permitted')")
    with pytest.raises(IqcError, match=r"no isolation.*not permitted") as caught:
        Sandbox(1)
    assert "--unsafe-exec" in caught.value.remedy
    assert [layer.holds for layer in pool.available()] == [False]
