import pytest

from iqc.errors import IqcError
from iqc.tokens.special import BYTES, CONTROL, pieces


def test_released_size_has_the_released_ids():
    ids = {token: pieces(76_800) + index for index, token in enumerate(CONTROL)}
    assert ids["<CLS>"] == 75858 and ids["<|im_start|>"] == 75863 and ids["<|im_end|>"] == 75864
    assert ids["<|endoftext|>"] == 75869 and ids["<think>"] == 75872 and ids["</tool_response>"] == 75879


@pytest.mark.parametrize("size", [BYTES + len(CONTROL), 4096, 8192, 32768])
def test_any_other_size_ends_with_them(size):
    assert pieces(size) + len(CONTROL) == size and len(CONTROL) == 22


def test_too_small_is_refused():
    with pytest.raises(IqcError, match="no room"):
        pieces(BYTES + len(CONTROL) - 1)
