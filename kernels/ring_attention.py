"""Attention of rows that ranks share in zigzag (iqc.kernels.zigzag): keys and values go round, queries stay.

In P - 1 steps every rank sees every other's keys and values; the next ones are on their way while those at hand are
attended to. What each part gives is put together by log-sum-exp in float32 (float64 of float64). In backward the same
keys go round again, and the gradients of each travel with it, one step behind, until they are home after P steps. A
rank holds its own tokens, one shard that it attends to and one that comes: memory falls with P.

Source of the scheme: Liu et al. 2023 (arXiv 2310.01889); zigzag as in Brandon et al. 2023 (striped), by chunks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iqc.kernels.partial_attention import causal_backward, causal_forward, full_backward, full_forward
from iqc.kernels.ring import Ring
from iqc.kernels.zigzag import Rectangle, Shard


def ring_attention(q: Tensor, k: Tensor, v: Tensor, shard: Shard) -> Tensor:
    """`causal_attention` of the whole rows, of which every rank has its shard: q [B, 2C, H, D]; k, v [B, 2C, K, D].

    Every rank of the ring calls it, with tensors of the same shapes, and runs its backward.
    """
    return _RingAttention.apply(q, k, v, shard)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, shard: Shard) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse = ring_forward(q, k, v, shard)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.shard = shard
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):
        q, k, v, out, lse = ctx.saved_tensors
        return *ring_backward(grad.contiguous(), q, k, v, out, lse, ctx.shard), None


def ring_forward(q: Tensor, k: Tensor, v: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """Output [B, 2C, H, D], contiguous, in the precision of q, and the log-sum-exp [B, H, 2C] over all ranks' keys."""
    exact = torch.promote_types(q.dtype, torch.float32)
    rounds = _round(torch.stack([k, v]), shard.ring)
    next(rounds)  # own keys: the next ones are on their way
    out, lse = causal_forward(q, k, v, shard.local)
    out, lse = out.to(exact).contiguous(), lse.to(exact)
    for source, held in rounds:
        for part in shard.rectangles(source):
            keys, values = held[:, part.rows, part.keys]
            _merge(out, lse, part, *full_forward(q[part.rows, part.queries], keys, values, part.full))
    return out.to(q.dtype), lse


def _round(held: Tensor, ring: Ring) -> Iterator[tuple[int, Tensor]]:
    """Every rank with its tensor, this one first. While the caller is at work on one, the next is on its way."""
    for step in range(ring.size - 1):
        coming = torch.empty_like(held)
        arrived = _pass_on(ring, held, coming)
        yield (ring.rank - step) % ring.size, held
        arrived()
        held = coming
    yield (ring.rank + 1) % ring.size, held


def _pass_on(ring: Ring, held: Tensor, coming: Tensor) -> Callable[[], None]:
    return ring.transfer([(held, (ring.rank + 1) % ring.size)], [(coming, (ring.rank - 1) % ring.size)])


def _merge(out: Tensor, lse: Tensor, part: Rectangle, more: Tensor, more_lse: Tensor) -> None:
    """Add what some queries see in more keys, in place."""
    so_far, log = out[part.rows, part.queries], lse[part.rows, :, part.queries]
    share = torch.sigmoid(more_lse - log)  # of the new keys in the sum of exponentials
    so_far.lerp_(more.to(out.dtype), share.transpose(1, 2)[..., None])
    log.copy_(torch.logaddexp(log, more_lse))


def ring_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, shard: Shard
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their precision; all arguments contiguous, lse as `ring_forward` gave it.

    As with `library_backward`, `lse - log(g)` gives the gradients of g * output.
    """
    ring, exact = shard.ring, torch.promote_types(q.dtype, torch.float32)
    rounds = _round(torch.stack([k, v]), ring)
    next(rounds)
    dq, dk, dv = causal_backward(grad, q, k, v, out, lse, shard.local)
    dq, gradients = dq.to(exact), torch.stack([dk, dv]).to(exact)
    coming = torch.empty_like(gradients)
    arrived = _pass_on(ring, gradients, coming)
    for source, held in rounds:
        made = []
        for part in shard.rectangles(source):
            keys, values = held[:, part.rows, part.keys]
            queries, log = (part.rows, part.queries), lse[part.rows, :, part.queries]
            of_q, *of_keys = full_backward(grad[queries], q[queries], keys, values, out[queries], log, part.full)
            dq[queries] += of_q
            made.append((part, of_keys))
        arrived()  # what the ranks before made of these keys
        gradients = coming
        for part, of_keys in made:
            for total, more in zip(gradients, of_keys):
                total[part.rows, part.keys] += more
        coming = torch.empty_like(gradients)
        arrived = _pass_on(ring, gradients, coming)
    arrived()
    dk, dv = coming
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def with_halo(k: Tensor, v: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """Keys and values [B, 2C, K, D] as chunks with the tokens before each: [2B, halo + C, K, D]. Before the row's first
    are zeros. Gradients of a halo go back to the rank that it came from."""
    return _Halo.apply(k, v, shard)


class _Halo(torch.autograd.Function):
    """Front chunks' halos come from the rank before, back chunks' from the one behind, whose back chunk is the one
    before; the last rank's two chunks are neighbours."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, shard: Shard):
        ctx.shard = shard
        ring, halo = shard.ring, shard.halo
        both = torch.stack([k, v]).unflatten(2, (2, shard.chunk))  # [2, B, 2 chunks, C, K, D]
        tails = both[:, :, :, shard.chunk - halo :].transpose(0, 2).contiguous()  # [2 chunks, B, 2, halo, K, D]
        found = torch.zeros_like(tails)
        if halo:
            _to_neighbours(shard, tails, found)()
            if ring.rank == ring.size - 1:
                found[1] = tails[0]
        made = torch.cat([found.transpose(0, 2), both], dim=3).flatten(1, 2)
        return made[0], made[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dk: Tensor, dv: Tensor):
        shard = ctx.shard
        ring, halo = shard.ring, shard.halo
        both = torch.stack([dk, dv]).unflatten(1, (-1, 2))
        made = both[:, :, :, halo:].contiguous()
        if halo:
            halos = both[:, :, :, :halo].transpose(0, 2).contiguous()
            found = torch.zeros_like(halos)
            _from_neighbours(shard, halos, found)()
            if ring.rank == ring.size - 1:
                found[0] = halos[1]
            made[:, :, :, shard.chunk - halo :] += found.transpose(0, 2)
        return *made.flatten(2, 3), None


def _neighbours(shard: Shard) -> tuple[bool, bool]:
    """Whether there is a rank before, and one behind."""
    return shard.ring.rank > 0, shard.ring.rank < shard.ring.size - 1


def _to_neighbours(shard: Shard, tails: Tensor, halos: Tensor):
    """Send the tails of own chunks [front, back] to where they are halos; own halos come."""
    rank, (before, behind) = shard.ring.rank, _neighbours(shard)
    sends = [(tails[0], rank + 1)] * behind + [(tails[1], rank - 1)] * before
    return shard.ring.transfer(sends, [(halos[0], rank - 1)] * before + [(halos[1], rank + 1)] * behind)


def _from_neighbours(shard: Shard, halos: Tensor, tails: Tensor):
    """The way back, of gradients."""
    rank, (before, behind) = shard.ring.rank, _neighbours(shard)
    sends = [(halos[0], rank - 1)] * before + [(halos[1], rank + 1)] * behind
    return shard.ring.transfer(sends, [(tails[0], rank + 1)] * behind + [(tails[1], rank - 1)] * before)
