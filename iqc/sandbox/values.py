"""Values that cross the wall of the sandbox: plain Python data as JSON with type tags, nothing else.

None, bool, str, int, finite float and list are themselves in JSON; every other type is an object with one key that
names it: `{"tuple": [...]}`, `{"set": [...]}`, `{"frozenset": [...]}`, `{"dict": [[key, value], ...]}`,
`{"bytes": "hex"}`, `{"int": "0x..."}` (beyond 64 bits: Python limits the decimal digits it converts),
`{"float": "nan"}`. There is no pickle: what comes back is data whose `==` is Python's own, whatever the code returned.
"""

import math
from typing import Any


def encode(value: Any) -> Any:
    """`value` as JSON data. Subclasses of plain types lose their class. TypeError names a type that cannot cross."""
    if value is None or isinstance(value, (bool, str)):
        return str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -(2**63) <= number < 2**63 else {"int": hex(number)}
    if isinstance(value, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else {"float": repr(real)}
    if isinstance(value, list):
        return [encode(item) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in tuple.__iter__(value)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    if isinstance(value, set):
        return {"set": [encode(item) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item) for item in frozenset.__iter__(value)]}
    raise TypeError(f"a value of type {type(value).__name__} cannot leave the sandbox")


def decode(data: Any) -> Any:
    """The inverse of `encode`. ValueError or TypeError for anything that `encode` does not write."""
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("a tagged value is an object with one key")
    [(tag, body)] = data.items()
    match tag:
        case "tuple":
            return tuple(decode(item) for item in body)
        case "set":
            return {decode(item) for item in body}
        case "frozenset":
            return frozenset(decode(item) for item in body)
        case "dict":
            return {decode(key): decode(item) for key, item in body}
        case "bytes":
            return bytes.fromhex(body)
        case "int":
            return int(body, 16)
        case "float" if body in ("nan", "inf", "-inf"):
            return float(body)
    raise ValueError(f"unknown type tag {tag!r}")
