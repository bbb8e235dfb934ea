"""`iqc export`: write a checkpoint in the layout others load."""

from typing import Annotated

import typer

from iqc.options import command_app, config_options

app = command_app()


@app.command()
@config_options
def export(
    checkpoint: Annotated[str, typer.Argument(metavar="RUN/|DIR", help="A run, a checkpoint or a model directory.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="The directory to make.")],
) -> None:
    """Write a checkpoint as a directory that Transformers and vLLM load.

    A dense model is a Llama; a looped one carries its Python files (trust_remote_code=True); experts have
    the names of BailingMoe, with NormHead put into the head.
    """
    from iqc.export.huggingface import export as write
    from iqc.train.run import find_checkpoint

    write(find_checkpoint(checkpoint), output)
    typer.echo(f"iqc export: {output}", err=True)
