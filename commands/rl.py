"""`iqc rl`: train a model on tasks by the tests its programs pass."""

from enum import StrEnum
from typing import Annotated

import typer

from iqc.options import INT32, Inputs, Quiet, Seed, Summary, command_app, config_options

app = command_app()


class Reward(StrEnum):
    fraction = "fraction"
    passed = "passed"


@app.command()
@config_options
def rl(
    start: Annotated[str, typer.Option("--from", metavar="RUN/", help="The run or checkpoint to start from.")],
    inputs: Inputs = None,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="RUN/", help="The run: checkpoints and metrics.")
    ] = "rl",
    updates: Annotated[int, typer.Option("--updates", metavar="N", min=1, max=INT32, help="How many updates.")] = 20,
    tasks: Annotated[int, typer.Option("--tasks", metavar="N", min=1, max=INT32, help="Tasks an update.")] = 16,
    group: Annotated[int, typer.Option("--group", metavar="N", min=2, max=INT32, help="Answers of a task.")] = 8,
    minibatches: Annotated[
        int, typer.Option("--minibatches", metavar="N", min=1, max=INT32, help="Steps an update.")
    ] = 2,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, max=INT32, help="Tokens of an answer.")
    ] = 64,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", min=0.01, help="Of sampling.")] = 1.0,
    clip_low: Annotated[float, typer.Option("--clip-low", metavar="X", help="The ratio's lower bound is 1 - X.")] = 0.2,
    clip_high: Annotated[
        float, typer.Option("--clip-high", metavar="X", help="The ratio's upper bound is 1 + X.")
    ] = 0.28,
    reward: Annotated[
        Reward, typer.Option("--reward", help="The share of tests passed, or whether all are.")
    ] = Reward.fraction,
    rate: Annotated[float, typer.Option("--rate", metavar="X", min=0, help="Learning rate; 0: by width.")] = 0.0,
    save_every: Annotated[
        int, typer.Option("--save-every", metavar="N", min=0, max=INT32, help="Updates between checkpoints.")
    ] = 10,
    allow_same_process: Annotated[
        bool, typer.Option("--allow-same-process", help="Take tests that the judged code could forge.")
    ] = False,
    unsafe_exec: Annotated[
        bool, typer.Option("--unsafe-exec", help="Run programs without isolation. Only on a throw-away machine.")
    ] = False,
    seed: Seed = 0,
    summary: Summary = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on tasks by GRPO with clip-higher: answers are drawn, run against the tests, and compared.

    Programs run in an isolated process without network; where that cannot be had, the command refuses.
    """
    from iqc.rl.trainer import RlSettings, run_rl

    settings = RlSettings(
        start, updates, tasks, group, minibatches, max_new_tokens, temperature, clip_low, clip_high, reward.value, rate,
        save_every,
        allow_same_process, unsafe_exec, seed,
    )  # fmt: skip
    run_rl(settings, inputs or [], output, summary, quiet)
