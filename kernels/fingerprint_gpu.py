"""The fingerprint of a tensor's bits in one pass over it: a Triton kernel, for `fingerprint.py`, which defines it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from iqc.kernels.fingerprint import FIRST, SECOND

BLOCK, STEPS = 2048, 8  # elements of a step, steps of a program
_FIRST, _SECOND = tl.constexpr(FIRST), tl.constexpr(SECOND)


@triton.jit(do_not_specialize=["start", "size"])
def _fingerprint(WORDS, PARTS, start, size, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    begin = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    total = tl.zeros([BLOCK], tl.uint64)
    for step in range(STEPS):
        at = begin + step * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(WORDS + at, mask=at < size, other=0).to(tl.int64).to(tl.uint64, bitcast=True)  # 0 adds 0
        x = x * _FIRST
        x = x ^ (x >> 32)
        x = x * _SECOND
        x = x ^ (x >> 29)
        total += x * (2 * (start + at) + 1).to(tl.uint64, bitcast=True)
    tl.store(PARTS + tl.program_id(0), tl.sum(total, 0).to(tl.int64, bitcast=True))


def fingerprint_words(words: Tensor, start: int = 0) -> Tensor:
    """words: integers [n], contiguous. An int64 scalar on their device."""
    programs = triton.cdiv(words.numel(), BLOCK * STEPS)
    parts = torch.empty(programs, dtype=torch.int64, device=words.device)
    if programs:
        _fingerprint[(programs,)](words, parts, start, words.numel(), BLOCK, STEPS)
    return parts.sum()
