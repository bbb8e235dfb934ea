"""`iqc repos`: repositories to records of all their files, in the order of their dependencies."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import INT64, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()

Repositories = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]DIR...", help="Source trees, or git repositories, bare or not.", show_default=False),
]


class As(StrEnum):
    repositories = "repositories"
    files = "files"


class Long(StrEnum):
    drop = "drop"
    split = "split"  # type: ignore[assignment]  # it also names a method of str


@app.command()
@stage_options(inputs=Repositories)
def repos(
    settings: "Settings",
    as_: Annotated[As, typer.Option("--as", help="A record a repository, or a record a file.")] = As.repositories,
    commit: Annotated[
        str, typer.Option("--commit", metavar="REV", help="The commit that is read of a git repository.")
    ] = "HEAD",
    max_file_bytes: Annotated[
        int, typer.Option("--max-file-bytes", metavar="N", min=1, max=2**28, help="A larger file is left out.")
    ] = 3_000_000,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", metavar="N", min=1, max=60 << 20, help="Bytes of JSON of a record's files.")
    ] = 32 << 20,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", min=8, max=INT64, help="Tokens of a packed record, at most."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="What --max-tokens counts with.")
    ] = None,
    long: Annotated[Long, typer.Option("--long", help="Of files longer than a record.")] = Long.drop,
    quality: Annotated[
        str | None, typer.Option("--quality", metavar="FILE", help="Scores of files: a stream with repo and path.")
    ] = None,
    quality_field: Annotated[
        str, typer.Option("--quality-field", metavar="NAME", help="The field that is the score, or of the metadata.")
    ] = "score",
    min_quality: Annotated[
        float | None, typer.Option("--min-quality", metavar="X", help="Drop repositories of a lower mean score.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Read repositories as wholes: each file behind the files that it imports, other files shuffled before them.

    An INPUT with a git repository in it is read at a commit, any other directory as it lies. Imports are resolved in
    Python, Java, C, C++, JavaScript, TypeScript, Go, Rust and C#. A repository too large for a record is cut between
    its independent parts, then between files.
    """
    from iqc.corpus.repositories import Options
    from iqc.corpus.repository_stages import factory, open_sources, ranked, sources
    from iqc.streams.runner import run_stage

    if not settings.inputs:
        raise UsageError("no repository", remedy="name source trees or git repositories as INPUT")
    if (max_tokens is None) != (tokenizer is None):
        raise UsageError("--max-tokens and --tokenizer go together", remedy="give both, or use --max-bytes")
    if as_ is As.files and (max_tokens or long is Long.split):
        raise UsageError("--as files with --max-tokens or --long", remedy="they are about records of repositories")
    if min_quality is not None and quality is None:
        raise UsageError("--min-quality without scores", remedy="give --quality FILE")
    found = sources(settings.inputs, commit)
    shown: dict[str, object] = {"as": as_.value, "commit": commit, "long": long.value, "min_quality": min_quality}
    shown |= {"max_file_bytes": max_file_bytes, "max_bytes": max_bytes, "max_tokens": max_tokens}
    if tokenizer:
        from iqc.tokens.tokenizer import load

        shown["tokenizer"] = load(Path(tokenizer)).digest
    if quality:
        from iqc.corpus.scores import read_scores

        scores, digest = read_scores(quality, quality_field, [source.name for source in found])
        found = ranked(found, scores)
        shown |= {"quality": digest, "quality_field": quality_field}
    options = Options(
        whole=as_ is As.repositories,
        max_file_bytes=max_file_bytes,
        max_bytes=max_bytes,
        max_tokens=max_tokens,
        cut_files=long is Long.split,
        min_quality=min_quality,
        seed=seed,
    )
    run_stage(
        "repos", shown, settings, factory(options, tokenizer), source=open_sources(found, max_file_bytes), seed=seed
    )
