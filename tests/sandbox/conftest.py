"""A sandbox for the tests of this room, and a look at what the host has after a run."""

import os
from pathlib import Path

import pytest

from iqc.sandbox import Limits, Sandbox, available


@pytest.fixture(scope="session")
def isolation():
    """Skips where the wall cannot be had, with the reason."""
    layers = available()
    if not layers[0].holds:
        pytest.skip(f"no isolation here: {layers[0].detail}")
    return layers


@pytest.fixture(scope="module")
def sandbox(isolation):
    with Sandbox(1, limits=Limits(seconds=1.0, memory=256 << 20)) as pool:
        yield pool


def _descendants() -> set[int]:
    """Every process below this one; an orphan of a pid namespace stays below its process 1, so it is found too."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:  # it ended meanwhile
            continue
        parents[int(status.parent.name)] = int(fields["PPid"])
    below: set[int] = set()
    for pid, first in parents.items():
        chain, parent = [pid], first
        while parent and parent != os.getpid():
            chain.append(parent)
            parent = parents.get(parent, 0)
        if parent == os.getpid():
            below.update(chain)
    return below


@pytest.fixture
def host():
    """What a run may not change: () -> (processes below this one, mounts, System V segments)."""
    return lambda: (
        _descendants(),
        Path("/proc/self/mountinfo").read_text(),
        Path("/proc/sysvipc/shm").read_text().count("\n"),
    )
