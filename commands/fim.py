"""`iqc fim`: documents and repositories to fill-in-the-middle samples."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import INT32, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()


class Layout(StrEnum):
    psm = "psm"
    spm = "spm"


class Similar(StrEnum):
    bm25 = "bm25"
    embeddings = "embeddings"


@app.command()
@stage_options()
def fim(
    settings: "Settings",
    rate: Annotated[
        str,
        typer.Option(
            "--rate",
            metavar="X[,LANG=X]...",
            help="Share of documents to cut, and of single languages; early is 0.5, late 0.1.",
        ),
    ] = "early",
    levels: Annotated[
        str,
        typer.Option("--levels", metavar="NAME[=W],...", help="Where cuts may fall, with relative weights."),
    ] = "character,line,expression,statement,function",
    layout: Annotated[Layout, typer.Option("--layout", help="Prefix or suffix first.")] = Layout.psm,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, max=INT32, help="Samples of a cut document.")
    ] = 1,
    max_middle: Annotated[
        int,
        typer.Option("--max-middle", metavar="N", min=0, max=INT32, help="Most characters of a middle; 0: any number."),
    ] = 0,
    stretch: Annotated[
        int,
        typer.Option(
            "--stretch", metavar="N", min=0, max=INT32, help="Cut stretches of N characters, not whole files; 0: whole."
        ),
    ] = 0,
    context: Annotated[
        int,
        typer.Option(
            "--context", metavar="N", min=0, max=INT32, help="Characters from other files of a repository; 0: none."
        ),
    ] = 6000,
    snippet_lines: Annotated[
        int, typer.Option("--snippet-lines", metavar="N", min=2, max=INT32, help="Lines of a snippet of the context.")
    ] = 20,
    similar: Annotated[Similar, typer.Option("--similar", help="What finds similar snippets.")] = Similar.bm25,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Base of the API that makes embeddings: http://HOST/v1."),
    ] = None,
    embedding_model: Annotated[
        str | None, typer.Option("--embedding-model", metavar="NAME", help="Model that the endpoint is asked for.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Cut files into prefix, middle and suffix at characters, lines or whole nodes of their syntax tree."""
    from iqc.fim.embeddings import Endpoint
    from iqc.fim.samples import FillInTheMiddle
    from iqc.fim.stages import Around
    from iqc.fim.stages import fim as stage
    from iqc.streams.runner import run_stage

    if (similar is Similar.embeddings) != bool(endpoint) or bool(endpoint) != bool(embedding_model):
        raise UsageError(
            "--similar embeddings, --endpoint and --embedding-model go together", remedy="give all three or none"
        )
    weights = parse_weights(levels)
    share, shares = parse_rates(rate)
    maker = FillInTheMiddle(share, shares, weights, layout.value, samples, max_middle, seed)
    around = Around(
        context, snippet_lines, Endpoint(endpoint, embedding_model) if endpoint and embedding_model else None
    )
    options = {"rate": share, "rates": shares, "levels": weights, "layout": layout.value, "samples": samples}
    options |= {"max_middle": max_middle, "stretch": stretch, "context": context, "snippet_lines": snippet_lines}
    options |= {"similar": embedding_model or similar.value}  # no address: it tells of the place, not of the records
    run_stage("fim", options, settings, stage(maker, around, stretch), seed=seed)


def parse_weights(text: str) -> dict[str, float]:
    """`a,b=2` to {a: 1, b: 2}."""
    weights = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise UsageError(f"the weight in {part!r} is no number", remedy="--levels line=2,function=1") from None
    return weights


def parse_rates(text: str) -> tuple[float, dict[str, float]]:
    """`late,python=0.5,html=0` to 0.1 and {python: 0.5, html: 0}; without a first number it is the default's."""
    from iqc.fim.samples import PHASES

    share, shares = PHASES["early"], {}
    for place, part in enumerate(text.split(",")):
        lang, given, rate = part.strip().rpartition("=")
        try:
            value = PHASES[rate] if rate in PHASES else float(rate)
        except ValueError:
            raise UsageError(f"the rate in {part!r} is no number", remedy="--rate 0.5,python=0.6,html=0") from None
        if given:
            shares[lang.strip()] = value
        elif place:
            raise UsageError(f"{part.strip()!r} names no language", remedy="--rate 0.5,python=0.6,html=0")
        else:
            share = value
    return share, shares
