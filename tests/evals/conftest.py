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
        path = Path(__file__).resolve().parents[3] / "shared" / name
        if not path.exists():
            pytest.skip(f"../shared/{name} absent")
        return path

    return find
