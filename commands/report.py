"""`iqc report`: one page about a run, from what its stages left."""

from typing import Annotated

import typer

from iqc.options import Quiet, command_app, config_options

app = command_app()


@app.command()
@config_options
def report(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where summaries, runs and samples lie.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE.html", help="The page to write.")
    ] = None,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Its heading.")] = "iqc",
    quiet: Quiet = False,
) -> None:
    """Print tables of what the stages below a directory left, and write them with pictures as one HTML page."""
    from iqc.report import find, page, print_report
    from iqc.streams.writer import write_file

    found = find(directory)
    if not quiet:
        print_report(found)
    if output:
        write_file(output, page(found, title).encode())
