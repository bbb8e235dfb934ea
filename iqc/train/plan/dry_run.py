"""The plan of a run before its first step, `iqc train --dry-run`: stage, updates, rates, memory sums, predicted speed.

The sums are those of iqc.model.describe and of `layout`, the speeds those of `predict`, with what each assumes. No
weights are read and no row.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from iqc.errors import UsageError
from iqc.model.config import ModelConfig, preset
from iqc.model.describe import flops, parameters, section
from iqc.train.data.curriculum import schedule, with_weights
from iqc.train.data.sources import open_sources
from iqc.train.engines.engine import check_engine, stage_of_zero
from iqc.train.plan.layout import GIB, ROOM, Layout, check_layout, fits, memory, remedy
from iqc.train.plan.predict import measured, predict, tokens_per_second
from iqc.train.progress import peak_flops
from iqc.train.settings import TrainSettings
from iqc.train.stages import TABLE, TrainingStage, learning_rate, mixture_weights, peak_rate
from iqc.train.stages import stage as find_stage
from iqc.train.start import check_numbers, row_length, starting_config

H200 = 139.0  # GiB: what is planned for where there is no GPU
COLUMNS = """\
  a row: GPUs that share one; rows: at a time, the least of an update; GiB of states, activations, and what is gathered
  or on its way, head and ring; share: model operations, of {peak:.0f} TFLOP/s; s: seconds of a micro-batch"""
ASSUMED = """\
  Assumed: products and attention as fast as measured on one H200 (iqc/train/plan/measured.toml); a document fills its
  row; keys, values, weights and gradients travel meanwhile, over {nvlink} GB/s into each of up to {node} GPUs (NVLink,
  measured) and over {network} beyond. Nothing of this was measured on several GPUs."""


@dataclass(slots=True, frozen=True)
class Room:
    """Where a run would lie: how many GPUs, none for a CPU; GiB of each, and whose they are."""

    gpus: int
    gib: float
    whose: str

    @classmethod
    def found(cls, gpus: int, gib: float) -> "Room":
        """What is asked for; 0 of either: what is here, or an H200."""
        if not 0 <= gib < math.inf:
            raise UsageError(f"--gpu-gib {gib}", remedy="the memory of a GPU in GiB")
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not gpus and not here and not gib:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
            return cls(0, total, f"the {total:.1f} GiB of this machine")
        if gib:
            return cls(gpus or here or 1, gib, f"the {gib:g} GiB of --gpu-gib")
        if here:
            total = torch.cuda.get_device_properties(0).total_memory / GIB
            return cls(gpus or here, total, f"the {total:.1f} GiB of {torch.cuda.get_device_name(0)}")
        return cls(gpus, H200, f"the {H200:g} GiB of an H200 (no GPU is here; --gpu-gib names another)")


def numbers_of(text: str) -> list[int]:
    """`8` or `8,16,32`."""
    try:
        found = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        found = [0]
    if not all(0 < number < 2**20 for number in found):
        raise UsageError(f"--gpus {text}", remedy="a number of GPUs, or several with commas: 8,16,32")
    return found


def run_plan(settings: TrainSettings, inputs: list[str], gpus: Sequence[int], gib: float) -> str:
    """What `iqc train --dry-run` prints, for so many GPUs of so many GiB; none, 0: what is here. Several numbers of
    GPUs give a table of layouts, of ZeRO-3 unless another is asked for. Without `inputs` nothing is known of the
    rows; standard input is not read. A preset stands for the checkpoint that a later stage starts from."""
    recompute = check_numbers(settings)
    stage = find_stage(settings.stage, settings.stages or TABLE)
    if settings.start is None and settings.model and stage.starts_from:
        config, start = preset(settings.model), f"{' or '.join(stage.starts_from)}, planned as {settings.model}"
    else:
        config, checkpoint = starting_config(settings, stage)
        start = str(checkpoint or f"fresh weights of {settings.model}")
    context = row_length(settings, stage, config)
    passes = config.loop_num * config.num_hidden_layers
    blocks = min(recompute.blocks, passes)
    room = Room.found(gpus[0] if gpus else 0, gib)
    precision = settings.precision or ("bf16" if room.gpus else "fp32")
    check_engine(settings, precision)
    layout = Layout(
        context_ranks=settings.context_ranks,
        zero=stage_of_zero(settings) if settings.engine == "deepspeed" else 3 if len(gpus) > 1 else 0,
        precision=precision,
        offload=settings.offload,
        blocks=blocks,
        mlps=min(recompute.mlps, passes - blocks),
        tile=recompute.tile,
        average=settings.ema > 0,
        reference=stage.loss == "dpo",
    )
    lines = [
        f"Stage       {stage.name}: {stage.text}",
        f"Start       {start}",
        f"Ends in     {stage.checkpoint}",
        f"Context     {context:,} tokens a row",
        *updates(settings, stage, config, context, inputs),
        *section("Parameters", parameters(config)),
    ]
    if len(gpus) > 1:
        each = replace(layout, micro_rows=settings.micro_rows or 1, accumulates=True)
        layouts = layouts_of(config, context, gpus, each, room.gib)
        shown = f"ZeRO-{layout.zero}, {precision}, offload {layout.offload}"
        lines += ["", f"Layouts for rows of {context:,} tokens: {shown}; fits in {room.whose}"]
        return "\n".join([*lines, *layout_table(config, context, layouts, room.gib)])
    ranks = max(room.gpus, 1)
    check_layout(context, settings.batch_rows, ranks, layout.context_ranks)
    share = -(-settings.batch_rows // (ranks // layout.context_ranks))
    rows = min(settings.micro_rows or share, share)
    layout = replace(layout, gpus=ranks, micro_rows=rows, accumulates=rows < share)
    return "\n".join([*lines, *one_layout(config, context, layout, room)])


def updates(
    settings: TrainSettings, stage: TrainingStage, config: ModelConfig, context: int, inputs: list[str]
) -> list[str]:
    """How many of which size, of which sources, and the learning rate over them."""
    steps, tokens = settings.steps, settings.batch_rows * context
    weights, lines = mixture_weights(stage, settings.stages or TABLE), []
    if inputs:
        with open_sources(inputs) as sources:
            rows = sources.rows
        count = sum(rows.values())
        steps = steps or math.ceil(settings.epochs * count / settings.batch_rows)
        lines.append(f"Rows        {count:,}, each seen {steps * settings.batch_rows / count:.2f} times on average")
        if sources.named and steps:
            asked = with_weights(settings.mixture, sources.names, weights)
            for start, parts in schedule(asked, rows, steps, settings.batch_rows):
                lines.append(f"Mixture     {shares(dict(zip(sources.names, parts)))}, from update {start:,}")
    elif weights:
        lines.append(f"Mixture     {shares(weights)} ({stage.mixture})")
    if not steps:
        how = (
            "none: the starting weights are written"
            if inputs or not settings.epochs
            else (f"of {settings.batch_rows} rows, {tokens:,} tokens; the rows or --steps tell how many")
        )
        return [*lines, f"Updates     {how}"]
    each = f"{steps:,} of {settings.batch_rows} rows, {tokens:,} tokens"
    lines += [f"Updates     {each}, {steps * tokens:,} in all", f"Rate        {stage.schedule}, {settings.optimizer}"]
    return lines + picture(stage, settings.rate or peak_rate(config.hidden_size, settings.optimizer), steps)


def shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight / sum(weights.values()):.1%}" for name, weight in weights.items())


def picture(stage: TrainingStage, peak: float, steps: int, width: int = 60, height: int = 6) -> list[str]:
    """The learning rate over the updates, from 0 to its top."""
    columns = min(width, steps)
    rates = [learning_rate(stage, peak, at * steps // columns, steps) for at in range(columns)]
    lines, top = [], max(rates)
    for level in range(height, 0, -1):
        label = f"{top * level / height:.1e}" if level in (1, height) else ""
        row = "".join("#" if rate > top * (level - 1) / height else " " for rate in rates)
        lines.append(f"  {label:>8} |{row}".rstrip())
    last = learning_rate(stage, peak, steps - 1, steps)
    return [*lines, f"  {'update':>8}  0{steps - 1:>{max(columns - 1, 2)}}  ends at {last:.1e}"]


def layouts_of(config: ModelConfig, context: int, gpus: Sequence[int], layout: Layout, gib: float) -> list[Layout]:
    """Those of a table: for each number of GPUs the powers of two of context ranks up to 64, or the number asked for;
    with the least recompute that fits, if none was asked for."""
    passes, found = config.loop_num * config.num_hidden_layers, []
    for count in gpus:
        for shared in [layout.context_ranks] if layout.context_ranks > 1 else [2**n for n in range(7)]:
            if count % shared == 0 and 2 * shared <= context:
                plain = replace(layout, gpus=count, context_ranks=shared)
                ways = [plain]
                if not layout.blocks and not layout.mlps:
                    ways += [replace(plain, mlps=passes), replace(plain, blocks=passes)]
                found.append(next((way for way in ways if fits(config, context, way, gib)), ways[-1]))
    return found


def layout_table(config: ModelConfig, context: int, layouts: Sequence[Layout], gib: float) -> list[str]:
    """A line a layout: memory of each GPU by kind, whether it fits, and the predicted speed."""
    peak = peak_flops(measured()["gpu"]) or math.nan
    work = sum(addend.value for addend in flops(config, context))
    lines = [
        f"{'GPUs':>6} {'a row':>5} {'rows':>5} {'again':>6} {'states':>7} {'activ.':>7} {'other':>6} {'GiB':>7} "
        f"{'fits':>4} {'tokens/s':>9} {'a GPU':>7} {'share':>6} {'s':>8}"
    ]
    for layout in layouts:
        found = memory(config, context, layout)
        kinds = [sum(a.value for a in part) / GIB for part in (found.states, found.activations, found.other)]
        again = "block" if layout.blocks else "mlp" if layout.mlps else "none"
        shown = f"{layout.gpus:>6} {layout.context_ranks:>5} {layout.data_ranks * layout.micro_rows:>5} {again:>6} "
        shown += "{:>7.1f} {:>7.1f} {:>6.1f} {:>7.1f} ".format(*kinds, sum(kinds))
        shown += f"{'yes' if fits(config, context, layout, gib) else 'no':>4}"
        if (seconds := predict(config, context, layout)) and (speed := tokens_per_second(config, context, layout)):
            each = speed / layout.gpus
            shown += f" {speed:>9,.0f} {each:>7,.0f} {each * work / peak:>6.1%} {seconds.total:>8.2f}"
        lines.append(shown)
    return [*lines, COLUMNS.format(peak=peak / 1e12), ASSUMED.format(**measured()["links"])]


def one_layout(config: ModelConfig, context: int, layout: Layout, room: Room) -> list[str]:
    """The sums of a layout, whether they fit, and the speed."""
    gpu = room.gpus > 0
    found = memory(config, context, layout, gpu)
    where = f"each of {layout.gpus} GPUs" if layout.gpus > 1 else "the GPU" if room.gpus else "the CPU"
    lines = section(f"Bytes on {where}: {in_words(config, layout)}", found.device)
    lines.append(f"  {'in GiB':<22} {found.total / GIB:>22.1f}")
    if found.host:
        lines += section("Bytes of the host for each GPU", found.host)
    left = room.gib - ROOM - found.total / GIB
    beside = f"beside {ROOM:g} for CUDA, NCCL and the allocator" if room.gpus else f"beside {ROOM:g} for all else"
    if left >= 0:
        lines += ["", f"It fits in {room.whose}: {left:.1f} GiB are left, {beside}."]
    else:
        lines += ["", f"It does not fit in {room.whose}: {-left:.1f} GiB too much, {beside};"]
        lines.append("  " + remedy(config, context, layout, room.gib, gpu))
    seconds, speed = predict(config, context, layout), tokens_per_second(config, context, layout)
    if not room.gpus or not seconds or not speed:
        why = "nothing of this hidden size was measured" if layout.offload == "none" else "offloading was not measured"
        why = why if room.gpus else "only a GPU's was measured"
        return [*lines, "", f"No speed is predicted: {why}."]
    late = {"keys and values": seconds.ring, "weights and gradients": seconds.zero}
    waits = "".join(f", waiting for {name} {spent:.2f}" for name, spent in late.items() if spent >= 0.005)
    return [
        *lines,
        "",
        f"Predicted on H200s: {speed:,.0f} tokens/s, {speed / layout.gpus:,.0f} a GPU. A micro-batch takes "
        f"{seconds.total:.2f} s, products",
        f"  {seconds.products:.2f}, attention {seconds.attention:.2f}, recompute {seconds.recompute:.2f}{waits}.",
        ASSUMED.format(**measured()["links"]),
    ]


def in_words(config: ModelConfig, layout: Layout) -> str:
    passes = config.loop_num * config.num_hidden_layers
    again = [f"{n} {name}" for n, name in ((layout.blocks, "blocks"), (layout.mlps, "MLPs")) if n]
    parts = [layout.precision, f"{layout.micro_rows} row{'s' * (layout.micro_rows > 1)} at a time"]
    parts.append(f"recompute of {' and '.join(again)} of {passes}" if again else "no recompute")
    if layout.tile:
        parts.append(f"MLPs by {layout.tile:,} tokens")
    if layout.gpus > 1:
        parts = [f"ZeRO-{layout.zero}", f"{layout.context_ranks} share a row", *parts]
    return ", ".join(parts + ([f"offload {layout.offload}"] if layout.offload != "none" else []))
