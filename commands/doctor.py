"""`iqc doctor`: what this machine has and which parts work."""

from typing import Annotated

import typer

from iqc.options import command_app, config_options

app = command_app()


@app.command()
@config_options
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object instead.")] = False,
) -> None:
    """Say what this machine has, which parts of iqc work here, and what would help the others.

    The exit status is 1 when something is broken that every command needs, or when the sandbox breaks a promise.
    """
    import orjson

    from iqc import __version__
    from iqc.doctor import checks, text

    found = checks()
    if json:
        report = {"iqc": __version__, "works": not any(check.fails for check in found)}
        report["checks"] = [check.json() for check in found]
        print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    else:
        print(text(found))
    raise typer.Exit(int(any(check.fails for check in found)))
