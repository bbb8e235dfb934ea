"""`iqc model`: presets, what a model costs, what it thinks of tokens."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.options import INT32, Inputs, command_app, config_options, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app(help="Look at models: presets, what one costs, what one thinks of tokens.")


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    bf16_pure = "bf16-pure"
    mixed = "mixed"


@app.command("list")
def list_presets() -> None:
    """List the presets with their sizes."""
    from iqc.model.describe import presets

    print(presets())


@app.command()
@config_options
def show(
    model: Annotated[str, typer.Argument(metavar="PRESET|RUN/|DIR", help="A preset, a run, or a model directory.")],
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, max=INT32, help="GPUs to train on.")] = 8,
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=0, max=INT32, help="Tokens a row; 0: the model's context.")
    ] = 0,
    precision: Annotated[
        Precision, typer.Option("--precision", help="As iqc train has it; mixed: bf16 with fp32 masters and moments.")
    ] = Precision.mixed,
) -> None:
    """Show what a model costs: parameters, operations, cache, memory to train; every sum with its addends."""
    from iqc.model.config import PRESETS, preset
    from iqc.model.describe import show as text

    if model in PRESETS or not os.path.exists(model):
        config = preset(model)
    else:
        from iqc.model.checkpoint import load_config
        from iqc.train.run import find_checkpoint

        config = load_config(find_checkpoint(model))
    print(text(config, gpus, context or config.max_position_embeddings, precision.value))


@app.command()
@stage_options("output", "plain", "jobs", "on_error", "explain", "summary", "quiet", "ray", "shard_mib", "input_digest")
def logprobs(
    settings: "Settings",
    checkpoint: Annotated[str, typer.Argument(metavar="RUN/|DIR", help="A run, a checkpoint or a model directory.")],
    inputs: Inputs = None,
) -> None:
    """Add to records with ids the log-probability of each next token, and the likeliest token after each.

    In float32 on the processor; every process of --jobs holds the model.
    """
    from iqc.evals.run import score_records

    score_records(settings, checkpoint, inputs or [])
