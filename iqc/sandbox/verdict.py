"""Whether a program passes the tests of a task: the expected values never enter the sandbox.

`tests` of a task record is a list of calls, `{"args": [...], "kwargs": {...}, "expected": value}` with values as in
`values.py` (optional: `function`, else the task's `entry_point`; `tolerance`, absolute), or the source of a suite as in
HumanEval (`def check(candidate)`, or bare asserts on the entry point). A suite whose asserts all compare one call on
literals with a literal is made into such a list (`split`), and the comparison happens here. Another suite runs in the
process of the code that it tests; its verdict says so (`same-process`), because that code could forge it.
"""

import ast
import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from iqc.errors import BadRecord
from iqc.sandbox.values import decode

if TYPE_CHECKING:
    from iqc.sandbox.pool import Limits, Sandbox

_TRUTHY, _FALSY = object(), object()  # expected values of `assert f(x)` and `assert not f(x)`
_LARGEST_POWER = 64


@dataclass(slots=True)
class Test:
    """One call and what must come back: equal by ==, or within `tolerance` (absolute, inclusive) for numbers."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    expected: Any
    tolerance: float | None = None
    same_type: bool = False  # `is True` refuses 1

    def accepts(self, value: Any) -> bool:
        try:
            if self.expected is _TRUTHY or self.expected is _FALSY:
                return bool(value) is (self.expected is _TRUTHY)
            if self.tolerance is not None:
                return math.fabs(value - self.expected) <= self.tolerance
            return bool(value == self.expected) and not (self.same_type and type(value) is not type(self.expected))
        except (TypeError, OverflowError, RecursionError):
            return False


@dataclass(slots=True)
class Verdict:
    """`fraction` of the tests passed (0 or 1 for a same-process suite); `kind` is `calls` or `same-process`."""

    passed: bool
    fraction: float
    kind: str
    detail: str


def run_tests(sandbox: "Sandbox", task: dict[str, Any], code: str, limits: "Limits | None" = None) -> Verdict:
    """The verdict on a whole program. BadRecord when the task has no tests that can be run."""
    if task.get("language", "python") != "python":
        raise BadRecord(f"task {task.get('id')}: no runner for {task['language']!r}", remedy="only python is run")
    tests = calls_of(task)
    if tests is None:
        result = sandbox.run_suite(code, task["tests"], task["entry_point"], limits)
        passed = result.status == "ok"
        detail = result.results[0].error if result.results else None
        return Verdict(passed, float(passed), "same-process", "passed" if passed else detail or result.status)
    result = sandbox.run(code, [(test.function, test.args, test.kwargs) for test in tests], limits)
    good = [o.error is None and test.accepts(o.value) for test, o in zip(tests, result.results)]
    fraction = sum(good) / len(tests)
    passed = result.status == "ok" and len(good) == len(tests) and all(good)
    if passed:
        detail = "passed"
    elif result.status != "ok":
        last = result.stderr.strip().splitlines()[-1:] or [""]
        detail = f"{result.status}: {last[0]}" if last[0] else result.status
    else:
        wrong = good.index(False)
        detail = f"test {wrong}: " + (result.results[wrong].error or "wrong value")
    return Verdict(passed, fraction, "calls", detail)


def calls_of(task: dict[str, Any]) -> list[Test] | None:
    """The task's tests as calls, or None for a suite that must run beside the code. BadRecord when malformed."""
    tests, entry_point = task.get("tests"), task.get("entry_point")
    if not tests or not isinstance(entry_point, str):
        raise BadRecord(f"task {task.get('id')}: no tests or no entry_point", remedy="give both in the task record")
    if isinstance(tests, str):
        return split(tests, entry_point)
    try:
        return [
            Test(
                test.get("function", entry_point),
                [decode(value) for value in test.get("args", [])],
                {name: decode(value) for name, value in test.get("kwargs", {}).items()},
                decode(test["expected"]),
                test.get("tolerance"),
            )
            for test in tests
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRecord(
            f"task {task.get('id')}: malformed test: {error!r}", remedy="a test is {args, kwargs, expected}"
        ) from None


def split(suite: str, entry_point: str) -> list[Test] | None:
    """A suite of asserts as calls; None unless every one is a comparison of one call on literals with a literal."""
    try:
        body = ast.parse(suite).body
    except SyntaxError:
        return None
    names = {entry_point}
    tests: list[Test] = []
    queue = list(body)
    while queue:
        node = queue.pop(0)
        match node:
            case ast.FunctionDef(name="check", args=ast.arguments(args=[ast.arg(arg=candidate)])):
                names.add(candidate)
                queue = [*node.body, *queue]
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(value=ast.Constant()):
                pass  # an import is of use only to what is not a literal
            case ast.Assign(targets=[ast.Name(id="METADATA")]):
                pass
            case ast.Expr(value=ast.Call(func=ast.Name(id="check"))):
                pass
            case ast.Assert(test=ast.Constant(value=constant)) if constant:
                pass  # HumanEval's "assert True, ..." between the real ones
            case ast.Assert(test=condition):
                test = _test(condition, names)
                if test is None:
                    return None
                tests.append(replace(test, function=entry_point))
            case _:
                return None
    return tests or None


def _test(condition: ast.expr, names: set[str]) -> Test | None:
    """One assert's condition: f(..) == v, v == f(..), f(..) is v, f(..), not f(..), abs(f(..) - v) < tolerance."""
    try:
        match condition:
            case ast.Compare(
                left=ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left, ast.Sub(), right)]),
                ops=[ast.Lt() | ast.LtE() as operator],
                comparators=[bound],
            ):
                tolerance = float(_literal(bound))
                if isinstance(operator, ast.Lt):
                    tolerance = math.nextafter(tolerance, -math.inf)
                call, expected = (left, right) if _is_call(left, names) else (right, left)
                return replace(_call(call, names), expected=float(_literal(expected)), tolerance=tolerance)
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                call, expected = (left, right) if _is_call(left, names) else (right, left)
                return replace(_call(call, names), expected=_literal(expected))
            case ast.Compare(left=left, ops=[ast.Is()], comparators=[ast.Constant(value=None | True | False as value)]):
                return replace(_call(left, names), expected=value, same_type=True)
            case ast.UnaryOp(op=ast.Not(), operand=call):
                return replace(_call(call, names), expected=_FALSY)
            case ast.Call():
                return replace(_call(condition, names), expected=_TRUTHY)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        pass
    return None


