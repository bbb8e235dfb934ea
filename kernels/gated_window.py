"""Triton kernels of the loop's attention: all of it that is not the global branch, one pass forward, two backward.

Rows of the batch lie end to end as [tokens, heads * head size]. A program takes BLOCK queries of every query head that
shares one key head, so it reads their window of keys and values once: the KEYS = BLOCK + window - 1 (rounded up to a
power of two) that end with the block, in one tile and with one softmax. The gate's products with q and with its
gradient go through the matrix units too, as one more narrow operand, because a sum over the head size in registers
costs as much as the attention. The global branch's values are the product's starting value, not an addition after it.
A tile is waited for where it is asked for, so what comes by ordinary loads (numbers a row, the global branch's output)
is asked for before the tiles and is under way meanwhile.

Of rows that ranks share (iqc.kernels.zigzag), chunks of queries lie end to end, and of keys the same chunks with a halo
before each: so many tokens of the chunk before it. A document's start may then lie in the halo, by as much before the
chunk's begin among the queries.

Sums run in a fixed order: no atomics, results are the same bits each time. On a CPU, and in the tests of CI, the same
code runs in Triton's interpreter.
"""

import torch
from torch import Tensor

from iqc.kernels.causal_attention import Unsupported
from iqc.kernels.documents import Documents
from iqc.kernels.zigzag import Shard

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError as missing:  # PyTorch's builds for GPUs bring it along
    raise Unsupported("the loop's attention on a GPU needs Triton: pip install triton") from missing

LOG2E = tl.constexpr(1.4426950408889634)  # exp2 is the instruction there is; log-sum-exps of the window are in base 2
BLOCK = 64  # the narrowest tile that Hopper's matrix units take
MOST_KEYS = 256  # a wider tile leaves no shared memory for the rest


def check(q: Tensor, k: Tensor, window: int, block: int = BLOCK) -> None:
    """Raises Unsupported, naming what is wrong, for what the kernels do not take."""
    size, group = q.shape[-1], q.shape[2] // k.shape[2]
    wrong = None
    if size < 16 or size > 128 or size & (size - 1):
        wrong = f"a head size of {size}: 16, 32, 64 or 128"
    elif group > 16:
        wrong = f"{group} query heads over a key head: 16 at most"
    elif window > MOST_KEYS - block + 1:
        wrong = f"a window of {window}: {MOST_KEYS - block + 1} at most"
    if wrong:
        raise Unsupported(f"the loop's attention on a GPU does not take {wrong}")


@triton.jit
def _seen(key, row, start, WINDOW: tl.constexpr):
    """Whether a query sees a key; row and start of the query, shaped to broadcast with key."""
    return (key >= tl.maximum(start, row - (WINDOW - 1))) & (key <= row)


