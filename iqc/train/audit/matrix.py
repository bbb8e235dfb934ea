"""The table of what the audit must see (matrix.toml), for those who hold it to it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

LAYOUTS = ("local-1", "local-n", "zero-1", "zero-2", "zero-3")
VERDICTS = ("must-see", "sampled", "cannot-see")


@dataclass(slots=True, frozen=True)
class Row:
    """One row of matrix.toml, where the fields are explained."""

    place: str
    layouts: tuple[str, ...]
    verdict: str
    check: str
    inject: bool
    why: str


def rows() -> list[Row]:
    table = tomllib.loads(Path(__file__).with_name("matrix.toml").read_text("utf-8"))
    return [Row(**row | {"layouts": tuple(row["layouts"])}) for row in table["row"]]


def expected(place: str, layout: str) -> Row | None:
    """What is said of a place in a layout; None where there is no such place."""
    return next((row for row in rows() if row.place == place and layout in row.layouts), None)
