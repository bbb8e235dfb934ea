"""A recipe of a mixture as a TOML file; what is wrong in it is said with its line.

by = "tokens"                     # records, bytes or tokens
total = "600B"
max_epochs = 4

[source.code]
path = "code/"                    # or on the command line: code=code/
weight = 3                        # or epochs = 1.5, or replay = 0.05
languages = {python = 2, "*" = 1}

[difficulty]
field = "metadata.score"
bounds = ["33%", "67%"]           # quantiles, or scores
bands = ["easy", "medium", "hard"]

[[phase]]
share = 0.5
weights = {code = 1}
difficulty = {easy = 0.6, medium = 0.3, hard = 0.1}
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from iqc.errors import UsageError
from iqc.tokens.mix.recipe import Difficulty, Phase, Recipe, Wish, amount_of, difficulty_of


class RecipeFile:
    """A TOML file as a recipe; what is wrong in it is said with its line."""

    def __init__(self, path: str):
        self.path = path
        try:
            self.text = Path(path).read_text("utf-8")
            self.table = tomllib.loads(self.text)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot be read: {error}", where=path, remedy="--recipe takes a TOML file") from None
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"at line ([0-9]+)", str(error))
            raise UsageError(f"no TOML: {error}", where=f"{path}:{line[1]}" if line else path) from None

    def recipe(self) -> tuple[Recipe, dict[str, str]]:
        """The recipe, and the paths of the sources that have one in the file; those are relative to the file."""
        table = self._known(self.table, "", TOP)
        recipe = Recipe({})
        paths = {}
        for name, source in self._tables(table.pop("source", {}), "source").items():
            place = f"source.{name}"
            known = self._known(source, place, SOURCE)
            if not name or not name.isprintable():
                raise self._wrong(place, "", "is no name for a source", "give it one that can be printed")
            if sum(key in known for key in ("weight", "epochs", "replay")) > 1:
                raise self._wrong(place, "", "has more than one of weight, epochs and replay", "leave one")
            if "path" in known:
                paths[name] = str(Path(self.path).parent / known.pop("path"))
            recipe.wishes[name] = Wish(**known)
        if "difficulty" in table:
            recipe.difficulty = self._difficulty(table.pop("difficulty"))
        for number, phase in enumerate(table.pop("phase", []), 1):
            recipe.phases.append(self._phase(phase, number, recipe))
        if "total" in table:
            try:
                table["total"] = amount_of(str(table["total"]))
            except UsageError as error:
                raise self._wrong("", "total", f"is {table['total']!r}", error.remedy or "") from None
        for key, value in table.items():
            setattr(recipe, key, value)
        return recipe, paths

    def _difficulty(self, table: dict) -> Difficulty:
        known = self._known(table, "difficulty", DIFFICULTY)
        if "field" not in known or not known.get("bounds"):
            raise self._wrong("difficulty", "", "needs a field and bounds", 'field = "metadata.score", bounds = [0.5]')
        try:
            found = difficulty_of(known["field"], [str(bound) for bound in known["bounds"]])
        except UsageError as error:
            raise self._wrong("difficulty", "bounds", error.what, error.remedy or "") from None
        bands = known.get("bands", found.bands)
        if len(bands) != len(found.bands) or not all(isinstance(band, str) and band for band in bands):
            what = f"has {len(bands)} names for {len(found.bands)} bands"
            raise self._wrong("difficulty", "bands", what, "bands are one more than bounds")
        found.bands = bands
        return found

    def _phase(self, table: Any, number: int, recipe: Recipe) -> Phase:
        place = f"phase#{number}"
        known = self._known(table, place, PHASE)
        if "share" not in known:
            raise self._wrong(place, "", "needs a share", "share = 0.5")
        phase = Phase(**known)
        for name in phase.weights:
            if name in recipe.wishes and recipe.wishes[name].replay is not None:
                what = f'names "{name}", which replays: its share is the same in every phase'
                raise self._wrong(place, "weights", what, "leave it out, or give the source a weight")
        bands = recipe.difficulty.bands if recipe.difficulty else []
        for key, names, allowed in (("weights", phase.weights, recipe.wishes), ("difficulty", phase.difficulty, bands)):
            for name in names:
                if name not in allowed:
                    what = f'names "{name}", which is no {"source" if key == "weights" else "band"}'
                    raise self._wrong(place, key, what, f"known are {', '.join(allowed) or 'none'}")
        return phase

    def _tables(self, value: Any, place: str) -> dict[str, dict]:
        if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
            raise self._wrong("", place, "is no table of tables", f"[{place}.NAME]")
        return value

    def _known(self, table: Any, place: str, kinds: dict[str, str]) -> dict:
        """A copy of a table whose keys and values are of the right kinds."""
        if not isinstance(table, dict):
            raise self._wrong(place, "", "is no table", f"[{place}]")
        for key, value in table.items():
            if key not in kinds:
                raise self._wrong(place, key, "is unknown", f"known are {', '.join(kinds)}")
            if not CHECKS[kinds[key]](value):
                raise self._wrong(place, key, f"is {value!r}", f"it takes {kinds[key]}")
        return dict(table)

    def _wrong(self, place: str, key: str, what: str, remedy: str) -> UsageError:
        name = ".".join(filter(None, (place, key)))
        return UsageError(f"{name} {what}", where=f"{self.path}:{self._line(place, key)}", remedy=remedy)

    def _line(self, place: str, key: str) -> int:
        """The line of a key, or of the header of its table; 1 where the file writes it in another form."""
        header, found, phases = "", 1, 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if match := re.match(r"\s*\[+\s*([^\]]*?)\s*\]", line):
                header = match[1].replace('"', "")
                phases += header == "phase"
                header = f"phase#{phases}" if header == "phase" else header
                found = number if header == (place or key) else found
            name = re.match(r'\s*"?([^"=]*?)"?\s*=', line)
            if header == place and key and name and name[1] == key:
                return number
            if name and not key and f"{header}.{name[1]}".strip(".") == place:
                return number
        return found


LARGEST = 1e15  # of a number in a recipe, so that sums of them stay exact enough


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST


def are_shares(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(is_number, value.values())) and any(value.values())


CHECKS = {
    "a number from 0 on": is_number,
    "a number above 0": lambda value: is_number(value) and value > 0,
    "a share from 0 to 1": lambda value: is_number(value) and value <= 1,
    "a text": lambda value: isinstance(value, str) and bool(value),
    "an amount such as 500k or 1.5B": lambda value: isinstance(value, str | int) and not isinstance(value, bool),
    "records, bytes or tokens": lambda value: value in ("records", "bytes", "tokens"),
    "fail or rescale": lambda value: value in ("fail", "rescale"),
    "a table of positive shares by name": are_shares,
    "tables": lambda value: isinstance(value, dict | list),
    "a list": lambda value: isinstance(value, list),
}
TOP = {
    "source": "tables",
    "phase": "tables",
    "difficulty": "tables",
    "by": "records, bytes or tokens",
    "total": "an amount such as 500k or 1.5B",
    "max_epochs": "a number above 0",
    "short": "fail or rescale",
    "temperature": "a number above 0",
    "languages": "a table of positive shares by name",
    "language_temperature": "a number above 0",
}
SOURCE = {
    "path": "a text",
    "weight": "a number from 0 on",
    "epochs": "a number above 0",
    "replay": "a share from 0 to 1",
    "max_epochs": "a number above 0",
    "languages": "a table of positive shares by name",
}
DIFFICULTY = {"field": "a text", "bounds": "a list", "bands": "a list"}
PHASE = {
    "share": "a number above 0",
    "weights": "a table of positive shares by name",
    "difficulty": "a table of positive shares by name",
}
