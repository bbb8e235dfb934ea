"""Small programming tasks made by templates, for a first SFT and RL run: an instruction, tests as calls, a reference.

Each template is a tiny Python function of one argument with one to three constants. Expected values come from the
reference itself, written a second time as a Python lambda. The test calls of a task tell it from near misses: for every
task of the template in which one constant is another (a number: a neighbouring one), some call has another answer.
Nor do all calls have the same answer, or their own argument as the answer.

Split: a combination of template and constants is in `test` when the SHA-256 of its id is 0 modulo 5, else in `train`;
both phrasings of a combination are on the same side, so no constants of a test task were seen with its template.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from iqc.errors import UsageError
from iqc.sandbox.values import encode
from iqc.streams.stage import Record, rng

ENTRY_POINT = "f"
_CALLS = 6  # tests of a task, at least
_TRIES = 5000  # inputs drawn to tell one near miss apart


@dataclass(slots=True, frozen=True)
class Template:
    """`constants`: name -> choices. `phrasings`, `body`: format strings; `value`: the body as a Python function."""

    name: str
    argument: str
    constants: dict[str, list[Any]]
    phrasings: tuple[str, str]
    body: str
    value: Callable[..., Callable[[Any], Any]]
    draw: Callable[[Random], Any]
    allowed: Callable[..., bool] = lambda **_: True


def _number(random: Random) -> int:
    return random.randint(-20, 40)


def _natural(random: Random) -> int:
    return random.randint(0, 60)


def _numbers(random: Random) -> list[int]:
    return [random.randint(-10, 30) for _ in range(random.randint(0, 9))]


def _word(random: Random) -> str:
    return "".join(random.choice("abcdefgh") for _ in range(random.randint(0, 9)))


_SMALL = list(range(2, 13))
_LETTERS = list("abcdefgh")
_COMPARE: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "greater than": (">", lambda x, a: x > a),
    "at least": (">=", lambda x, a: x >= a),
    "less than": ("<", lambda x, a: x < a),
    "at most": ("<=", lambda x, a: x <= a),
}

TEMPLATES: tuple[Template, ...] = (
    Template(
        "multiply_add",
        "x",
        {"a": _SMALL, "b": _SMALL},
        ("returns x multiplied by {a} and then increased by {b}", "returns {a} times x plus {b}"),
        "x * {a} + {b}",
        lambda a, b: lambda x: x * a + b,
        _number,
    ),
    Template(
        "subtract_multiply",
        "x",
        {"a": _SMALL, "b": _SMALL},
        (
            "subtracts {a} from x and returns the result multiplied by {b}",
            "returns {b} times the difference x minus {a}",
        ),
        "(x - {a}) * {b}",
        lambda a, b: lambda x: (x - a) * b,
        _number,
    ),
    Template(
        "remainder_add",
        "x",
        {"a": _SMALL, "b": _SMALL},
        ("returns the remainder of x divided by {a}, increased by {b}", "returns x modulo {a} plus {b}"),
        "x % {a} + {b}",
        lambda a, b: lambda x: x % a + b,
        _natural,
    ),
    Template(
        "divisible",
        "x",
        {"a": list(range(2, 31))},
        ("returns whether x is divisible by {a}", "returns True if x is a multiple of {a}, else False"),
        "x % {a} == 0",
        lambda a: lambda x: x % a == 0,
        _natural,
    ),
    Template(
        "compare",
        "x",
        {"how": list(_COMPARE), "a": list(range(-5, 21))},
        ("returns whether x is {how} {a}", "returns True if x is {how} {a}, else False"),
        "x {sign} {a}",
        lambda how, a: lambda x: _COMPARE[how][1](x, a),
        _number,
    ),
    Template(
        "clamp",
        "x",
        {"a": list(range(-5, 6)), "b": list(range(7, 18))},
        ("returns x limited to the range from {a} to {b}", "clamps x between {a} and {b}"),
        "max({a}, min(x, {b}))",
        lambda a, b: lambda x: max(a, min(x, b)),
        _number,
    ),
    Template(
        "choose",
        "x",
        {"a": _SMALL, "b": _SMALL, "c": _SMALL},
        ("returns {b} if x is greater than {a}, else {c}", "returns {c}, or {b} when x is greater than {a}"),
        "{b} if x > {a} else {c}",
        lambda a, b, c: lambda x: b if x > a else c,
        _natural,
        lambda b, c, **_: b != c,
    ),
    Template(
        "filter",
        "xs",
        {"how": list(_COMPARE), "a": list(range(-3, 16))},
        ("returns the numbers of the list xs that are {how} {a}", "keeps only the elements of xs that are {how} {a}"),
        "[x for x in xs if x {sign} {a}]",
        lambda how, a: lambda xs: [x for x in xs if _COMPARE[how][1](x, a)],
        _numbers,
    ),
    Template(
        "map_multiply",
        "xs",
        {"a": _SMALL, "b": _SMALL},
        (
            "returns the list xs with each number multiplied by {a} plus {b}",
            "returns {a} times x plus {b} for each x in xs",
        ),
        "[x * {a} + {b} for x in xs]",
        lambda a, b: lambda xs: [x * a + b for x in xs],
        _numbers,
    ),
    Template(
        "count",
        "xs",
        {"how": list(_COMPARE), "a": list(range(-3, 16))},
        ("counts the numbers in the list xs that are {how} {a}", "returns how many elements of xs are {how} {a}"),
        "sum(1 for x in xs if x {sign} {a})",
        lambda how, a: lambda xs: sum(1 for x in xs if _COMPARE[how][1](x, a)),
        _numbers,
    ),
    Template(
        "sum_first",
        "xs",
        {"a": list(range(1, 7)), "b": _SMALL},
        (
            "returns the sum of the first {a} numbers of xs plus {b}",
            "adds up the first {a} elements of xs and adds {b}",
        ),
        "sum(xs[:{a}]) + {b}",
        lambda a, b: lambda xs: sum(xs[:a]) + b,
        _numbers,
    ),
    Template(
        "sum_last",
        "xs",
        {"a": list(range(1, 7)), "b": _SMALL},
        (
            "returns the sum of the last {a} numbers of xs times {b}",
            "adds up the last {a} elements of xs and multiplies by {b}",
        ),
        "sum(xs[-{a}:]) * {b}",
        lambda a, b: lambda xs: sum(xs[-a:]) * b,
        _numbers,
    ),
    Template(
        "repeat",
        "s",
        {"a": _SMALL, "b": _LETTERS},
        ('returns the string s repeated {a} times with "{b}" at the end', 'returns {a} copies of s followed by "{b}"'),
        's * {a} + "{b}"',
        lambda a, b: lambda s: s * a + b,
        _word,
    ),
    Template(
        "slice",
        "s",
        {"a": list(range(0, 4)), "b": list(range(4, 9))},
        (
            "returns the characters of the string s from index {a} up to but not including {b}",
            "returns the slice of s from {a} to {b}",
        ),
        "s[{a}:{b}]",
        lambda a, b: lambda s: s[a:b],
        _word,
    ),
    Template(
        "replace",
        "s",
        {"a": _LETTERS, "b": _LETTERS},
        ('returns the string s with every "{a}" replaced by "{b}"', 'replaces each "{a}" in s by "{b}"'),
        's.replace("{a}", "{b}")',
        lambda a, b: lambda s: s.replace(a, b),
        _word,
        lambda a, b: a != b,
    ),
    Template(
        "count_letter",
        "s",
        {"a": _LETTERS, "b": _SMALL},
        (
            'returns how often "{a}" occurs in the string s, times {b}',
            'counts the letter "{a}" in s and multiplies by {b}',
        ),
        's.count("{a}") * {b}',
        lambda a, b: lambda s: s.count(a) * b,
        _word,
    ),
)


def generate_tasks(
    count: int, seed: int, split: str = "train", templates: Sequence[str] | None = None, skip: int = 0
) -> Iterator[Record]:
    """`count` different tasks of a split after the first `skip`, in an order that the seed chooses; templates (all, or
    those named) take turns.

    UsageError for an unknown split or template, or when there are not so many tasks.
    """
    if split not in ("train", "test"):
        raise UsageError(f"no split {split!r}", remedy="train or test")
    names = [template.name for template in TEMPLATES]
    if unknown := [name for name in templates or () if name not in names]:
        raise UsageError(f"no template {unknown[0]!r}", remedy="one of " + ", ".join(names))
    columns = []
    for template in TEMPLATES:
        if templates and template.name not in templates:
            continue
        column = [
            (template, constants, phrasing)
            for constants in _combinations(template)
            if split_of(template, constants) == split
            for phrasing in range(len(template.phrasings))
        ]
        rng(seed, "tasks", template.name).shuffle(column)
        columns.append(column)
    total = sum(map(len, columns))
    if skip + count > total:
        raise UsageError(
            f"{skip + count} tasks asked for, the {split} split has {total}", remedy=f"ask for at most {total}"
        )
    turns = (item for row in itertools.zip_longest(*columns) for item in row if item is not None)
    for template, constants, phrasing in itertools.islice(turns, skip, skip + count):
        yield make_task(template, constants, phrasing)


def split_of(template: Template, constants: dict[str, Any]) -> str:
    """The side of a combination, by the rule of the module."""
    digest = hashlib.sha256(_name(template, constants).encode()).digest()
    return "test" if int.from_bytes(digest, "big") % 5 == 0 else "train"


def make_task(template: Template, constants: dict[str, Any], phrasing: int) -> Record:
    """One task record. Its inputs depend on template and constants alone."""
    name = _name(template, constants)
    signature = f"{ENTRY_POINT}({template.argument})"
    words = template.phrasings[phrasing].format(**constants)
    sign = _COMPARE[constants["how"]][0] if "how" in constants else ""
    body = template.body.format(sign=sign, **constants)
    value = template.value(**constants)
    return {
        "id": f"{name}-p{phrasing}",
        "messages": [
            {"role": "system", "content": "You write Python."},
            {"role": "user", "content": f"Write {signature} that {words}."},
        ],
        "tests": [{"args": [encode(x)], "expected": encode(value(x))} for x in _inputs(template, constants)],
        "language": "python",
        "entry_point": ENTRY_POINT,
        "references": [f"def {signature}:\n    return {body}\n"],
        "metadata": {"template": template.name, "parameters": constants, "split": split_of(template, constants)},
    }


def as_chat(task: Record) -> Record:
    """The task as a chat record for SFT: the reference is the assistant's message, the only one with loss."""
    user = [{**message, "loss": False} for message in task["messages"]]
    return {
        "id": task["id"],
        "messages": [*user, {"role": "assistant", "content": task["references"][0], "loss": True}],
        "metadata": task["metadata"],
    }


