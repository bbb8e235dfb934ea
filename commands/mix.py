"""`iqc mix`: several streams to one by weights, and the law that chooses weights of languages."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqc.commands import mix_law as options
from iqc.errors import UsageError
from iqc.options import Seed, command_app, pairs, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()

COMMON = ("inputs", "output", "plain", "jobs", "on_error", "explain", "summary", "quiet", "shard_mib")

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]FILE|DIR...", help="Streams to mix, by name.", show_default=False),
]


class By(StrEnum):
    records = "records"
    bytes = "bytes"
    tokens = "tokens"


class Short(StrEnum):
    fail = "fail"
    rescale = "rescale"


@app.command()
@stage_options(*COMMON, inputs=Sources)
def mix(
    settings: "Settings",
    weight: Annotated[
        list[str] | None, typer.Option("--weight", metavar="NAME=W", help="Share of a source, relative to the others.")
    ] = None,
    epochs: Annotated[
        list[str] | None,
        typer.Option("--epochs", metavar="NAME=E", help="Give a source so many times, whatever its share."),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(
            "--replay", metavar="NAME=X", help="A source of an earlier stage: its share of the whole, 0 to 1."
        ),
    ] = None,
    by: Annotated[
        By | None, typer.Option("--by", help="What shares and totals are of; bytes, if nothing says.")
    ] = None,
    total: Annotated[
        str | None,
        typer.Option("--total", metavar="N", help="Amount of output: 500k, 1.5B; else until a source is used up."),
    ] = None,
    max_epochs: Annotated[
        float | None,
        typer.Option("--max-epochs", metavar="E", min=0.001, help="How often a source may be given, at most; else 1."),
    ] = None,
    short: Annotated[
        Short | None,
        typer.Option("--short", help="Of sources that would be given more often: fail, or take more of the others."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="T", min=0.01, help="Weights from sizes, n^(1/T): 1 as they are, larger more even."
        ),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option("--languages", metavar="LANG=P,...", help="Shares by metadata.lang; * is all the others."),
    ] = None,
    language_temperature: Annotated[
        float | None,
        typer.Option("--language-temperature", metavar="T", min=0.01, help="Shares of languages from sizes, n^(1/T)."),
    ] = None,
    difficulty: Annotated[
        str | None,
        typer.Option(
            "--difficulty", metavar="FIELD=A,B...", help="Easy first: bands of a score, or quantiles 33%,67%."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE", help="A mixture in TOML; options here replace what it says."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="What --by tokens counts text with.")
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Each source in an order of its own.")] = True,
    report: Annotated[
        str | None,
        typer.Option("--report", metavar="FILE.html", help="Write a page of what went in: table and picture."),
    ] = None,
    law: options.LawOption = None,
    law_file: options.LawFile = None,
    given: options.Given = None,
    free: options.Free = None,
    synergy: options.SynergyOption = None,
    draws: options.Draws = None,
    huber: options.Huber = None,
    model_size: options.ModelSize = None,
    least: options.Least = None,
    most: options.Most = None,
    available: options.Available = None,
    reducible: options.Reducible = False,
    published: options.Published = False,
    seed: Seed = 0,
) -> None:
    """Mix streams to one whose shares are as near to the wanted ones as whole records allow, at every place in it.

    Without weights every source is given once, spread evenly. A record that is given again has the id ID#epoch2.
    """
    own: dict[str, Any] = {"law_file": law_file, "set": given, "free": free, "synergy": synergy, "draws": draws}
    own |= {"huber": huber, "model_size": model_size, "least": least, "most": most, "available": available}
    own |= {"reducible": reducible or None, "published": published or None}
    if law is not None:
        own |= {"weight": weight, "epochs": epochs, "replay": replay, "by": by, "short": short, "recipe": recipe}
        own |= {"temperature": temperature, "language_temperature": language_temperature, "difficulty": difficulty}
        own |= {"tokenizer": tokenizer, "report": report}
        own |= {"total": total, "languages": languages, "max_epochs": max_epochs}
        options.run(law, options.asked(law, seed, own), settings)
        return
    if alien := [name for name, value in own.items() if value is not None]:
        raise UsageError(f"--{alien[0].replace('_', '-')} goes with --law", remedy="--law fit, predict or allocate")
    from iqc.tokens.mix.recipe import Recipe, amount_of, difficulty_of, sources_of
    from iqc.tokens.mix.recipe_file import RecipeFile
    from iqc.tokens.mix.stages import mix as stage

    asked, paths = RecipeFile(recipe).recipe() if recipe else (Recipe({}), {})
    paths = sources_of(asked, paths, settings.inputs or [])
    wishes = {
        kind: pairs(kind, texts or []) for kind, texts in (("weight", weight), ("epochs", epochs), ("replay", replay))
    }
    for kind, numbers in wishes.items():
        for name, number in numbers.items():
            if sum(name in found for found in wishes.values()) > 1:
                raise UsageError(
                    f"source {name} has more than one of --weight, --epochs and --replay", remedy="leave one"
                )
            asked.replace_wish(name, kind, number)
    replaced: dict[str, Any] = {"by": by and by.value, "short": short and short.value, "max_epochs": max_epochs}
    replaced |= {"total": amount_of(total) if total else None, "temperature": temperature}
    replaced |= {"languages": pairs("languages", languages.split(",")) if languages else None}
    replaced |= {"language_temperature": language_temperature}
    if difficulty:
        field, _, bounds = difficulty.partition("=")
        replaced |= {"difficulty": difficulty_of(field, bounds.split(",")), "phases": []}
    for name, value in replaced.items():
        if value is not None:
            setattr(asked, name, value)
    if report:
        check_report(report, settings)
    counts = stage(paths, asked.checked(paths), tokenizer, settings, seed, shuffle)
    if report:
        from iqc.report import Findings, page
        from iqc.streams.writer import write_file

        write_file(report, page(Findings(stages=[("mix", {"command": "mix"} | counts.json())]), "iqc mix").encode())


def check_report(report: str, settings: "Settings") -> None:
    """That the page can be written, before the work, and over nothing else."""
    import os

    from iqc.streams.output import check_parent

    check_parent(report)
    for path in (settings.output, settings.summary, settings.explain, settings.quarantine):
        if path is not None and os.path.realpath(path) == os.path.realpath(report):
            raise UsageError(f"--report {report} is written twice", remedy="give each output a file of its own")
