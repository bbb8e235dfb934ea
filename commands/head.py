"""`iqc head`: the first records of a stream, or all of them."""

from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()


@app.command()
@stage_options()
def head(
    settings: "Settings",
    count: Annotated[str, typer.Option("-n", "--count", metavar="N|all", help="How many records.")] = "10",
) -> None:
    """Write the first records of a stream, or all of them (-n all), parsed and written again."""
    from iqc.streams.runner import identity_factory, run_first, run_stage

    if count == "all":
        run_stage("head", {"count": "all"}, settings, identity_factory)
    elif count.isascii() and count.isdecimal() and len(count) < 19:  # below 2**63
        run_first(int(count), settings)
    else:
        raise UsageError(f"-n {count}", remedy="-n takes a number below 10**18, or all")
