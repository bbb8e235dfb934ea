"""`iqc help`: the manual page of a command."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Annotated

import typer

import iqc
from iqc.errors import UsageError
from iqc.options import command_app

app = command_app()


def page(name: str) -> Path | None:
    """The manual page `name`, of an installation or a checkout."""
    checkout = Path(iqc.__file__).parent.parent / "man" / f"{name}.1"
    installed = Path(sysconfig.get_path("data")) / "share" / "man" / "man1" / f"{name}.1"
    return next((path for path in (checkout, installed) if path.is_file()), None)


@app.command()
def help(
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="A command, or stream for the records.")
    ] = None,
) -> None:
    """Show the manual page of a command; of iqc itself without one."""
    from iqc.cli import COMMANDS, run

    if command is not None and command not in (*COMMANDS, "stream"):
        raise UsageError(f"no such command: {command}", remedy="iqc -h lists them")
    found = page(f"iqc-{command}" if command else "iqc")
    if found and shutil.which("man"):
        if sys.stdout is not None:
            sys.stdout.flush()
        os.execvp("man", ["man", str(found)])
    run([*([command] if command else []), "--help"])
