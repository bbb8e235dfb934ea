"""`iqc train`: train one stage of a model."""

from enum import StrEnum
from typing import Annotated

import typer

from iqc.errors import UsageError
from iqc.options import INT32, Quiet, Seed, Summary, command_app, config_options, pairs

app = command_app()


Rows = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]FILE|DIR...", help="Packed sequences; with names they are sources of a mixture."),
]


class Optimizer(StrEnum):
    adamw = "adamw"
    muon = "muon"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    bf16_pure = "bf16-pure"


class EngineName(StrEnum):
    local = "local"
    deepspeed = "deepspeed"


class Offload(StrEnum):
    none = "none"
    optimizer = "optimizer"
    all = "all"


class OnMismatch(StrEnum):
    repeat = "repeat"
    stop = "stop"


class OnSpike(StrEnum):
    note = "note"
    skip = "skip"
    rollback = "rollback"
    stop = "stop"


class OnNan(StrEnum):
    stop = "stop"
    skip = "skip"
    rollback = "rollback"


class OnStall(StrEnum):
    note = "note"
    stop = "stop"


@app.command()
@config_options
def train(
    inputs: Rows = None,
    stage: Annotated[
        str, typer.Option("--stage", metavar="NAME", help="A row of the table that --list-stages prints.")
    ] = "pretrain",
    stages: Annotated[
        str, typer.Option("--stages", metavar="FILE", help="A table of stages of your own, in TOML.")
    ] = "",
    list_stages: Annotated[bool, typer.Option("--list-stages", help="Print the table of stages, and end.")] = False,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="RUN/", help="The run: checkpoints and metrics.")
    ] = "run",
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="For fresh weights, such as nano-loop.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="RUN/", help="The run or checkpoint to start from.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="By default that of --from.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="NAME=W", help="Share of a source; by default the stage's, else by its rows."),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option("--replay", metavar="NAME=X", help="A source of an earlier stage: its share of all rows, 0 to 1."),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option("--phase", metavar="X:NAME[=W],...", help="A share X of the run with these sources; in turn."),
    ] = None,
    valid: Annotated[
        list[str] | None,
        typer.Option("--valid", metavar="[NAME=]FILE", help="Held-out sequences, scored at the end, by source."),
    ] = None,
    valid_every: Annotated[
        int,
        typer.Option("--valid-every", metavar="N", min=0, max=INT32, help="Score them every N updates; 0: at the end."),
    ] = 0,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Give sources whose held-out loss is above its reference more weight.")
    ] = False,
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", metavar="NAME=X", help="That loss, in nats a token; else the one at the start."),
    ] = None,
    least: Annotated[
        float, typer.Option("--least", metavar="X", min=0, max=1, help="Share that --adapt leaves a source.")
    ] = 0.01,
    most: Annotated[
        float, typer.Option("--most", metavar="X", min=0, max=1, help="Share that --adapt gives a source.")
    ] = 1.0,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=0, max=INT32, help="Updates; 0: as --epochs says.")
    ] = 0,
    epochs: Annotated[
        float, typer.Option("--epochs", metavar="X", help="Passes over the rows; 0: write the starting weights.")
    ] = 1.0,
    batch_rows: Annotated[
        int, typer.Option("--batch-rows", metavar="N", min=1, max=INT32, help="Rows an update.")
    ] = 16,
    micro_rows: Annotated[
        int, typer.Option("--micro-rows", metavar="N", min=0, max=INT32, help="Rows at a time; 0: all.")
    ] = 0,
    context: Annotated[
        int,
        typer.Option("--context", metavar="N", min=0, max=INT32, help="Tokens a row; 0: the stage's or the model's."),
    ] = 0,
    loop: Annotated[bool, typer.Option("--loop", help="Fold the dense model of --from into a looped one.")] = False,
    yarn: Annotated[
        float,
        typer.Option(
            "--yarn", metavar="X", min=0, help="Stretch the context of --from by YaRN to X times its original."
        ),
    ] = 0.0,
    optimizer: Annotated[
        Optimizer, typer.Option("--optimizer", help="Muon: for the matrices of the blocks.")
    ] = Optimizer.adamw,
    rate: Annotated[float, typer.Option("--rate", metavar="X", min=0, help="Peak learning rate; 0: by width.")] = 0.0,
    precision: Annotated[
        Precision | None,
        typer.Option(
            "--precision", help="bf16: products alone; bf16-pure: weights too. By default bf16 on a GPU, else fp32."
        ),
    ] = None,
    recompute: Annotated[
        str,
        typer.Option(
            "--recompute",
            metavar="WHAT",
            help="To save memory: mlp, block, or with counts block:2,mlp:10; with tile:8192 MLPs by so many tokens.",
        ),
    ] = "none",
    ema: Annotated[
        float,
        typer.Option("--ema", metavar="X", min=0, help="Keep an average of the weights, too, of decay X; 0: none."),
    ] = 0.0,
    engine: Annotated[
        EngineName, typer.Option("--engine", help="What divides the work over the ranks that torchrun starts.")
    ] = EngineName.local,
    zero: Annotated[
        int | None,
        typer.Option(
            "--zero", metavar="N", min=0, max=3, help="DeepSpeed divides optimizer (1), gradients (2), weights (3)."
        ),
    ] = None,
    offload: Annotated[
        Offload, typer.Option("--offload", help="DeepSpeed keeps the optimizer's state, or weights too, on the CPU.")
    ] = Offload.none,
    context_ranks: Annotated[
        int, typer.Option("--context-ranks", metavar="N", min=1, max=INT32, help="Ranks that share each row.")
    ] = 1,
    save_every: Annotated[
        int, typer.Option("--save-every", metavar="N", min=0, max=INT32, help="Updates between checkpoints.")
    ] = 100,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits again on a GPU, too; slower.")
    ] = False,
    audit_every: Annotated[
        int,
        typer.Option(
            "--audit-every",
            metavar="N",
            min=0,
            max=INT32,
            help="Compare bits against silent errors; compute every Nth update twice. 0: not. On a GPU deterministic.",
        ),
    ] = 0,
    on_mismatch: Annotated[
        OnMismatch, typer.Option("--on-mismatch", help="Of an audit; an update that differs again stops.")
    ] = OnMismatch.repeat,
    on_spike: Annotated[
        OnSpike,
        typer.Option("--on-spike", help="Of loss or gradient; rollback: skip all since the checkpoint."),
    ] = OnSpike.note,
    on_nan: Annotated[OnNan, typer.Option("--on-nan", help="Of a loss or gradient that is no number.")] = OnNan.stop,
    on_stall: Annotated[OnStall, typer.Option("--on-stall", help="When a part of an update hangs.")] = OnStall.note,
    tensorboard: Annotated[
        str | None, typer.Option("--tensorboard", metavar="DIR", help="Write metrics and timings for TensorBoard.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its memory and its predicted speed, and end.")
    ] = False,
    gpus: Annotated[
        str,
        typer.Option(
            "--gpus", metavar="N,...", help="GPUs to plan for; several: a table of layouts. By default those here."
        ),
    ] = "",
    gpu_gib: Annotated[
        float, typer.Option("--gpu-gib", metavar="X", min=0, help="GiB of each GPU planned for; 0: of those here.")
    ] = 0.0,
    seed: Seed = 0,
    summary: Summary = None,
    quiet: Quiet = False,
) -> None:
    """Train one stage on packed sequences. The same command again goes on where the run stopped.

    A run that was killed continues, on a CPU bit for bit.
    """
    from iqc.train.settings import TrainSettings

    if list_stages:
        from iqc.train.stages import TABLE, table_text

        print(table_text(stages or TABLE))
        return
    from iqc.train.data.curriculum import MixtureSettings

    settings = TrainSettings(
        stage=stage, model=model, start=start, steps=steps, epochs=epochs, batch_rows=batch_rows, micro_rows=micro_rows,
        context=context, optimizer=optimizer.value, rate=rate, save_every=save_every, seed=seed,
        precision=precision.value if precision else "", recompute=recompute, loop=loop, yarn=yarn, stages=stages,
        deterministic=deterministic, tensorboard=tensorboard, engine=engine.value, zero=zero, offload=offload.value,
        context_ranks=context_ranks, audit_every=audit_every, on_mismatch=on_mismatch.value, on_spike=on_spike.value,
        on_nan=on_nan.value, on_stall=on_stall.value, ema=ema,
        mixture=MixtureSettings(
            weights=pairs("weight", weight or []), replay=pairs("replay", replay or []), phases=phase or [],
            valid_every=valid_every, adapt=adapt, reference=pairs("reference", reference or []), least=least, most=most,
        ),
    )  # fmt: skip
    if dry_run:
        from iqc.train.plan.dry_run import numbers_of, run_plan

        print(run_plan(settings, inputs or [], numbers_of(gpus), gpu_gib))
        return
    if gpus or gpu_gib:
        raise UsageError("--gpus and --gpu-gib are for --dry-run", remedy="a run has the GPUs that torchrun gives it")
    from iqc.train.trainer import run_train

    run_train(settings, inputs or [], output, tokenizer, valid or [], summary, quiet)
