"""`iqc completion`: print the completion script of a shell."""

from enum import StrEnum
from typing import Annotated

import typer

from iqc.options import command_app

app = command_app()


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print a shell's completion script: eval "$(iqc completion bash)"."""
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name="iqc", complete_var="_IQC_COMPLETE", shell=shell.value))
