"""How a run lies on its GPUs: what cannot be, what it takes of each one's memory, what would make it fit.

The sums are those of iqc.model.describe. Of the steps in tests/bench/results/train_step.json the measured peaks were
0.76 to 1.03 of them: compiled code keeps less where it can.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from iqc.errors import IqcError
from iqc.kernels.linear_cross_entropy import CHUNK_LOGITS, GPU_CHUNK_LOGITS
from iqc.model.config import ModelConfig, parameter_count
from iqc.model.describe import Addend, activations, head, parameters, ring, states
from iqc.train.engines.deepspeed import BUCKET, LIVE

GIB = 1 << 30
ROOM = 4.0  # GiB of a GPU left for CUDA, NCCL and what the allocator wastes: assumed


@dataclass(slots=True, frozen=True)
class Layout:
    """How a run lies on its GPUs. `context_ranks` GPUs share each row; ZeRO divides over all.

    `micro_rows` rows are in such a group at a time; the first `blocks` and the next `mlps` of the blocks, each pass
    counted, are recomputed (iqc.model.decoder.Recompute)."""

    gpus: int = 1
    context_ranks: int = 1
    zero: int = 0
    precision: str = "bf16"
    offload: str = "none"
    micro_rows: int = 1
    blocks: int = 0
    mlps: int = 0
    tile: int = 0  # tokens of an MLP at a time; 0: all
    average: bool = False  # of the weights, iqc.train.ema
    reference: bool = False  # a second model, iqc.train.dpo
    accumulates: bool = False  # whether an update takes several micro-batches

    @property
    def data_ranks(self) -> int:
        return self.gpus // self.context_ranks

    def tokens(self, context: int) -> int:
        """Tokens on each GPU at a time: of a shared row two chunks, one of each half (iqc.kernels.zigzag)."""
        if self.context_ranks == 1:
            return self.micro_rows * context
        return self.micro_rows * 2 * math.ceil(context / (2 * self.context_ranks))


def check_layout(context: int, batch_rows: int, ranks: int, context_ranks: int) -> None:
    """IqcError where so many ranks cannot share the work, with what would."""
    if ranks % context_ranks:
        divisors = [str(n) for n in range(1, ranks + 1) if ranks % n == 0]
        raise IqcError(
            f"{context_ranks} context ranks for {ranks} GPUs",
            remedy=f"start a multiple of {context_ranks}, or take --context-ranks {' or '.join(divisors)}",
        )
    if context < 2 * context_ranks:
        raise IqcError(
            f"rows of {context} tokens over {context_ranks} context ranks",
            remedy=f"each takes two parts of a row: --context {2 * context_ranks} or more",
        )
    if batch_rows < ranks // context_ranks:
        raise IqcError(
            f"updates of {batch_rows} rows for {ranks // context_ranks} ranks that take rows of their own",
            remedy=f"--batch-rows {ranks // context_ranks} or more, more --context-ranks, or fewer GPUs",
        )


@dataclass(slots=True, frozen=True)
class Memory:
    """Bytes of each rank on its GPU (or in its process), and on the host where something is offloaded."""

    states: list[Addend]
    activations: list[Addend]
    other: list[Addend]  # gathered or on its way, the head, shared rows
    host: list[Addend]

    @property
    def device(self) -> list[Addend]:
        return self.states + self.activations + self.other

    @property
    def total(self) -> int:
        return sum(addend.value for addend in self.device)


def memory(config: ModelConfig, context: int, layout: Layout, gpu: bool = True) -> Memory:
    """`gpu`: with compiled blocks, and the head in the large parts that a GPU wants."""
    tokens, zero, precision = layout.tokens(context), layout.zero, layout.precision
    found = states(config, "zero" if zero and precision == "bf16" else precision, layout.gpus, zero)
    count = parameter_count(config)
    if layout.average:
        found.append(Addend("moving average", f"4 x {count} / {layout.gpus}", -(-4 * count // layout.gpus)))
    if layout.reference:
        width = 2 if precision == "bf16-pure" or (zero and precision == "bf16") else 4  # that of the model's weights
        found.append(Addend("reference model", f"{width} x {count}", width * count))
    offloaded = {
        "none": [],
        "optimizer": ["optimiser", "moving average"],
        "all": ["optimiser", "moving average", "weights"],
    }[layout.offload]
    if offloaded and zero >= 2:  # the optimiser's part of them lies where the optimiser does
        offloaded.append("gradients")
    each = 4 if precision == "fp32" else 2
    other: list[Addend] = []
    if zero and layout.gpus > 1:  # under way: gradients in two messages, weights of ZeRO-3
        bucket, live = min(BUCKET, count), min(LIVE, count)
        other.append(Addend("buckets", f"2 x {each} x {bucket}", 2 * each * bucket))
        if zero == 3:
            other.append(Addend("gathered weights", f"{each} x {live}", each * live))
    if zero >= 2 and layout.gpus > 1 and config.loop_num > 1:
        # A shared weight's gradient is complete, and divided, when pass 1's part is there: autograd holds the others.
        blocks = sum(a.value for a in parameters(config) if a.name not in ("embedding", "head"))
        other.append(Addend("gradients of pass 2", f"{each} x {blocks}", each * blocks))
    other += head(config, precision, tokens, GPU_CHUNK_LOGITS if gpu else CHUNK_LOGITS)
    if layout.context_ranks > 1:
        other += ring(config, precision, tokens)
    kept = activations(config, precision, tokens, layout.blocks, layout.mlps, layout.tile, gpu)
    if zero == 0 and not layout.accumulates:
        # Gradients come while activations go, in a loop all of them while pass 1's activations are still there.
        gradients = next(addend.value for addend in found if addend.name == "gradients")
        whole = sum(addend.value for addend in kept)
        spared = whole + gradients - max(whole, gradients + (whole // 2 if config.loop_num > 1 else 0))
        other.append(Addend("never at once", f"-{spared}", -spared))
    return Memory(
        [addend for addend in found if addend.name not in offloaded],
        kept,
        other,
        [addend for addend in found if addend.name in offloaded],
    )


def fits(config: ModelConfig, context: int, layout: Layout, gib: float, gpu: bool = True) -> bool:
    return memory(config, context, layout, gpu).total <= (gib - ROOM) * GIB


def remedy(config: ModelConfig, context: int, layout: Layout, gib: float, gpu: bool = True) -> str:
    """The options that make a layout fit, the cheapest first, each on top of those before it."""
    words: dict[str, str] = {}
    for name, word, changed in _changes(layout, config, gpu):
        words[name], layout = word, changed
        if fits(config, context, changed, gib, gpu):
            return "it would fit with " + ", ".join(filter(None, words.values()))
    tried = f" with {', '.join(filter(None, words.values()))}" if words else ""
    return f"it would not fit{tried} either: take a shorter --context, or " + ("more memory" if gpu else "--gpus")


def _changes(layout: Layout, config: ModelConfig, gpu: bool) -> Iterator[tuple[str, str, Layout]]:
    """(what is changed, the option, the layout so far)."""
    if layout.micro_rows > 1:
        yield "micro", "--micro-rows 1", (layout := replace(layout, micro_rows=1, accumulates=True))
    passes = config.loop_num * config.num_hidden_layers
    if layout.blocks + layout.mlps < passes:
        yield "recompute", "--recompute mlp", (layout := replace(layout, mlps=passes))
    if layout.blocks < passes:
        yield "recompute", "--recompute block", (layout := replace(layout, blocks=passes))
    if not gpu:
        return
    for zero in range(layout.zero + 1, 4):
        if layout.gpus > 1:
            yield "zero", f"--engine deepspeed --zero {zero}", (layout := replace(layout, zero=zero))
    while layout.context_ranks < min(layout.gpus, 64) and layout.gpus % (2 * layout.context_ranks) == 0:
        layout = replace(layout, context_ranks=2 * layout.context_ranks)
        yield "context", f"--context-ranks {layout.context_ranks}", layout
    for offload in ("optimizer", "all") if layout.zero == 3 and layout.offload == "none" else ():
        yield "offload", f"--offload {offload}", replace(layout, offload=offload)
    yield "offload", "", layout  # slow: other GPUs are better
    while layout.gpus < 1024:
        yield "gpus", f"{2 * layout.gpus} GPUs", (layout := replace(layout, gpus=2 * layout.gpus))
        if layout.zero < 3:
            yield "zero", "--engine deepspeed --zero 3", (layout := replace(layout, zero=3))
        if layout.context_ranks < 8:
            layout = replace(layout, context_ranks=2 * layout.context_ranks)
            yield "context", f"--context-ranks {layout.context_ranks}", layout