@triton.jit
def _shift(first, chunk, HALO: tl.constexpr):
    """How many tokens of halos lie before the keys of the chunk of this query."""
    return (first // chunk + 1) * HALO


@triton.jit
def _per_head(row, h, length, HEADS: tl.constexpr):
    """Offsets of (token, head) in a float32 [batch rows, heads, row length]."""
    return (row // length * HEADS + h) * length + row % length


@triton.jit
def _tile(row, h, HEADS: tl.constexpr, SIZE: tl.constexpr):
    """Offsets of a head's tile of these rows in [tokens, heads * head size]."""
    return row[:, None].to(tl.int64) * (HEADS * SIZE) + h * SIZE + tl.arange(0, SIZE)[None, :]


@triton.jit
def _gate_weights(WEIGHT, kv, GROUP: tl.constexpr, PAD: tl.constexpr, SIZE: tl.constexpr):
    """[PAD, SIZE]: the gates' weights of the heads of one group, zeros below."""
    g = tl.arange(0, PAD)[:, None]
    return tl.load(WEIGHT + (kv * GROUP + g) * SIZE + tl.arange(0, SIZE)[None, :], mask=g < GROUP, other=0.0)


@triton.jit
def _forward(
    Q, K, V, FAR, OUT, WEIGHT, BIAS, START, FAR_LSE, LSE, GATE, tokens, length, scale, chunk,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PAD: tl.constexpr, SIZE: tl.constexpr,
    WINDOW: tl.constexpr, HALO: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first, kv = tl.program_id(0) * BLOCK, tl.program_id(1)
    begin = first + BLOCK - KEYS
    shift = _shift(first, chunk, HALO) if HALO > 0 else 0
    k = K.load([begin + shift, kv * SIZE])  # zeros beyond the ends, as with every descriptor
    v = V.load([begin + shift, kv * SIZE])
    row = first + tl.arange(0, BLOCK)
    key = begin + tl.arange(0, KEYS)
    live = row < tokens
    weights = _gate_weights(WEIGHT, kv, GROUP, PAD, SIZE)
    for g in tl.range(0, GROUP, num_stages=1):
        h = kv * GROUP + g
        at = _per_head(row, h, length, HEADS)
        start = tl.load(START + row, mask=live, other=0)
        far_lse = tl.load(FAR_LSE + at, mask=live, other=0.0)
        bias = tl.load(BIAS + h)
        far = tl.load(FAR + _tile(row, h, HEADS, SIZE), mask=live[:, None], other=0.0)
        q = Q.load([first, h * SIZE])
        score = tl.dot(q, k.T, input_precision="ieee") * (scale * LOG2E)
        score = tl.where(_seen(key[None, :], row[:, None], start[:, None], WINDOW), score, float("-inf"))
        top = tl.max(score, 1)
        p = tl.exp2(score - top[:, None])
        total = tl.sum(p, 1)
        logits = tl.dot(q, weights.T, input_precision="ieee")  # of all heads of the group; this head's is column g
        logit = tl.sum(tl.where(tl.arange(0, PAD)[None, :] == g, logits, 0.0), 1) + bias
        gate = tl.sigmoid(logit)
        p *= ((1.0 - gate) / total)[:, None]
        far = far.to(tl.float32) * gate[:, None]
        OUT.store([first, h * SIZE], tl.dot(p.to(v.dtype), v, far, input_precision="ieee").to(q.dtype))
        tl.store(LSE + at, top + tl.log2(total), mask=live)
        tl.store(GATE + at, gate, mask=live)
        log_gate = tl.minimum(logit, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(logit)))
        tl.store(FAR_LSE + at, far_lse - log_gate, mask=live)


@triton.jit
def _backward_queries(
    Q, K, V, FAR, GRAD, DQ, WEIGHT, START, LSE, GATE, DOT, SHARE_LSE, DWEIGHT, DBIAS, tokens, length, scale, chunk,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PAD: tl.constexpr, SIZE: tl.constexpr,
    WINDOW: tl.constexpr, HALO: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Adds to DQ, which holds the global branch's part; leaves <dO, O_l> and LSE - log2(1 - g) for the keys' kernel."""
    first, kv = tl.program_id(0) * BLOCK, tl.program_id(1)
    begin = first + BLOCK - KEYS
    shift = _shift(first, chunk, HALO) if HALO > 0 else 0
    k = K.load([begin + shift, kv * SIZE])
    v = V.load([begin + shift, kv * SIZE])
    row = first + tl.arange(0, BLOCK)
    key = begin + tl.arange(0, KEYS)
    live = row < tokens
    heads = tl.arange(0, PAD)
    weights = _gate_weights(WEIGHT, kv, GROUP, PAD, SIZE)
    dweight = tl.zeros([SIZE, PAD], tl.float32)
    dbias = tl.zeros([PAD], tl.float32)
    for g in tl.range(0, GROUP, num_stages=1):
        h = kv * GROUP + g
        at = _per_head(row, h, length, HEADS)
        start = tl.load(START + row, mask=live, other=0)
        lse = tl.load(LSE + at, mask=live, other=0.0)
        gate = tl.load(GATE + at, mask=live, other=0.0)
        far = tl.load(FAR + _tile(row, h, HEADS, SIZE), mask=live[:, None], other=0.0)
        q = Q.load([first, h * SIZE])
        grad = GRAD.load([first, h * SIZE])
        far_dot = tl.sum(grad.to(tl.float32) * far.to(tl.float32), 1)
        p = tl.exp2(tl.dot(q, k.T, input_precision="ieee") * (scale * LOG2E) - lse[:, None])
        p = tl.where(_seen(key[None, :], row[:, None], start[:, None], WINDOW), p, 0.0)
        dp = tl.dot(grad, v.T, input_precision="ieee")
        dot = tl.sum(p * dp, 1)
        ds = (p * (dp - dot[:, None]) * ((1.0 - gate) * scale)[:, None]).to(q.dtype)
        dlogit = tl.where(heads[None, :] == g, (gate * (1.0 - gate) * (far_dot - dot))[:, None], 0.0)
        dbias += tl.sum(dlogit, 0)
        dlogit = dlogit.to(q.dtype)
        dq = DQ.load([first, h * SIZE]).to(tl.float32)  # as late as can be, for want of registers
        dq = tl.dot(ds, k, dq, input_precision="ieee")
        dq = tl.dot(dlogit, weights, dq, input_precision="ieee")
        DQ.store([first, h * SIZE], dq.to(q.dtype))
        dweight = tl.dot(q.T, dlogit, dweight, input_precision="ieee")
        tl.store(DOT + at, dot, mask=live)
        tl.store(SHARE_LSE + at, lse - tl.log2(1.0 - gate), mask=live)
    part = (tl.program_id(0) * tl.num_programs(1) + kv) * GROUP + heads
    inside = heads < GROUP
    tl.store(DWEIGHT + part[None, :] * SIZE + tl.arange(0, SIZE)[:, None], dweight, mask=inside[None, :])
    tl.store(DBIAS + part, dbias, mask=inside)


@triton.jit
def _backward_keys(
    Q, K, V, GRAD, DK, DV, START, SHARE_LSE, DOT, tokens, length, scale, chunk,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    WINDOW: tl.constexpr, HALO: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCK keys a program, over the STEPS blocks of queries of its chunk that see them, head by head."""
    at_keys, kv = tl.program_id(0) * BLOCK, tl.program_id(1)
    k = K.load([at_keys, kv * SIZE])
    v = V.load([at_keys, kv * SIZE])
    first, begin, end = at_keys, 0, tokens  # among the queries
    if HALO > 0:
        begin = at_keys // (chunk + HALO) * chunk
        end = begin + chunk
        first = at_keys - _shift(begin, chunk, HALO)
    slot = tl.arange(0, BLOCK)
    dk = tl.zeros([BLOCK, SIZE], tl.float32)
    dv = tl.zeros([BLOCK, SIZE], tl.float32)
    for step in tl.range(0, STEPS * GROUP, num_stages=STAGES):
        h = kv * GROUP + step // STEPS
        block = first + step % STEPS * BLOCK
        q = Q.load([block, h * SIZE])
        grad = GRAD.load([block, h * SIZE])
        row = block + slot
        live = row < end
        if HALO > 0:
            live = live & (row >= begin)
        at = _per_head(row, h, length, HEADS)
        start = tl.load(START + row, mask=live, other=0)
        lse = tl.load(SHARE_LSE + at, mask=live, other=float("inf"))
        dot = tl.load(DOT + at, mask=live, other=0.0)
        p = tl.exp2(tl.dot(k, q.T, input_precision="ieee") * (scale * LOG2E) - lse[None, :])
        p = tl.where(_seen(first + slot[:, None], row[None, :], start[None, :], WINDOW), p, 0.0)
        dv = tl.dot(p.to(q.dtype), grad, dv, input_precision="ieee")
        dp = tl.dot(v, grad.T, input_precision="ieee")
        dk = tl.dot((p * (dp - dot[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    DK.store([at_keys, kv * SIZE], (dk * scale).to(k.dtype))
    DV.store([at_keys, kv * SIZE], dv.to(k.dtype))


def _tiles(x: Tensor, rows: int) -> TensorDescriptor:
    """x [B, T, heads, D] as [tokens, heads * D], read and written in tiles of `rows` tokens of one head."""
    return TensorDescriptor.from_tensor(x.view(-1, x.shape[2] * x.shape[3]), [rows, x.shape[3]])


def _shape(q: Tensor, k: Tensor, documents: Documents | Shard, window: int, block: int) -> dict[str, int]:
    if documents.halo and (documents.halo % block or documents.chunk % block):
        raise ValueError(f"chunks of {documents.chunk} tokens, halos of {documents.halo}, for blocks of {block}")
    group = q.shape[2] // k.shape[2]
    keys = max(16, triton.next_power_of_2(block + window - 1))
    return {
        "HEADS": q.shape[2],
        "GROUP": group,
        "PAD": max(16, triton.next_power_of_2(group)),
        "SIZE": q.shape[3],
        "WINDOW": window,
        "HALO": documents.halo,
        "BLOCK": block,
        "KEYS": keys,
        "num_warps": 4 if keys <= 2 * BLOCK else 8,
    }


def window_forward(
    q: Tensor, k: Tensor, v: Tensor, far: Tensor, far_lse: Tensor, weight: Tensor, bias: Tensor,
    documents: Documents | Shard, window: int, block: int = BLOCK,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The mixed output [B, T, H, D], the window's log-sum-exp (base 2) and the gate, each as `far_lse` is laid out.

    q and far (the global branch's output) [B, T, H, D]; k, v [B, T, K, D] of this pass, of a Shard [chunks, halo +
    chunk, K, D]; weight [H, D] of q's type;
    bias float32 [H]; all contiguous. far_lse float32 [rows, H, row length] becomes far_lse - log(gate) in place, which
    is what the backward of the global branch wants.
    """
    out, lse, gate = torch.empty_like(q), torch.empty_like(far_lse), torch.empty_like(far_lse)
    shape = _shape(q, k, documents, window, block)
    tokens, keys = q.shape[0] * q.shape[1], shape["KEYS"]
    tiles = (_tiles(q, block), _tiles(k, keys), _tiles(v, keys), far, _tiles(out, block))
    _forward[triton.cdiv(tokens, block), k.shape[2]](
        *tiles, weight, bias, documents.flat_starts, far_lse, lse, gate,
        tokens, far_lse.shape[-1], q.shape[3] ** -0.5, documents.chunk, **shape,
    )  # fmt: skip
    return out, lse, gate


def window_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, far: Tensor, weight: Tensor, lse: Tensor, gate: Tensor, dq: Tensor,
    documents: Documents | Shard, window: int, block: int = BLOCK,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of k, v, and of the gate's weight [H, D] and bias [H] in float32.

    grad [B, T, H, D] of the mixed output; lse and gate as `window_forward` gave them. The window's and the gate's part
    of the gradient of q is added to `dq`, which holds that of the global branch.
    """
    shape = _shape(q, k, documents, window, block)
    tokens, keys = q.shape[0] * q.shape[1], shape["KEYS"]
    blocks = triton.cdiv(tokens, block)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    dot, share_lse = torch.empty_like(gate), torch.empty_like(gate)
    dweight = torch.empty(blocks, *weight.shape, dtype=torch.float32, device=q.device)
    dbias = torch.empty(blocks, len(weight), dtype=torch.float32, device=q.device)
    queries, grads = _tiles(q, block), _tiles(grad, block)
    sizes = tokens, gate.shape[-1], q.shape[3] ** -0.5, documents.chunk
    _backward_queries[blocks, k.shape[2]](
        queries, _tiles(k, keys), _tiles(v, keys), far, grads, _tiles(dq, block), weight,
        documents.flat_starts, lse, gate, dot, share_lse, dweight, dbias, *sizes, **shape,
    )  # fmt: skip
    keys_shape = {name: shape[name] for name in ("HEADS", "GROUP", "SIZE", "WINDOW", "HALO", "BLOCK")}
    _backward_keys[triton.cdiv(k.shape[0] * k.shape[1], block), k.shape[2]](
        queries, _tiles(k, block), _tiles(v, block), grads, _tiles(dk, block), _tiles(dv, block),
        documents.flat_starts, share_lse, dot, *sizes, **keys_shape,
        STEPS=triton.cdiv(block + window - 1, block), STAGES=2, num_warps=4,
    )  # fmt: skip
    return dk, dv, dweight.sum(0), dbias.sum(0)
