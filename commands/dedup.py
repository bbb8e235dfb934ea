"""`iqc dedup`: drop exact and near duplicates, each verified."""

from typing import TYPE_CHECKING, Annotated

import typer

from iqc.options import command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()


@app.command()
@stage_options()
def dedup(
    settings: "Settings",
    threshold: Annotated[
        float, typer.Option("--threshold", metavar="J", min=0.01, max=1, help="Jaccard similarity of a near duplicate.")
    ] = 0.7,
    exact: Annotated[bool, typer.Option("--exact", help="Exact duplicates alone.")] = False,
    bands: Annotated[int, typer.Option("--bands", metavar="N", min=1, max=4096, help="Bands of MinHash-LSH.")] = 14,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, max=4096, help="Rows of each band.")] = 8,
) -> None:
    """Keep the first of documents that are the same or nearly so.

    Candidates of MinHash-LSH on 5-word shingles are verified: a document is dropped only when a kept one reaches the
    threshold on the whole shingle sets.
    """
    from iqc.dedup.minhash import Lsh
    from iqc.dedup.stages import dedup as stage
    from iqc.streams.runner import run_stage

    factory, reduce = stage(threshold, None if exact else Lsh(bands, rows))
    options = {"exact": True} if exact else {"threshold": threshold, "bands": bands, "rows": rows}
    run_stage("dedup", options, settings, factory, reduce=reduce)
