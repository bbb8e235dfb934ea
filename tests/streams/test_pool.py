"""Results in the order of the chunks, however long each takes; a failure when its turn comes; no worker left behind."""

import multiprocessing
import os
import time
from collections import Counter

import pytest

from iqc.streams.pool import ordered_map
from iqc.streams.worker import Items, Work


def slow_factory():
    def transform(item):
        number, seconds = item
        time.sleep(seconds)
        if seconds < 0.001:
            raise ArithmeticError(number)
        yield number

    return transform


def mapped(seconds, jobs):
    chunks = [Items([item]) for item in enumerate(seconds)]
    return ordered_map(chunks, Work(slow_factory, values=True), jobs, lambda chunk: True)


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("seconds", [[0.3] + [0.01] * 20, [0.01] * 20 + [0.2], [0.001, 0.05] * 6, [0.01], []])
def test_the_order_is_that_of_the_chunks(seconds, jobs):
    assert [result.values for result in mapped(seconds, jobs)] == [[number] for number in range(len(seconds))]
    assert not multiprocessing.active_children()


def pid_factory():
    def transform(seconds):
        time.sleep(seconds)
        yield os.getpid()

    return transform


def test_the_others_go_on_while_one_chunk_takes_long():
    chunks = [Items([seconds]) for seconds in [0.7, 0.01, 0.01, 0.01, 0.01, 0.01]]
    found = ordered_map(chunks, Work(pid_factory, values=True), 2, lambda chunk: True)
    done_by = Counter(result.values[0] for result in found)
    assert sorted(done_by.values()) == [2, 4]  # the slow one's second chunk was waiting for it


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_comes_after_the_results_before_it(jobs):
    results = mapped([0.2, 0.01, 0, 0.01, 0], jobs)
    assert [next(results).values, next(results).values] == [[0], [1]]
    with pytest.raises(ArithmeticError, match="2"):
        next(results)
    assert not multiprocessing.active_children()


def test_workers_end_when_the_results_are_not_wanted_any_more():
    results = mapped([0.01] * 9, 2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert not multiprocessing.active_children()
