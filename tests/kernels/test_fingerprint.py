"""The fingerprint against a loop over integers without bound, and what it must see: every bit of every element."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.kernels import fingerprint as module
from iqc.kernels.fingerprint import FIRST, SECOND, WORDS, fingerprint, fingerprints, plain_fingerprint

torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool]
WHOLE = 1 << 64


def loop(tensor, start=0):
    total = 0
    for i, word in enumerate(tensor.flatten().view(WORDS[tensor.element_size()]).tolist(), start):
        x = word * FIRST % WHOLE
        x ^= x >> 32
        x = x * SECOND % WHOLE
        x ^= x >> 29
        total += (2 * i + 1) * x
    return total % WHOLE


def value(tensor, start=0):
    return fingerprint(tensor, start).item() % WHOLE


def bits(dtype, size, seed=0):
    """Any bits, NaNs among them."""
    g = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(2, (size,), generator=g).bool()
    return torch.randint(256, (size * dtype.itemsize,), dtype=torch.uint8, generator=g).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 5, 2**40, 2**63 - 3])
def test_it_is_the_sum_that_it_says(dtype, start):
    for size in (0, 1, 7, 300):
        tensor = bits(dtype, size)
        assert value(tensor, start) == loop(tensor, start)


def test_chunks_make_no_difference(monkeypatch):
    tensor = bits(torch.float32, 1000)
    whole = value(tensor, 3)
    monkeypatch.setitem(module.CHUNK, "cpu", 64)
    assert value(tensor, 3) == whole == loop(tensor, 3)


@given(st.sampled_from(DTYPES[:-1]), st.integers(1, 40), st.integers(0, 2**30), st.data())
@settings(max_examples=150, deadline=None)
def test_every_flipped_bit_is_seen(dtype, size, seed, data):
    tensor = bits(dtype, size, seed)
    at, bit = data.draw(st.integers(0, size * dtype.itemsize - 1)), data.draw(st.integers(0, 7))
    flipped = tensor.clone()
    flipped.view(torch.uint8)[at] ^= 1 << bit
    assert value(flipped) != value(tensor)
    flipped.view(torch.uint8)[at] ^= 1 << bit
    assert value(flipped) == value(tensor)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=9, unique=True), st.data())
@settings(deadline=None)
def test_order_counts(numbers, data):
    other = data.draw(st.permutations(numbers).filter(lambda order: order != numbers))
    assert value(torch.tensor(numbers)) != value(torch.tensor(other))


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 99), st.integers(0, 2**20))
@settings(deadline=None)
def test_slices_add_up_wherever_they_are_cut(size, first, padding, start):
    tensor = bits(torch.bfloat16, size)
    cut = min(first, size)
    parts = value(tensor[:cut], start) + value(tensor[cut:], start + cut)
    padded = torch.cat([tensor, torch.zeros(padding, dtype=torch.bfloat16)])
    assert parts % WHOLE == value(tensor, start) == value(padded, start)


def test_equal_values_of_other_bits_are_other():
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert value(torch.tensor([0.0])) != value(torch.tensor([-0.0]))
    assert value(nan[:1]) != value(nan[1:])
    pairs = [([1, 2, 3], [3, 2, 1]), ([1, 1, 1, 1], [0, 0, 0, 0])]  # an XOR takes either for the same
    assert all(value(torch.tensor(a)) != value(torch.tensor(b)) for a, b in pairs)


def test_what_is_stored_counts_not_how_it_lies_in_memory():
    matrix = bits(torch.float32, 12).view(3, 4)
    assert value(matrix.t()) == value(matrix.t().clone()) != value(matrix)
    assert value(matrix[1, 1]) == loop(matrix[1, 1:2])
    assert value(torch.nn.Parameter(torch.ones(3))) == value(torch.ones(3))


def test_several_at_once():
    tensors = [bits(dtype, 9, seed) for seed, dtype in enumerate(DTYPES)]
    assert fingerprints(tensors).tolist() == [fingerprint(tensor).item() for tensor in tensors]
    assert fingerprints([]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.filterwarnings("ignore:overflow")
def test_the_gpu_kernel_is_the_same_sum(dtype):
    pytest.importorskip("triton")
    from iqc.kernels.fingerprint_gpu import SPAN, fingerprints_of_words

    sizes, starts = [3, 0, SPAN + 5, 1], [0, 7, 2**40, 2**62]
    words = [bits(dtype, size, seed).to(DEVICE) for seed, size in enumerate(sizes)]
    expected = [plain_fingerprint(*pair).item() for pair in zip(words, starts)]
    assert fingerprints_of_words(words, starts).tolist() == expected
    assert fingerprints_of_words(words[1:2], [0]).tolist() == [0]
