"""`iqc triplets`: git histories to (old, patch, new) records."""

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import INT32, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()

Repositories = Annotated[
    list[str] | None, typer.Argument(metavar="REPO...", help="Git repositories, bare or not.", show_default=False)
]


class By(StrEnum):
    rank = "rank"
    time = "time"


class State(StrEnum):
    touched = "touched"
    dependencies = "dependencies"
    snapshot = "snapshot"


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
    by: Annotated[By, typer.Option("--by", help="What percentiles count: commits, or seconds.")] = By.rank,
    density: Annotated[float, typer.Option("--density", metavar="X", help="Triplets wanted for 100 commits.")] = 2.0,
    horizon: Annotated[
        int, typer.Option("--horizon", metavar="N", min=1, max=10**6, help="Commits searched for the new state.")
    ] = 8,
    min_score: Annotated[
        float, typer.Option("--min-score", metavar="X", help="A change that scores less is not taken.")
    ] = 0.5,
    max_files: Annotated[
        int, typer.Option("--max-files", metavar="N", min=1, max=INT32, help="Files that a change may touch.")
    ] = 30,
    max_file_bytes: Annotated[
        int, typer.Option("--max-file-bytes", metavar="N", min=1, max=INT32, help="Size of a touched file.")
    ] = 500_000,
    encodings: Annotated[
        str,
        typer.Option("--encodings", metavar="NAME,...", help="Tried in order on a file that declares no encoding."),
    ] = "utf-8",
    state: Annotated[
        State, typer.Option("--state", help="What states hold: touched files, what they import too, or all files.")
    ] = State.touched,
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", min=1, max=100, help="Steps from touched files to what they import.")
    ] = 1,
    max_state_files: Annotated[
        int, typer.Option("--max-state-files", metavar="N", min=0, max=INT32, help="Untouched files of a state.")
    ] = 1000,
    max_state_bytes: Annotated[
        int, typer.Option("--max-state-bytes", metavar="N", min=0, max=INT32, help="Their sizes together.")
    ] = 2_000_000,
    seed: Seed = 0,
) -> None:
    """Mine repositories for triplets: a mature state, a representative change, the state after it.

    INPUTs are git repositories, bare or not. Every patch is applied to the old state and must give the new one.
    """
    from iqc.history.stages import factory, open_repositories
    from iqc.history.states import ContextOptions
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
    options = Options(
        name=name,
        window=(low, high),
        by=by.value,
        density=density,
        horizon=horizon,
        min_score=min_score,
        max_files=max_files,
        max_file_bytes=max_file_bytes,
        encodings=tuple(encodings.split(",")),
        context=ContextOptions(state.value, depth, max_state_files, max_state_bytes),
        seed=seed,
    )
    shown = {key: value for key, value in asdict(options).items() if key != "seed"}
    source = open_repositories(settings.inputs, options)
    run_stage("triplets", shown, settings, factory(options), source, seed)
