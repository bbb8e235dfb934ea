"""The fingerprints of many tensors in one pass over them and one launch: a Triton kernel, for `fingerprint.py`, which
defines them. A launch a tensor would cost the processor more than the device needs for a small model.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from iqc.kernels.fingerprint import FIRST, SECOND

BLOCK, STEPS = 2048, 8  # elements of a step, steps of a program
SPAN = BLOCK * STEPS
_FIRST, _SECOND = tl.constexpr(FIRST), tl.constexpr(SECOND)
_WORDS = {torch.int8: tl.int8, torch.int16: tl.int16, torch.int32: tl.int32, torch.int64: tl.int64}


@triton.jit
def _fingerprints(
    ADDRESSES, SIZES, STARTS, TENSORS, BEGINS, PARTS, WORD: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr
):
    """A program's part is SPAN elements, from BEGINS on, of one of the TENSORS."""
    tensor = tl.load(TENSORS + tl.program_id(0))
    begin = tl.load(BEGINS + tl.program_id(0))
    words = tl.load(ADDRESSES + tensor).to(tl.pointer_type(WORD))
    size = tl.load(SIZES + tensor)
    start = tl.load(STARTS + tensor)
    total = tl.zeros([BLOCK], tl.uint64)
    for step in range(STEPS):
        at = begin + step * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(words + at, mask=at < size, other=0).to(tl.int64).to(tl.uint64, bitcast=True)  # 0 adds 0
        x = x * _FIRST
        x = x ^ (x >> 32)
        x = x * _SECOND
        x = x ^ (x >> 29)
        total += x * (2 * (start + at) + 1).to(tl.uint64, bitcast=True)
    tl.store(PARTS + tl.program_id(0), tl.sum(total, 0).to(tl.int64, bitcast=True))


def fingerprints_of_words(words: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """words: integers of one dtype on one device, each [n], contiguous. int64 [number of tensors]."""
    device = words[0].device
    sizes = tuple(tensor.numel() for tensor in words)
    tensors, begins, ends = _programs(sizes, device)
    about = torch.tensor([[t.data_ptr() for t in words], sizes, starts], dtype=torch.int64).to(device)
    parts = torch.zeros(len(tensors) + 1, dtype=torch.int64, device=device)
    if len(tensors):
        word = _WORDS[words[0].dtype]
        _fingerprints[(len(tensors),)](*about, tensors, begins, parts[1:], word, BLOCK, STEPS)
    sums = parts.cumsum(0)  # modulo 2^64, so differences of them are exact
    return sums[ends[1:]] - sums[ends[:-1]]


@functools.lru_cache(16)
def _programs(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """By program: the number of its tensor, and of its first element; by tensor: how many programs end before it."""
    counts = torch.tensor([-(-size // SPAN) for size in sizes])
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    tensors = torch.arange(len(sizes)).repeat_interleave(counts)
    begins = (torch.arange(len(tensors)) - ends[tensors]) * SPAN
    return tensors.to(device), begins.to(device), ends.to(device)
