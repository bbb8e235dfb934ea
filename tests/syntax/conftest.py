import tomllib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def samples() -> dict[str, dict]:
    """By language: `source`, and the texts of the nodes of each level."""
    return tomllib.loads((Path(__file__).parent / "samples.toml").read_text(encoding="utf-8"))
