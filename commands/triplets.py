"""`iqc triplets`: git histories to (old, patch, new) records: spans of commits, commits, pull requests."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqc.errors import UsageError
from iqc.options import INT32, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.history.stages import Options
    from iqc.streams.runner import Settings

app = command_app()

Repositories = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]REPO...", help="Git repositories, bare or not.", show_default=False),
]


class As(StrEnum):
    triplet = "triplet"
    commit = "commit"
    pr = "pr"


class By(StrEnum):
    rank = "rank"
    time = "time"


class State(StrEnum):
    touched = "touched"
    dependencies = "dependencies"
    snapshot = "snapshot"


class Changed(StrEnum):
    keep = "keep"
    drop = "drop"


# What one kind of record has alone.
OWN = {
    As.triplet: ("by", "density", "horizon", "min_score", "state", "depth", "max_state_files", "max_state_bytes"),
    As.commit: ("context", "context_files", "changed", "readme_chars", "file_chars", "tree_entries"),
    As.pr: ("export",),
}
LIMITS = ("min_stars", "min_forks", "min_commits", "min_age_days")


@app.command()
@stage_options(inputs=Repositories)
def triplets(
    settings: "Settings",
    as_: Annotated[As, typer.Option("--as", help="What a record is of.")] = As.triplet,
    window: Annotated[
        str,
        typer.Option(
            "--window",
            metavar="A-B",
            help="Percentiles of the life in which old states lie: 40-80, of commits 0-100.",
            show_default=False,
        ),
    ] = "",
    max_files: Annotated[
        int, typer.Option("--max-files", metavar="N", min=1, max=INT32, help="Files that a change may touch.")
    ] = 30,
    max_file_bytes: Annotated[
        int, typer.Option("--max-file-bytes", metavar="N", min=1, max=INT32, help="Size of a touched file.")
    ] = 500_000,
    max_patch_bytes: Annotated[
        int,
        typer.Option(
            "--max-patch-bytes", metavar="N", min=1, max=INT32, help="Size of the patch of a commit or pull request."
        ),
    ] = 100_000,
    encodings: Annotated[
        str, typer.Option("--encodings", metavar="NAME,...", help="Tried in order on a file that declares none.")
    ] = "utf-8",
    by: Annotated[By, typer.Option("--by", help="Triplets: what percentiles count, commits or seconds.")] = By.rank,
    density: Annotated[float, typer.Option("--density", metavar="X", help="Triplets wanted for 100 commits.")] = 2.0,
    horizon: Annotated[
        int,
        typer.Option("--horizon", metavar="N", min=1, max=1000, help="Triplets: commits searched for the new state."),
    ] = 8,
    min_score: Annotated[
        float, typer.Option("--min-score", metavar="X", help="Triplets: a change that scores less is not taken.")
    ] = 0.5,
    state: Annotated[
        State, typer.Option("--state", help="Triplets: touched files, what they import too, or all files.")
    ] = State.touched,
    depth: Annotated[
        int,
        typer.Option(
            "--depth", metavar="N", min=1, max=100, help="Triplets: steps from touched files to what they import."
        ),
    ] = 1,
    max_state_files: Annotated[
        int,
        typer.Option("--max-state-files", metavar="N", min=0, max=INT32, help="Triplets: untouched files of a state."),
    ] = 1000,
    max_state_bytes: Annotated[
        int, typer.Option("--max-state-bytes", metavar="N", min=0, max=INT32, help="Triplets: their sizes together.")
    ] = 2_000_000,
    context: Annotated[
        bool, typer.Option("--context/--no-context", help="Commits: README, tree and BM25's files at the parent.")
    ] = True,
    context_files: Annotated[
        int,
        typer.Option(
            "--context-files", metavar="N", min=1, max=100, help="Commits: files that BM25 finds for the message."
        ),
    ] = 5,
    changed: Annotated[
        Changed, typer.Option("--changed", help="Commits: files that the commit changes, among those found.")
    ] = Changed.keep,
    readme_chars: Annotated[
        int,
        typer.Option("--readme-chars", metavar="N", min=0, max=INT32, help="Commits: of the README; 0 leaves it out."),
    ] = 4_000,
    file_chars: Annotated[
        int, typer.Option("--file-chars", metavar="N", min=0, max=INT32, help="Commits: of each file found.")
    ] = 20_000,
    tree_entries: Annotated[
        int,
        typer.Option(
            "--tree-entries", metavar="N", min=0, max=INT32, help="Commits: of the tree; a larger one is cut by depth."
        ),
    ] = 500,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", metavar="FILE", help="Pull requests: JSONL of GH Archive events or REST objects."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="FILE", help="JSONL that repositories are filtered by.")
    ] = None,
    min_stars: Annotated[
        int, typer.Option("--min-stars", metavar="N", min=0, max=INT32, help="With --metadata: stars.")
    ] = 100,
    min_forks: Annotated[
        int, typer.Option("--min-forks", metavar="N", min=0, max=INT32, help="With --metadata: forks.")
    ] = 10,
    min_commits: Annotated[
        int, typer.Option("--min-commits", metavar="N", min=0, max=INT32, help="With --metadata: commits.")
    ] = 100,
    min_age_days: Annotated[
        int,
        typer.Option(
            "--min-age-days",
            metavar="N",
            min=0,
            max=INT32,
            help="With --metadata: days from the first to the last commit.",
        ),
    ] = 100,
    seed: Seed = 0,
) -> None:
    """Mine histories for changes: a state of a repository, a patch, the state after it.

    A triplet spans one or more commits of a mature project; a commit comes with what could be known before it; a pull
    request with its conversation. Every patch is applied to the old state and must give the new one.
    """
    given = dict(locals())
    import inspect
    from dataclasses import asdict

    from iqc.history.stages import factory, open_repositories, sources
    from iqc.streams.runner import run_stage

    if not settings.inputs:
        raise UsageError("no repository", remedy="name git repositories as INPUT")
    defaults = inspect.signature(triplets).parameters
    for kind, names in OWN.items():
        for name in names:
            if kind is not as_ and given[name] != defaults[name].default:
                raise UsageError(f"--{name.replace('_', '-')} with --as {as_}", remedy=f"it goes with --as {kind}")
    for name, ignored in (("max_patch_bytes", as_ is As.triplet), *((name, not metadata) for name in LIMITS)):
        if ignored and given[name] != defaults[name].default:
            remedy = "it is for commits and pull requests" if name == "max_patch_bytes" else "it goes with --metadata"
            raise UsageError(f"--{name.replace('_', '-')} has nothing to do", remedy=remedy)
    options = _options(**given)
    limits = None
    if metadata:
        from iqc.history.filters import Limits

        limits = Limits(min_stars, min_forks, min_commits, min_age_days)
    left_out = ("name", "seed", "export")  # one a repository, of the stage, and paths
    shown = {"as": as_} | {key: value for key, value in asdict(options).items() if key not in left_out}
    shown |= {"metadata": asdict(limits)} if limits else {}
    found = sources(settings.inputs)
    source = open_repositories(found, options, metadata, limits, skip_bad=settings.on_error_mode != "fail")
    run_stage("triplets", shown, settings, factory(options), source, seed)


def _options(as_: As, window: str, encodings: str, **given: Any) -> "Options":
    """The options of the library, for the kind of record."""
    import codecs

    from iqc.history import commits, pulls, triplets
    from iqc.history.states import ContextOptions
    from iqc.history.texts import superset_of_ascii

    try:
        low, high = (float(part) / 100 for part in (window or ("40-80" if as_ is As.triplet else "0-100")).split("-"))
    except ValueError:
        raise UsageError(f"--window {window}", remedy="two percentiles, such as 40-80") from None
    try:
        names = tuple(codecs.lookup(name).name for name in encodings.split(","))
    except LookupError as error:
        raise UsageError(f"--encodings {encodings}: {error}", remedy="encodings as Python knows them") from None
    if wrong := [name for name in names if not superset_of_ascii(name)]:
        raise UsageError(f"--encodings {wrong[0]}: no patch can be in it", remedy="only supersets of ASCII can")
    shared = {"encodings": names} | {name: given[name] for name in ("max_files", "max_file_bytes")}
    if as_ is As.triplet:
        context = ContextOptions(*(given[name] for name in ("state", "depth", "max_state_files", "max_state_bytes")))
        own = {name: given[name] for name in ("by", "density", "horizon", "min_score", "seed")}
        return triplets.Options(window=(low, high), context=context, **own, **shared)
    shared |= {"max_patch_bytes": given["max_patch_bytes"]}
    if as_ is As.commit:
        return commits.Options(window=(low, high), **{name: given[name] for name in OWN[As.commit]}, **shared)
    if not given["export"]:
        raise UsageError("--as pr without --export", remedy="name the files with the pull requests and issues")
    if window:
        raise UsageError("--window with --as pr", remedy="pull requests are taken from the whole history")
    return pulls.Options(export=tuple(given["export"]), **shared)
