"""`iqc pack`: tokenise records and pack them into sequences."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.errors import UsageError
from iqc.options import INT32, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()


class Method(StrEnum):
    best_fit = "best-fit"
    concat = "concat"


class Long(StrEnum):
    split = "split"  # type: ignore[assignment]  # it also names a method of str
    drop = "drop"


class Trees(StrEnum):
    paths = "paths"
    trie = "trie"


class Shared(StrEnum):
    once = "once"
    each = "each"


@app.command()
@stage_options()
def pack(
    settings: "Settings",
    tokenizer: Annotated[str, typer.Option("--tokenizer", metavar="DIR", help="What `iqc tokenizer train` wrote.")],
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=2, max=INT32, help="Tokens a row, at most.")
    ] = 512,
    method: Annotated[Method, typer.Option("--method", help="How samples share rows.")] = Method.best_fit,
    fill: Annotated[
        float,
        typer.Option(
            "--fill", metavar="X", min=0, max=1, help="Cut documents only where rows are less full than this."
        ),
    ] = 0.995,
    long: Annotated[Long, typer.Option("--long", help="Of documents longer than a row.")] = Long.split,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, max=INT32, help="Samples packed together.")
    ] = 4096,
    upsample_long: Annotated[
        str | None,
        typer.Option("--upsample-long", metavar="N=X", help="Weigh samples of N tokens and more X times, by source."),
    ] = None,
    trees: Annotated[Trees, typer.Option("--trees", help="Of trajectory trees: each path, or what is shared once.")] = (
        Trees.paths
    ),
    shared: Annotated[
        Shared, typer.Option("--shared", help="How often to learn what the paths of a tree share.")
    ] = Shared.once,
    mask_errors: Annotated[
        bool, typer.Option("--mask-errors", help="Do not learn calls of tools whose result is an error.")
    ] = False,
    fim_middle_only: Annotated[
        bool, typer.Option("--fim-middle-only", help="Of fim samples, learn the middle alone.")
    ] = False,
    change_only: Annotated[
        bool, typer.Option("--change-only", help="Of triplets, commits and pull requests, learn the change alone.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Tokenise documents, fim samples, chats, pairs, trajectories, repositories and changes, and pack them into rows
    of a context length.

    Rows hold whole samples with their lengths, so that no token sees another sample, and a loss weight a token.
    """
    from iqc.streams.runner import run_stage
    from iqc.tokens.pack import Packer
    from iqc.tokens.stages import packing, tokenise_stage
    from iqc.tokens.tokenise import line_ends
    from iqc.tokens.tokenizer import load
    from iqc.tokens.upsample import Upsampling

    loaded = load(Path(tokenizer))
    way = method.value.replace("-", "_")
    packer = Packer(context, method=way, window=window, fill=fill, line_ends=line_ends(loaded))
    upsampling = None
    if upsample_long:
        length, _, factor = upsample_long.partition("=")
        try:
            upsampling = Upsampling(int(length), float(factor), seed, window)
        except ValueError:
            raise UsageError(
                f"--upsample-long {upsample_long}", remedy="for example --upsample-long 4096=2.3"
            ) from None
    reduce, measured = packing(packer, upsampling)
    sample_options = {
        "context": context,
        "long": long.value,
        "fim_middle_only": fim_middle_only,
        "change_only": change_only,
        "mask_errors": mask_errors,
        "trees": trees.value,
        "shared": shared.value,
    }
    options = {"tokenizer": loaded.digest, "method": method.value, "window": window, "fill": fill} | sample_options
    options |= {"upsample_long": upsample_long} if upsample_long else {}
    factory = partial(tokenise_stage, loaded, **sample_options)
    run_stage("pack", options, settings, factory, seed=seed if upsampling else None, reduce=reduce, measure=measured)
