"""`iqc eval`: benchmarks: prompts, scores, whole runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from iqc.commands.generate import BatchSize, Model, NewTokens, Samples, Temperature, TopK, TopP
from iqc.errors import UsageError
from iqc.options import Inputs, OutputFile, Seed, Summary, command_app, config_options, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app(help="Benchmarks: prompts, scores, whole runs.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A benchmark; `iqc eval list` has them.")]
Data = Annotated[str, typer.Option("--data", metavar="FILE", help="The items, in the benchmark's own format.")]
Ks = Annotated[str, typer.Option("-k", "--pass-at", metavar="K,...", help="Which pass@k to report.")]
Unsafe = Annotated[
    bool, typer.Option("--unsafe-exec", help="Run programs without isolation. Only on a throw-away machine.")
]


@app.command("list")
def list_benchmarks() -> None:
    """List the benchmarks."""
    from iqc.evals import BENCHMARKS

    for name, (_, text) in BENCHMARKS.items():
        print(f"{name:<12} {text}")


@app.command()
@stage_options("output", "plain", "summary", "quiet", output=OutputFile)
def prompts(settings: "Settings", name: Name, data: Data) -> None:
    """Write the prompts of a benchmark, for `iqc generate` or any other model."""
    from iqc.evals.run import write_prompts

    write_prompts(name, data, settings)


@app.command()
@config_options
def score(
    name: Name,
    data: Data,
    inputs: Inputs = None,
    ks: Ks = "1",
    unsafe_exec: Unsafe = False,
    summary: Summary = None,
) -> None:
    """Score completions: run programs in the sandbox against their tests, compare texts."""
    from iqc.evals.run import load_tasks, write_figures
    from iqc.evals.run import score as scored
    from iqc.streams.runner import StreamInput, read_records

    completions = list(read_records(StreamInput(inputs or [])))
    tasks, _ = load_tasks(name, data)
    write_figures(scored(name, tasks, completions, numbers(ks), unsafe_exec)[1], summary)


@app.command()
@stage_options("output", "plain", "summary", "quiet", output=OutputFile)
def run(
    settings: "Settings",
    name: Name,
    data: Data,
    model: Model,
    ks: Ks = "1",
    samples: Samples = 1,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    batch: BatchSize = 64,
    unsafe_exec: Unsafe = False,
    seed: Seed = 0,
) -> None:
    """Prompts, completions and scores at once; -o keeps the scored completions."""
    from iqc.evals.run import run_benchmark, write_figures
    from iqc.model.complete import Sampling

    if max(numbers(ks)) > samples:
        raise UsageError(
            f"-k {ks} of {samples} samples", remedy=f"pass@k wants k samples: --samples {max(numbers(ks))}"
        )
    sampling = Sampling(samples, max_new_tokens, temperature, top_p, top_k, seed, batch)
    summary, settings.summary = settings.summary, None
    write_figures(run_benchmark(name, data, model, sampling, settings, numbers(ks), unsafe_exec), summary)


def numbers(text: str) -> list[int]:
    try:
        ks = [int(part) for part in text.split(",")]
        if min(ks) < 1:
            raise ValueError
        return ks
    except ValueError:
        raise UsageError(f"-k {text}", remedy="-k takes numbers from 1 on (there is no pass@0), such as 1,10") from None
