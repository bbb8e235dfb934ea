"""`iqc dedup`: drop exact and near duplicates, each verified."""

from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
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
    bands: Annotated[
        int, typer.Option("--bands", metavar="N", min=0, max=4096, help="Bands of MinHash-LSH; 0: by threshold.")
    ] = 0,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", min=0, max=4096, help="Rows of each band; 0: by threshold.")
    ] = 0,
) -> None:
    """Keep the first of documents that are the same or nearly so.

    Candidates of MinHash-LSH on 5-word shingles are verified: a document is dropped only when a kept one reaches the
    threshold on the whole shingle sets.
    """
    from iqc.dedup.minhash import Lsh
    from iqc.dedup.stages import dedup as stage
    from iqc.streams.runner import run_stage

    if bool(bands) != bool(rows):
        raise UsageError("one of --bands and --rows", remedy="give both, or neither")
    lsh = None if exact else Lsh(bands, rows) if bands else Lsh.for_threshold(threshold)
    factory, reduce = stage(threshold, lsh)
    options = {"threshold": threshold, "bands": lsh.bands, "rows": lsh.rows} if lsh else {"exact": True}
    run_stage("dedup", options, settings, factory, reduce=reduce)
