import pytest

from iqc.errors import IqcError
from iqc.tokens.special import BYTES, CONTROL, pieces, special_ids


def test_released_size_has_the_released_ids():
    ids = special_ids(76_800)
    assert ids["<CLS>"] == 75858 and ids["<|im_start|>"] == 75863 and ids["<|im_end|>"] == 75864
    assert ids["<|endoftext|>"] == 75869 and ids["<think>"] == 75872 and ids["</tool_response>"] == 75879


@pytest.mark.parametrize("size", [BYTES + len(CONTROL), 4096, 8192, 32768])
def test_any_other_size_ends_with_them(size):
    ids = list(special_ids(size).values())
    assert ids == list(range(pieces(size), size)) and len(ids) == 22


def test_too_small_is_refused():
    with pytest.raises(IqcError, match="no room"):
        special_ids(BYTES + len(CONTROL) - 1)
