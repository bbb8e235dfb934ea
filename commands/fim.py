"""`iqc fim`: documents to fill-in-the-middle samples."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import INT32, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()


class Layout(StrEnum):
    psm = "psm"
    spm = "spm"


@app.command()
@stage_options()
def fim(
    settings: "Settings",
    rate: Annotated[
        float, typer.Option("--rate", metavar="X", min=0, max=1, help="Share of documents to cut; the others pass.")
    ] = 0.5,
    levels: Annotated[
        str,
        typer.Option("--levels", metavar="NAME[=W],...", help="Where cuts may fall, with relative weights."),
    ] = "character,line,expression,statement,function",
    layout: Annotated[Layout, typer.Option("--layout", help="Prefix or suffix first.")] = Layout.psm,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, max=INT32, help="Samples of a cut document.")
    ] = 1,
    stretch: Annotated[
        int,
        typer.Option(
            "--stretch", metavar="N", min=0, max=INT32, help="Cut stretches of N characters, not whole files; 0: whole."
        ),
    ] = 0,
    seed: Seed = 0,
) -> None:
    """Cut documents into prefix, middle and suffix at characters, lines or whole nodes of their syntax tree."""
    from iqc.fim.stages import fim as stage
    from iqc.streams.runner import run_stage

    weights = parse_weights(levels)
    options = {"rate": rate, "levels": weights, "layout": layout.value, "samples": samples, "stretch": stretch}
    run_stage("fim", options, settings, stage(rate, weights, layout.value, samples, stretch, seed), seed=seed)


def parse_weights(text: str) -> dict[str, float]:
    """`a,b=2` to {a: 1, b: 2}."""
    weights = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise UsageError(f"the weight in {part!r} is no number", remedy="--levels line=2,function=1") from None
    return weights
