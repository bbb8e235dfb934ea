"""`iqc mix`: several streams to one by weights, and the law that chooses weights of languages."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]FILE|DIR...", help="Streams to mix, by name.", show_default=False),
]


class By(StrEnum):
    records = "records"
    bytes = "bytes"
    tokens = "tokens"


class Law(StrEnum):
    fit = "fit"
    predict = "predict"
    allocate = "allocate"


@app.command()
@stage_options("inputs", "output", "plain", "jobs", "on_error", "summary", "quiet", "shard_mib", inputs=Sources)
def mix(
    settings: "Settings",
    weight: Annotated[
        list[str] | None, typer.Option("--weight", metavar="NAME=W", help="Share of a source, relative to the others.")
    ] = None,
    epochs: Annotated[
        list[str] | None,
        typer.Option("--epochs", metavar="NAME=E", help="Give a source so many times, whatever its share."),
    ] = None,
    by: Annotated[By, typer.Option("--by", help="What shares and totals are of.")] = By.bytes,
    total: Annotated[
        str | None,
        typer.Option("--total", metavar="N", help="Amount of output: 500k, 10B; else until a source is used up."),
    ] = None,
    max_epochs: Annotated[
        float, typer.Option("--max-epochs", metavar="E", min=0.0, help="How often a source may be given, at most.")
    ] = 1.0,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="T", help="Weights from sizes, n^(1/T): 1 as they are, larger more even."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="What --by tokens counts text with.")
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Each source in an order of its own.")] = True,
    law: Annotated[
        Law | None, typer.Option("--law", help="No mixture: the scaling law of languages, from and to INPUT and -o.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Mix streams to one whose shares are as near to the wanted ones as whole records allow, at every place in it.

    Without weights every source is given once, spread evenly. A record that is given again has the id ID#epoch2.
    """
    if law is not None:
        from iqc.tokens.law import run_law

        run_law(law.value, settings.inputs, settings.output)
        return
    from iqc.tokens.mix_stages import mix as stage
    from iqc.tokens.mixture import Recipe, Wish, amount_of, name_sources

    if not settings.inputs:
        raise UsageError("no source", remedy="name streams as INPUT: [NAME=]FILE or DIR")
    paths = name_sources(settings.inputs)
    wishes = {name: Wish() for name in paths}
    for option, given in (("weight", weight), ("epochs", epochs)):
        for name, value in pairs(option, given, paths).items():
            setattr(wishes[name], option, value)
    recipe = Recipe(wishes, by.value, amount_of(total) if total else None, max_epochs, temperature=temperature)
    stage(paths, recipe, tokenizer, settings, seed, shuffle)


def pairs(option: str, given: list[str] | None, known: dict[str, str]) -> dict[str, float]:
    """`NAME=X` of an option that is given several times."""
    found: dict[str, float] = {}
    for text in given or []:
        name, _, number = text.rpartition("=")
        if name not in known:
            raise UsageError(f"--{option} {text}: no source is called {name!r}", remedy=f"sources: {', '.join(known)}")
        try:
            found[name] = float(number)
        except ValueError:
            raise UsageError(f"--{option} {text}: no number", remedy=f"--{option} {name}=2") from None
        if not 0 <= found[name] < float("inf"):
            raise UsageError(f"--{option} {text}", remedy="give a finite number from 0 on")
    return found
