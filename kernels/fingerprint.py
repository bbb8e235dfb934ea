"""A 64-bit fingerprint of a tensor's stored bits: sum over i of (2 i + 1) * mix(bits_i), modulo 2^64.

`mix` is a bijection and 2 i + 1 is odd, so any change of one element changes the sum, for certain: -0.0 is not 0.0, and
the payload of a NaN counts. Changes of several elements cancel by chance alone (about 2^-64). An XOR of the elements
is blind to pairs, and a plain sum to order: torch.hash_tensor([1, 2, 3]) == torch.hash_tensor([3, 2, 1]).

The sum is over elements, so fingerprints of slices add up to that of the whole when each is told where it starts, and
zero bits (padding) add nothing. Integers wrap: no order of summation, and no device, gives another result.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

FIRST, SECOND = 0x5851F42D4C957F2D, 0x2545F4914F6CDD1D  # odd: Knuth's MMIX generator; Vigna 2016, xorshift64*
CHUNK = {"cpu": 1 << 15, "cuda": 1 << 24}  # elements at a time, of 8 bytes: within a core's cache; 128 MiB
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: Tensor, start: int = 0) -> Tensor:
    """An int64 scalar on the tensor's device, which is not waited for.

    tensor: any shape, elements of 1, 2, 4 or 8 bytes. start: the number of its first element in the whole that it is a
    slice of, flattened.
    """
    words = _words(tensor)
    if words.is_cuda and (kernel := _on_gpu()) is not None:
        return kernel([words], [start])[0]
    return plain_fingerprint(words, start)


def fingerprints(tensors: Iterable[Tensor]) -> Tensor:
    """int64 [number of tensors], on the device of the first; on the CPU when there are none."""
    words = [_words(tensor) for tensor in tensors]
    if not words:
        return torch.zeros(0, dtype=torch.int64)
    found = torch.zeros(len(words), dtype=torch.int64, device=words[0].device)
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
    for number, tensor in enumerate(words):
        kinds[tensor.dtype, tensor.device].append(number)
    for (_, device), numbers in kinds.items():
        same = [words[number] for number in numbers]
        if device.type == "cuda" and (kernel := _on_gpu()) is not None:
            made = kernel(same, [0] * len(same))
        else:
            made = torch.stack([plain_fingerprint(tensor) for tensor in same])
        found[torch.tensor(numbers, device=found.device)] = made.to(found.device)
    return found


def plain_fingerprint(words: Tensor, start: int = 0) -> Tensor:
    """`fingerprint` in PyTorch's operations, on any device, with memory for one chunk."""
    words = _words(words)
    size = CHUNK.get(words.device.type, CHUNK["cpu"])
    weights = _weights(min(size, words.numel()), words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for at in range(0, words.numel(), size):
        mixed = _mix(words[at : at + size].to(torch.int64, copy=True))
        total += mixed.sum() * _wrapped(2 * (start + at))
        total += mixed.mul_(weights[: len(mixed)]).sum()
    return total


def _words(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(WORDS[tensor.element_size()])


def _mix(x: Tensor) -> Tensor:
    """In place, for int64; each line can be undone. Shifts are logical: the mask takes the copies of the sign away."""
    x.mul_(FIRST)
    x.bitwise_xor_((x >> 32).bitwise_and_(0xFFFFFFFF))
    x.mul_(SECOND)
    return x.bitwise_xor_((x >> 29).bitwise_and_(0x7FFFFFFFF))


@functools.lru_cache(8)
def _weights(size: int, device: torch.device) -> Tensor:
    return torch.arange(1, 2 * size + 1, 2, device=device)


def _wrapped(number: int) -> int:
    """A number modulo 2^64 as a signed one."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


@functools.cache
def _on_gpu():
    try:
        from iqc.kernels.fingerprint_gpu import fingerprints_of_words
    except ImportError:  # PyTorch's builds for GPUs bring Triton along; without it several passes do
        return None
    return fingerprints_of_words