def _is_call(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _call(node: ast.expr, names: set[str]) -> Test:
    if not (isinstance(node, ast.Call) and _is_call(node, names)):
        raise ValueError("not a call of the entry point")
    kwargs = {str(word.arg): _literal(word.value) for word in node.keywords if word.arg is not None}
    if len(kwargs) != len(node.keywords):
        raise ValueError("** in a call")
    return Test("", [_literal(arg) for arg in node.args], kwargs, None)


class _Fold(ast.NodeTransformer):
    """Arithmetic on numbers and joined strings (`1/3`, `"a" + "b"`): tests write them where a literal is meant."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = ast.literal_eval(self.visit(node.left)), ast.literal_eval(self.visit(node.right))
        value: Any
        if isinstance(left, str) and isinstance(right, str) and isinstance(node.op, ast.Add):
            return ast.copy_location(ast.Constant(left + right), node)
        if not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            raise ValueError("not arithmetic")
        match node.op:
            case ast.Add():
                value = left + right
            case ast.Sub():
                value = left - right
            case ast.Mult():
                value = left * right
            case ast.Div() if right:
                value = left / right
            case ast.Pow() if 0 <= right <= _LARGEST_POWER and abs(left) <= _LARGEST_POWER:
                value = left**right
            case _:
                raise ValueError("not folded")
        return ast.copy_location(ast.Constant(value), node)


def _literal(node: ast.expr) -> Any:
    """The value of a literal. ValueError for anything else."""
    return ast.literal_eval(_Fold().visit(copy.deepcopy(node)))
