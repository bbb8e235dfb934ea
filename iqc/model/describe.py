"""What a model costs: parameters, operations and cache a token, memory to train; every sum with its addends.

Memory of activations is an estimate from the tensors that autograd keeps; kernels' workspaces, communication buffers
and what an allocator wastes come on top.
"""

import math
from dataclasses import dataclass

from iqc.model.config import PRESETS, ModelConfig, parameter_count

# Bytes a parameter of weights, gradients and AdamW's state. The first three are those of iqc train: float32; float32
# with a bfloat16 copy for the products; bfloat16 alone. Mixed is bfloat16 with float32 master weights and moments
# (ZeRO, Rajbhandari et al. 2020, section 3.1); zero is the same with sums of gradients in float32, as iqc train has it
# with DeepSpeed.
STATES = {
    "fp32": (4, 4, 4 + 4),
    "bf16": (4 + 2, 4, 4 + 4),
    "bf16-pure": (2, 2, 2 + 2),
    "mixed": (2, 2, 4 + 4 + 4),
    "zero": (2, 4, 4 + 4 + 4),
}
SHARDED_FROM = {"weights": 3, "gradients": 2, "optimiser": 1}  # the ZeRO stage from which each is divided over GPUs


@dataclass(slots=True, frozen=True)
class Addend:
    """`formula` is an expression in numbers, x for times and ^ for powers; division is rounded up."""

    name: str
    formula: str
    value: int


def parameters(config: ModelConfig) -> list[Addend]:
    """Parameters by kind."""
    c, layers, hidden = config, config.num_hidden_layers, config.hidden_size
    keys = c.num_key_value_heads * c.head_dim
    dense = c.first_k_dense_replace if c.num_experts else layers
    routed = layers - dense
    expert, mlp = 3 * hidden * c.moe_intermediate_size, 3 * hidden * c.intermediate_size
    attention = 2 * hidden**2 + 2 * hidden * keys
    found = [
        Addend("embedding", f"{c.vocab_size} x {hidden}", c.vocab_size * hidden),
        Addend("attention", f"{layers} x (2 x {hidden}^2 + 2 x {hidden} x {keys})", layers * attention),
        Addend("feed-forward", f"{dense} x 3 x {hidden} x {c.intermediate_size}", dense * mlp),
        Addend("routers", f"{routed} x {c.num_experts} x {hidden}", routed * c.num_experts * hidden),
    ]
    for name, number in (("experts", c.num_experts), ("shared experts", c.num_shared_experts)):
        formula = f"{routed} x {number} x 3 x {hidden} x {c.moe_intermediate_size}"
        found.append(Addend(name, formula, routed * number * expert))
    gates = layers * c.num_attention_heads if c.loop_num > 1 else 0
    found += [
        Addend("gates", f"{gates} x ({c.head_dim} + 1)", gates * (c.head_dim + 1)),
        Addend("norms", f"(2 x {layers} + 1) x {hidden}", (2 * layers + 1) * hidden),
        Addend("head", f"{c.vocab_size} x {hidden}", c.vocab_size * hidden),
    ]
    return [addend for addend in found if addend.value]


def flops(config: ModelConfig, context: int) -> list[Addend]:
    """Operations of training a token in rows of `context` tokens, forward and backward: 6 a parameter and pass (Kaplan
    et al. 2020, section 2.1) and the causal half of the attention. The loop's window and recompute are not counted."""
    c = config
    blocks = parameter_count(c, active=True) - 2 * c.vocab_size * c.hidden_size
    scores = c.loop_num * c.num_hidden_layers, c.hidden_size, context
    return [
        Addend("blocks", f"6 x {c.loop_num} x {blocks}", 6 * c.loop_num * blocks),
        Addend("attention", f"6 x {scores[0]} x {scores[1]} x {scores[2]}", 6 * math.prod(scores)),
        Addend("head", f"6 x {c.vocab_size} x {c.hidden_size}", 6 * c.vocab_size * c.hidden_size),
    ]


