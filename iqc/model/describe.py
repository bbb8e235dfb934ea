"""What a model costs: parameters, operations and cache a token, memory to train; every sum with its addends.

Memory of activations is an estimate from the tensors that autograd keeps; kernels' workspaces, communication buffers
and what an allocator wastes come on top.
"""

import math
from dataclasses import dataclass

from iqc.model.config import PRESETS, ModelConfig, parameter_count

# Bytes a parameter of weights, gradients and AdamW's state. The first three are those of iqc train: float32; float32
# with a bfloat16 copy for the products; bfloat16 alone. Mixed is bfloat16 with float32 master weights and moments
# (ZeRO, Rajbhandari et al. 2020, section 3.1).
STATES = {"fp32": (4, 4, 4 + 4), "bf16": (4 + 2, 4, 4 + 4), "bf16-pure": (2, 2, 2 + 2), "mixed": (2, 2, 4 + 4 + 4)}
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


def activations(config: ModelConfig, precision: str, context: int, recompute: bool) -> list[Addend]:
    """Bytes that the backward of one row of `context` tokens needs. With `recompute`: the blocks' inputs, pass 1's keys
    and values (a loop uses them a pass later), and the inside of one block at a time; without, of all blocks."""
    c, hidden = config, config.hidden_size
    each = (4 if precision == "fp32" else 2) * context
    keys = 2 * c.num_key_value_heads * c.head_dim
    # Input, its norm, queries, what is attended to (twice in a loop), the sum, its norm; of a feed-forward the gate
    # before and after its activation, the other branch, their product, and of an expert its input and output.
    wide = 7 if c.loop_num > 1 else 6
    inner, values = f"4 x {c.intermediate_size}", 4 * c.intermediate_size
    if c.num_experts:
        best, width, shared = c.num_experts_per_tok, c.moe_intermediate_size, c.num_shared_experts
        inner = f"{best} x (2 x {hidden} + 4 x {width}) + 4 x {shared} x {width}"
        values = best * (2 * hidden + 4 * width) + 4 * shared * width
    block = f"({wide} x {hidden} + {keys} + {inner})"
    values += wide * hidden + keys
    blocks = c.loop_num * c.num_hidden_layers
    if not recompute:
        return [Addend("insides of blocks", f"{each} x {blocks} x {block}", each * blocks * values)]
    found = [Addend("inputs of blocks", f"{each} x {blocks} x {hidden}", each * blocks * hidden)]
    if c.loop_num > 1:
        layers = c.num_hidden_layers
        found.append(Addend("K and V of pass 1", f"{each} x {layers} x {keys}", each * layers * keys))
    return [*found, Addend("inside of a block", f"{each} x {block}", each * values)]


def show(config: ModelConfig, gpus: int, context: int, precision: str) -> str:
    """Everything above as text; the same number of tokens everywhere, a row of them on each GPU."""
    lines = _section("Parameters", parameters(config))
    if config.num_experts:
        lines.append(_line("of which a token meets", parameter_count(config, active=True)))
    lines += _section(
        f"Operations to train a token in rows of {context:,}, a third of them forward", flops(config, context)
    )
    lines += _section(f"Bytes of keys and values of {context:,} tokens", cache(config, context))
    lines.append(_line("a token more", cache(config, 1)[0].value))
    stages = range(4 if gpus > 1 else 1)
    number = f"each of {gpus} GPUs, by ZeRO stage" if gpus > 1 else "one GPU"
    lines += ["", f"GiB to train on {number}: AdamW, {precision}, a row of {context:,} tokens"]
    if gpus > 1:
        lines.append(f"  {'':<22} " + " ".join(f"{zero:>9}" for zero in stages))
    kept = activations(config, precision, context, recompute=True)
    columns = [[*states(config, precision, gpus, zero), *kept] for zero in stages]
    for addends in zip(*columns):
        name = addends[0].name
        shared = f", / {gpus} from stage {SHARDED_FROM[name]}" if gpus > 1 and name in SHARDED_FROM else ""
        lines.append(f"{_gib(name, [addend.value for addend in addends])}  = {addends[0].formula}{shared}")
    lines.append(_gib("sum", [sum(addend.value for addend in column) for column in columns]))
    (whole,) = activations(config, precision, context, recompute=False)
    without = [sum(a.value for a in states(config, precision, gpus, zero)) + whole.value for zero in stages]
    lines.append(f"{_gib('sum, no recompute', without)}  with {whole.name} = {whole.formula}")
    return "\n".join(lines)


def _section(title: str, addends: list[Addend]) -> list[str]:
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
