"""`iqc pack`: tokenise records and pack them into sequences."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.options import INT32, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()


class Method(StrEnum):
    best_fit = "best-fit"
    concat = "concat"


class Long(StrEnum):
    split = "split"  # type: ignore[assignment]  # it also names a method of str
    drop = "drop"


@app.command()
@stage_options()
def pack(
    settings: "Settings",
    tokenizer: Annotated[str, typer.Option("--tokenizer", metavar="DIR", help="What `iqc tokenizer train` wrote.")],
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=2, max=INT32, help="Tokens a row, at most.")
    ] = 512,
    method: Annotated[Method, typer.Option("--method", help="How samples share rows.")] = Method.best_fit,
    long: Annotated[Long, typer.Option("--long", help="Of documents longer than a row.")] = Long.split,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, max=INT32, help="Samples packed together.")
    ] = 4096,
    fim_middle_only: Annotated[
        bool, typer.Option("--fim-middle-only", help="Of fim samples, learn the middle alone.")
    ] = False,
    change_only: Annotated[
        bool, typer.Option("--change-only", help="Of triplets, commits and pull requests, learn the change alone.")
    ] = False,
) -> None:
    """Tokenise documents, fim samples, chats, repositories and changes, and pack them into rows of a context length.

    Rows hold whole samples with their lengths, so that no token sees another sample, and a loss weight a token.
    """
    from iqc.streams.runner import run_stage
    from iqc.tokens.pack import Packer
    from iqc.tokens.stages import packing, tokenise_stage
    from iqc.tokens.tokenizer import load

    packer = Packer(context, method=method.value.replace("-", "_"), long=long.value, window=window)
    reduce, measured = packing(packer)
    options = {
        "tokenizer": load(Path(tokenizer)).digest,
        "context": context,
        "method": method.value,
        "long": long.value,
        "window": window,
        "fim_middle_only": fim_middle_only,
        "change_only": change_only,
    }
    factory = partial(tokenise_stage, tokenizer, fim_middle_only, change_only)
    run_stage("pack", options, settings, factory, reduce=reduce, measure=measured)
