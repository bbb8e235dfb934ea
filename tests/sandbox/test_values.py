"""Values cross the wall unchanged, and nothing else crosses it."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.sandbox.values import decode, encode

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | st.sets(KEYS, max_size=4),
    max_leaves=12,
)


def types(value):
    """The value with the type of each part, so that True is not 1."""
    if isinstance(value, (list, tuple)):
        return type(value), [types(item) for item in value]
    return type(value), value


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_round_trip_through_json(value):
    assert types(decode(json.loads(json.dumps(encode(value))))) == types(value)


def test_what_is_not_plain_is_refused():
    for value in (object(), len, type, 1j, range(3), [object()], {"a": object()}):
        with pytest.raises(TypeError):
            encode(value)


def test_subclasses_lose_their_class():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert type(decode(encode(Liar(3)))) is int


def test_nan_and_infinity():
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode(-math.inf)) == -math.inf


@pytest.mark.parametrize(
    "data", [{}, {"eval": "1"}, {"a": 1, "b": 2}, {"float": "1"}, {"int": 3}, {"set": [[1]]}, {"dict": [1]}]
)
def test_malformed_data_is_refused(data):
    with pytest.raises((ValueError, TypeError)):
        decode(data)
