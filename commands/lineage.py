"""`iqc lineage`: where a stream, a directory of shards or a checkpoint comes from."""

from pathlib import Path
from typing import Annotated

import typer

from iqc.options import command_app, config_options

app = command_app()


@app.command()
@config_options
def lineage(
    path: Annotated[str, typer.Argument(metavar="FILE|DIR", help="A stream, a directory of shards, or a checkpoint.")],
    json: Annotated[bool, typer.Option("--json", help="Write the lineage as it is stored.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read the stream whole and compare its digest.")] = False,
) -> None:
    """Show the stages that made a stream or a checkpoint, back to the raw inputs."""
    import orjson

    from iqc.streams.inspect import lineage_text
    from iqc.streams.reader import lineage_at, verify_digest

    if checkpoints := sorted(Path(path).glob("step-*/lineage.json")):  # a run: its newest checkpoint
        path = str(checkpoints[-1].parent)
    found = lineage_at(path)
    if verify:
        print(f"{path}: {verify_digest(path, found)} records, digest as recorded")
    else:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() if json else lineage_text(found))
