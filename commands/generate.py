"""`iqc generate`: complete prompts with a model."""

from typing import TYPE_CHECKING, Annotated

import typer

from iqc.options import INT32, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()

Model = Annotated[str, typer.Option("--model", metavar="RUN/|DIR", help="A run, a checkpoint or a model directory.")]
Samples = Annotated[
    int, typer.Option("-n", "--samples", metavar="N", min=1, max=INT32, help="Completions of each prompt.")
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, max=INT32, help="Tokens of a completion, at most.")
]
Temperature = Annotated[float, typer.Option("--temperature", metavar="T", min=0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", metavar="P", min=0.01, max=1, help="Share of the mass to draw from.")]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", min=0, max=INT32, help="Tokens to draw from; 0: all.")]
BatchSize = Annotated[
    int, typer.Option("--batch", metavar="N", min=1, max=INT32, help="Prompts in the model at a time.")
]


@app.command()
@stage_options("inputs", "output", "plain", "on_error", "summary", "quiet")
def generate(
    settings: "Settings",
    model: Model,
    samples: Samples = 1,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    batch: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Complete prompts: chats (messages), holes (prefix and suffix) or texts (prompt).

    A completion depends on the seed and its prompt's id, not on what else is in the batch.
    """
    from iqc.evals.run import generate_records
    from iqc.model.complete import Sampling

    sampling = Sampling(samples, max_new_tokens, temperature, top_p, top_k, seed, batch)
    generate_records(settings, model, sampling)
