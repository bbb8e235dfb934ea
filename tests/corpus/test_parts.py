from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from iqc.corpus.parts import cut, fits, split


@st.composite
def repositories(draw):
    """Groups of file numbers, sizes in two units, and a limit that every single file keeps."""
    count = draw(st.integers(0, 12))
    sizes = [(draw(st.integers(1, 10)), draw(st.integers(0, 10))) for _ in range(count)]
    limit = (draw(st.integers(10, 30)), draw(st.integers(10, 30)))
    groups: dict[int, list[int]] = {}
    for number in range(count):
        groups.setdefault(draw(st.integers(0, 4)), []).append(number)
    return list(groups.values()), sizes, limit


def total(numbers, sizes):
    return tuple(sum(sizes[number][unit] for number in numbers) for unit in (0, 1))


@given(repositories())
def test_parts_fit_hold_every_file_once_and_in_order(repository):
    groups, sizes, limit = repository
    parts = split(groups, sizes, limit)
    assert sorted(number for part in parts for number in part) == list(range(len(sizes)))
    assert all(part == sorted(part) and part and fits(total(part, sizes), limit) for part in parts)


@given(repositories())
def test_what_is_independent_and_fits_is_never_cut(repository):
    groups, sizes, limit = repository
    parts = split(groups, sizes, limit)
    for group in groups:
        holding = [part for part in parts if set(part) & set(group)]
        if fits(total(group, sizes), limit):
            assert len(holding) == 1
        else:  # cut in order: nothing of a later part comes before what is in an earlier one
            pieces = [number for part in holding for number in part if number in group]
            assert pieces == group and len(holding) > 1


@given(repositories())
def test_neighbours_would_not_have_fitted_together(repository):
    groups, sizes, limit = repository
    parts = split(groups, sizes, limit)
    whole = [part for part in parts if all(set(group) <= set(part) or not set(group) & set(part) for group in groups)]
    for one, other in pairwise(parts):
        if one in whole and other in whole:
            first = next(group for group in groups if set(group) <= set(other))
            assert not fits(total([*one, *first], sizes), limit)


def test_small_parts_share_a_record_and_a_large_one_is_cut_between_files():
    groups = [[0], [1, 3, 4], [2], [5], [6]]
    assert split(groups, [(3,), (4,), (1,), (4,), (4,), (2,), (9,)], (10,)) == [[0], [1, 3], [2, 4, 5], [6]]


@given(st.text("ab\n\r\u2028", max_size=60), st.integers(2, 12))
def test_pieces_of_a_text_are_its_lines_and_fit(text, limit):
    found = cut(text, lambda piece: (len(piece) + 1,), (limit,))
    longest = max((len(line) + 1 for line in text.split("\n")[:-1]), default=0)
    if max(longest, len(text.rpartition("\n")[2])) + 1 > limit:
        assert not found
    elif text:
        assert "".join(piece for _, piece in found) == text
        assert all(len(piece) + 1 <= limit and piece.count("\n") - piece.endswith("\n") >= 0 for _, piece in found)
        before = 0
        for line, piece in found:
            assert line == text[:before].count("\n") + 1 and (not before or text[before - 1] == "\n")
            before += len(piece)


def test_a_piece_that_is_larger_than_its_lines_together_is_halved():
    """As with tokens, a size need not add up: here each line costs nothing alone and a pair of them 3."""
    found = cut("a\nb\nc\nd\n", lambda piece: (3 * (piece.count("\n") // 2),), (3,))
    assert found == [(1, "a\nb\n"), (3, "c\nd\n")]
