"""A sandbox and the shared inputs."""

from pathlib import Path

import pytest

from iqc.sandbox import Sandbox, available


@pytest.fixture(scope="module")
def sandbox():
    layers = available()
    if not layers[0].holds:
        pytest.skip(f"no isolation here: {layers[0].detail}")
    with Sandbox(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def shared():
    """The real inputs beside the repository: name -> path; skips when absent."""

    def find(name: str) -> Path:
        roots = [parent / "shared" for parent in Path(__file__).resolve().parents[3:5]]
        found = [root / name for root in roots if (root / name).exists()]
        if not found:
            pytest.skip(f"../shared/{name} absent")
        return found[0]

    return find