def near_misses(template: Template, constants: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The constants with one of them changed: a number to a neighbour in its list of choices, a word to any other."""
    for name, choices in template.constants.items():
        place = choices.index(constants[name])
        reach = 1 if isinstance(constants[name], int) else len(choices)
        for other in choices[max(0, place - reach) : place] + choices[place + 1 : place + 1 + reach]:
            changed = {**constants, name: other}
            if template.allowed(**changed):
                yield changed


def _combinations(template: Template) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*template.constants.values()):
        constants = dict(zip(template.constants, values))
        if template.allowed(**constants):
            yield constants


def _name(template: Template, constants: dict[str, Any]) -> str:
    return "-".join([template.name, *(str(value).replace(" ", "_") for value in constants.values())])


def _inputs(template: Template, constants: dict[str, Any]) -> list[Any]:
    """Different inputs: one for every wrong program that no earlier one tells apart, then any up to the number."""
    random = rng(0, "tasks", _name(template, constants))
    value = template.value(**constants)
    inputs = [template.draw(random)]
    constant = value(inputs[0])
    wrongs = [lambda x: constant, lambda x: x, *(template.value(**other) for other in near_misses(template, constants))]
    for wrong in wrongs:
        if any(wrong(x) != value(x) for x in inputs):
            continue
        drawn = (template.draw(random) for _ in range(_TRIES))
        telling = next((x for x in drawn if wrong(x) != value(x)), None)
        if telling is None:
            raise AssertionError(f"{_name(template, constants)}: no input tells a near miss apart")
        inputs.append(telling)
    while len(inputs) < _CALLS:
        x = template.draw(random)
        if x not in inputs:
            inputs.append(x)
    return inputs