def cache(config: ModelConfig, context: int) -> list[Addend]:
    """Bytes of the keys and values of a sequence in bfloat16: pass 1 keeps all, later passes the window."""
    c = config
    token = c.num_hidden_layers, 2, 2, c.num_key_value_heads, c.head_dim
    formula, size = " x ".join(map(str, token)), math.prod(token)
    found = [Addend("pass 1", f"{context} x {formula}", context * size)]
    if c.loop_num > 1:
        kept = (c.loop_num - 1) * min(c.loop_window_size, context)
        found.append(Addend("windows", f"{kept} x {formula}", kept * size))
    return found


def states(config: ModelConfig, precision: str, gpus: int, zero: int) -> list[Addend]:
    """Bytes on each GPU of weights, gradients and AdamW's state; `zero` is the ZeRO stage, 0 to 3."""
    count = parameter_count(config)
    found = []
    for name, size in zip(SHARDED_FROM, STATES[precision]):
        parts = gpus if zero >= SHARDED_FROM[name] else 1
        formula = f"{size} x {count}" + (f" / {parts}" if parts > 1 else "")
        found.append(Addend(name, formula, -(-size * count // parts)))
    return found


def activations(
    config: ModelConfig,
    precision: str,
    tokens: int,
    blocks: int = 0,
    mlps: int = 0,
    tile: int = 0,
    compiled: bool = False,
) -> list[Addend]:
    """Bytes that the backward of rows of so many tokens together needs. Of the blocks, each pass counted, the first
    `blocks` and the next `mlps` are recomputed, and MLPs by tiles, as iqc.model.decoder.Recompute has it.

    Of every block its input is kept, in a loop pass 1's keys and values, and the inside but for what is recomputed:
    that is there for one block (and one tile of an MLP) at a time, and so are the gradients in it. `compiled`: by
    iqc.model.compiled, which makes again what takes no product; of that all where anything is recomputed.
    """
    c, hidden = config, config.hidden_size
    width = 4 if precision == "fp32" else 2
    each, keys = width * tokens, 2 * c.num_key_value_heads * c.head_dim
    passes = c.loop_num * c.num_hidden_layers
    tiled = 0 < tile < tokens and not c.num_experts
    part = width * (tile if tiled else tokens)
    blocks = min(blocks, passes)
    mlps = passes - blocks if tiled else min(mlps, passes - blocks)
    compiled = compiled and not c.num_experts
    lean = compiled and blocks + mlps > 0
    # Input, its norm unless it is made again, queries, what is attended to (twice in a loop), the sum.
    wide = (6 if c.loop_num > 1 else 5) - lean
    outer, outside = f"{wide} x {hidden} + {keys}", wide * hidden + keys
    # Of a feed-forward the norm, gate before and after its activation, the other branch, their product; compiled,
    # without the activated gate, and lean without norm and product. Of an expert its input and output too.
    parts = 2 if lean else 3 if compiled else 4
    inner, inside = f"{parts} x {c.intermediate_size}", parts * c.intermediate_size
    slopes, gradients = f"3 x {c.intermediate_size}", 3 * c.intermediate_size
    if c.num_experts:
        best, wide, shared = c.num_experts_per_tok, c.moe_intermediate_size, c.num_shared_experts
        inner = f"{best} x (2 x {hidden} + 4 x {wide}) + 4 x {shared} x {wide}"
        inside = best * (2 * hidden + 4 * wide) + 4 * shared * wide
        slopes, gradients = f"3 x ({best} + {shared}) x {wide}", 3 * (best + shared) * wide
    if not lean:
        inner, inside = f"{hidden} + {inner}", hidden + inside
    found = [
        ("insides of blocks", each, passes - blocks - mlps, f"({outer} + {inner})", outside + inside),
        ("blocks without MLPs", each, mlps, f"({outer})", outside),
        ("inputs of blocks", each, blocks, f"{hidden}", hidden),
        ("K and V of pass 1", each, min(blocks, c.num_hidden_layers) if c.loop_num > 1 else 0, f"{keys}", keys),
        ("a block without MLP", each, min(blocks, 1), f"({outer})", outside),
        ("inside of an MLP", part, min(blocks + mlps, 1), f"({inner})", inside),
        ("gradients in an MLP", part, 1, f"{slopes}", gradients),
    ]
    return [Addend(name, f"{size} x {n} x {text}", size * n * value) for name, size, n, text, value in found if n]


def head(config: ModelConfig, precision: str, tokens: int, chunk: int) -> list[Addend]:
    """Bytes of the vocabulary head with its loss (iqc.kernels.linear_cross_entropy), `chunk` logits at a time."""
    each, v, h = 4 if precision == "fp32" else 2, config.vocab_size, config.hidden_size
    rows = min(tokens, max(1, chunk // v))
    return [
        Addend("logits of a chunk", f"{each} x {rows} x {v}", each * rows * v),
        Addend("head, float32", f"4 x {h} x ({v} + {tokens})", 4 * h * (v + tokens)),
    ]


def ring(config: ModelConfig, precision: str, tokens: int) -> list[Addend]:
    """Bytes on a rank of the attention of rows that are shared (iqc.kernels.ring_attention), which has `tokens` of
    them: keys and values at hand and on their way, their gradients and those of the queries in float32."""
    each, keys = 4 if precision == "fp32" else 2, 2 * config.num_key_value_heads * config.head_dim
    formula = f"{tokens} x (2 x {each} x {keys} + 2 x 4 x {keys} + 4 x {config.hidden_size})"
    return [Addend("ring", formula, tokens * (2 * each * keys + 8 * keys + 4 * config.hidden_size))]


def show(config: ModelConfig, gpus: int, context: int, precision: str) -> str:
    """Everything above as text; the same number of tokens everywhere, a row of them on each GPU."""
    lines = section("Parameters", parameters(config))
    if config.num_experts:
        lines.append(_line("of which a token meets", parameter_count(config, active=True)))
    lines += section(
        f"Operations to train a token in rows of {context:,}, a third of them forward", flops(config, context)
    )
    lines += section(f"Bytes of keys and values of {context:,} tokens", cache(config, context))
    lines.append(_line("a token more", cache(config, 1)[0].value))
    stages = range(4 if gpus > 1 else 1)
    number = f"each of {gpus} GPUs, by ZeRO stage" if gpus > 1 else "one GPU"
    lines += ["", f"GiB to train on {number}: AdamW, {precision}, a row of {context:,} tokens"]
    if gpus > 1:
        lines.append(f"  {'':<22} " + " ".join(f"{zero:>9}" for zero in stages))
    blocks = config.loop_num * config.num_hidden_layers
    kept = activations(config, precision, context, blocks)
    columns = [[*states(config, precision, gpus, zero), *kept] for zero in stages]
    for addends in zip(*columns):
        name = addends[0].name
        shared = f", / {gpus} from stage {SHARDED_FROM[name]}" if gpus > 1 and name in SHARDED_FROM else ""
        lines.append(f"{_gib(name, [addend.value for addend in addends])}  = {addends[0].formula}{shared}")
    lines.append(_gib("sum", [sum(addend.value for addend in column) for column in columns]))
    whole, slopes = activations(config, precision, context)
    without = [sum(a.value for a in (*states(config, precision, gpus, zero), whole, slopes)) for zero in stages]
    lines.append(f"{_gib('sum, no recompute', without)}  with {whole.name} = {whole.formula}")
    return "\n".join(lines)


def section(title: str, addends: list[Addend]) -> list[str]:
    lines = [_line(addend.name, addend.value) + f"  = {addend.formula}" for addend in addends]
    return ["", title, *lines, _line("sum", sum(addend.value for addend in addends))]


def _line(name: str, value: int) -> str:
    return f"  {name:<22} {value:>22,}"


def _gib(name: str, values: list[int]) -> str:
    return f"  {name:<22} " + " ".join(f"{value / 2**30:>9.2f}" for value in values)


def presets() -> str:
    """A table of the presets."""
    lines = [f"{'preset':<16} {'parameters':>14} {'layers':>10} {'heads':>6} {'tokens':>8} {'context':>8}  kind"]
    for name, c in PRESETS.items():
        kind = f"{c.loop_num} passes" if c.loop_num > 1 else "dense"
        if c.num_experts:
            kind = f"{c.num_experts} experts, a token meets {parameter_count(c, active=True):,} parameters"
        shape, heads = f"{c.num_hidden_layers} x {c.hidden_size}", f"{c.num_attention_heads}/{c.num_key_value_heads}"
        numbers = f"{parameter_count(c):>14,} {shape:>10} {heads:>6} {c.vocab_size:>8,} {c.max_position_embeddings:>8,}"
        lines.append(f"{name:<16} {numbers}  {kind}")
    return "\n".join(lines)
