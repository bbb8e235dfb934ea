"""`iqc triplets`: git histories to (old, patch, new) records."""

from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()

Repositories = Annotated[
    list[str] | None, typer.Argument(metavar="REPO...", help="Git repositories, bare or not.", show_default=False)
]


@app.command()
@stage_options(inputs=Repositories)
def triplets(
    settings: "Settings",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The repository's name; by default its directory's.")
    ] = "",
    window: Annotated[
        str, typer.Option("--window", metavar="A-B", help="Percentiles of the life in which the old state lies.")
    ] = "40-80",
    by: Annotated[str, typer.Option("--by", metavar="rank|time", help="What percentiles count: commits or seconds.")] = "rank",
    density: Annotated[float, typer.Option("--density", metavar="X", help="Triplets wanted for 100 commits.")] = 2.0,
    horizon: Annotated[
        int, typer.Option("--horizon", metavar="N", min=1, max=10**6, help="Commits searched for the new state.")
    ] = 8,
    min_score: Annotated[
        float, typer.Option("--min-score", metavar="X", help="A change that scores less is not taken.")
    ] = 0.5,
    seed: Seed = 0,
) -> None:
    """Mine repositories for triplets: a mature state, a representative change, the state after it.

    INPUTs are git repositories, bare or not. Every patch is applied to the old state and must give the new one.
    """
    from iqc.history.stages import factory, open_repositories
    from iqc.history.triplets import Options
    from iqc.streams.runner import run_stage

    if not settings.inputs:
        raise UsageError("no repository", remedy="name git repositories as INPUT")
    try:
        low, high = (int(part) / 100 for part in window.split("-"))
    except ValueError:
        raise UsageError(f"--window {window}", remedy="two percentiles, such as 40-80") from None
    if name and len(settings.inputs) > 1:
        raise UsageError("--name with several repositories", remedy="mine them one at a time")
    options = Options(name, (low, high), by, density, horizon, min_score, seed=seed)
    shown = {"window": [low, high], "density": density, "horizon": horizon, "min_score": min_score, "name": name}
    source = open_repositories(settings.inputs, options)
    run_stage("triplets", shown, settings, factory(options), source, seed)
