"""How fast an update should be on some GPUs: measured speeds of one, and what is assumed of many.

Assumed: products, attention and their recomputation take the times that were measured for one GPU at the nearest shape
(measured.toml); rows that are shared are as fast, part for part, as whole ones; a document fills its row, which is the
most attention that there can be; keys and values travel while attention computes, and ZeRO's weights and gradients
while anything computes: only what takes longer than that is waited for. The slowest link is everybody's: a node's own
up to its number of GPUs, the network beyond. None of the assumptions about several GPUs has been measured.
"""

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from iqc.model.config import ModelConfig, parameter_count
from iqc.model.describe import flops
from iqc.train.plan.layout import Layout

NEAR = 3.0  # times the hidden size of a measured shape, or a third of it: beyond, nothing is predicted


@dataclass(slots=True, frozen=True)
class Seconds:
    """Of one micro-batch on every GPU: what computes, and what is waited for beyond it."""

    products: float
    attention: float
    recompute: float
    ring: float  # keys and values that come too late
    zero: float  # weights and gradients

    @property
    def total(self) -> float:
        return self.products + self.attention + self.recompute + self.ring + self.zero


@cache
def measured() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "measured.toml").read_text("utf-8"))


def product_rate(hidden_size: int) -> float | None:
    """Operations a second of the nearest shape that was measured, or None when none is near."""
    table = {int(size): 1e12 * rate for size, rate in measured()["products"].items()}
    nearest = min(table, key=lambda size: abs(math.log(size / hidden_size)))
    return table[nearest] if 1 / NEAR <= nearest / hidden_size <= NEAR else None


def attention_rate(which: str, tokens: int) -> float:
    """Operations a second of rows of so many tokens, between those that were measured by the logarithm."""
    lengths, rates = measured()["attention"]["tokens"], measured()["attention"][which]
    at = min(max(tokens, lengths[0]), lengths[-1])
    upper = next(i for i, length in enumerate(lengths) if at <= length)
    if at == lengths[upper]:
        return 1e12 * rates[upper]
    share = math.log(at / lengths[upper - 1]) / math.log(lengths[upper] / lengths[upper - 1])
    return 1e12 * (rates[upper - 1] + share * (rates[upper] - rates[upper - 1]))


def link(gpus: int) -> float:
    """Bytes a second into each of so many GPUs that talk to each other."""
    links = measured()["links"]
    return 1e9 * links["nvlink" if gpus <= links["node"] else "network"]


def predict(config: ModelConfig, context: int, layout: Layout) -> Seconds | None:
    """A micro-batch of rows of `context` tokens; None where nothing of that hidden size was measured, and for what is
    offloaded, which was not measured either."""
    rate = product_rate(config.hidden_size)
    if rate is None or layout.offload != "none":
        return None
    tokens, passes = layout.tokens(context), config.loop_num * config.num_hidden_layers
    blocks, _, head = (tokens * addend.value for addend in flops(config, context))
    recomputed = min(layout.blocks, passes)
    mlps = min(layout.mlps, passes - recomputed)
    again = blocks / 3 * recomputed / passes  # two thirds are backward's
    again += mlps * tokens * 4 * config.hidden_size * met_width(config)  # two of the three products
    if 0 < layout.tile < tokens:  # everywhere, with the attention's last product
        again += (passes - mlps) * tokens * (4 * met_width(config) + 2 * config.hidden_size) * config.hidden_size

    # Of every pass, forward, backward and forward again: the seconds of attention, and of what the ring brings.
    once = tokens * 2 * context * config.hidden_size * config.num_hidden_layers  # operations of a pass forward
    hops = (layout.context_ranks - 1) * tokens * 2 * config.num_key_value_heads * config.head_dim
    hops *= config.num_hidden_layers
    width, speed = (4 if layout.precision == "fp32" else 2), link(layout.context_ranks)
    attention = repeated = late = 0.0
    for number in range(config.loop_num):
        which = "later" if number else "first"
        forward = once / attention_rate(f"{which}_forward", context)
        backward = 2.5 * once / attention_rate(f"{which}_backward", context)
        share = min(max(recomputed / config.num_hidden_layers - number, 0.0), 1.0)  # of this pass
        attention, repeated = attention + forward + backward, repeated + share * forward
        late += (1 + share) * max(0.0, hops * width / speed - forward)
        late += max(0.0, hops * (width + 4) / speed - backward)  # gradients of keys and values in float32

    seconds = (blocks + head) / rate, attention, again / rate + repeated, late
    return Seconds(*seconds, max(0.0, traffic(config, layout) / link(layout.gpus) - sum(seconds)))


def met_width(config: ModelConfig) -> int:
    """How wide the feed-forward is that a token meets."""
    if not config.num_experts:
        return config.intermediate_size
    return (config.num_experts_per_tok + config.num_shared_experts) * config.moe_intermediate_size


def traffic(config: ModelConfig, layout: Layout) -> float:
    """Bytes that ZeRO brings to each GPU for a micro-batch: in stage 3 the weights for every pass forward and
    backward; the gradients once, and below stage 3 the new weights."""
    if layout.gpus == 1:
        return 0.0
    width = 4 if layout.precision == "fp32" else 2
    times = 2 * config.loop_num + 1 if layout.zero == 3 else 2
    return times * width * parameter_count(config) * (layout.gpus - 1) / layout.gpus


def tokens_per_second(config: ModelConfig, context: int, layout: Layout) -> float | None:
    """Of all GPUs together."""
    seconds = predict(config, context, layout)
    return layout.data_ranks * layout.micro_rows * context / seconds.total if seconds else None
