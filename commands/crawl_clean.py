"""`iqc crawl-clean`: source trees and web archives to clean documents."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.options import command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()

Corpus = Annotated[
    list[str] | None,
    typer.Argument(metavar="[INPUT]...", help="Source trees, web archives, or streams of documents."),
]


@app.command()
@stage_options(inputs=Corpus)
def crawl_clean(
    settings: "Settings",
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="The documents' source; by default the INPUT's name.")
    ] = None,
    code_rules: Annotated[
        str | None, typer.Option("--code-rules", metavar="SET,...", help="Rules for code; none for no rules.")
    ] = None,
    web_rules: Annotated[
        str | None, typer.Option("--web-rules", metavar="SET,...", help="Rules for web text; none for no rules.")
    ] = None,
    rules_file: Annotated[
        str | None,
        typer.Option("--rules", metavar="FILE", help="A TOML file of rule sets in place of the shipped one."),
    ] = None,
    syntax: Annotated[bool, typer.Option("--syntax/--no-syntax", help="Drop code that does not parse.")] = True,
    measured: Annotated[bool, typer.Option("--measured", help="Keep every measured value in the metadata.")] = False,
) -> None:
    """Read source trees, web archives (WARC, WET) or documents; keep the clean ones.

    An INPUT that is a directory is a source tree, one whose name ends in .warc, .wet or these with .gz is an archive,
    any other is a stream of documents. Rules measure first; thresholds come from named sets in a table.
    """
    from iqc.corpus.clean import CleanOptions
    from iqc.corpus.rules import CODE_SETS, WEB_SETS
    from iqc.corpus.stages import crawl_clean as stage
    from iqc.corpus.stages import open_corpus
    from iqc.streams.runner import run_stage

    options = CleanOptions(names(code_rules, CODE_SETS), names(web_rules, WEB_SETS), rules_file, syntax, measured)
    shown = {"code": list(options.code), "web": list(options.web), "syntax": syntax, "measured": measured}
    if rules_file:
        import hashlib

        with open(rules_file, "rb") as file:
            shown["rules"] = hashlib.file_digest(file, "sha256").hexdigest()
    corpus = open_corpus(settings.inputs or [], source)
    run_stage("crawl-clean", shown | {"source": source}, settings, partial(stage, options, source), source=corpus)


def names(given: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """`a,b` to names; nothing given is the default, `none` is no names."""
    if given is None:
        return default
    return () if given == "none" else tuple(name.strip() for name in given.split(","))
