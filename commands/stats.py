"""`iqc stats`: counts, sizes, fields and lengths of a stream."""

from typing import Annotated

import typer

from iqc.options import Inputs, command_app, config_options

app = command_app()


@app.command()
@config_options
def stats(
    inputs: Inputs = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object instead.")] = False,
) -> None:
    """Say what is in a stream: counts, sizes, fields with their types, languages, and a picture of the lengths."""
    import orjson

    from iqc.streams.inspect import measure, stats_text
    from iqc.streams.runner import StreamInput, read_records

    found = measure(read_records(StreamInput(inputs or [])))
    print(orjson.dumps(found.json(), option=orjson.OPT_INDENT_2).decode() if json else stats_text(found))
