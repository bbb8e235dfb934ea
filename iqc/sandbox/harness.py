"""What happens in the process of one run: load the untrusted code, make the calls, write what came back.

Everything here is at the mercy of the code it runs; nothing that it writes is believed further than `values.decode`.
A request is `{"code", "calls": [[function, args, kwargs], ...]}` or `{"code", "suite", "entry_point", "nonce"}`.
"""

import json
import os
import sys
import traceback
import types
from typing import Any

from iqc.sandbox.values import decode, encode

MODULE = "solution"  # not "__main__": the code under test is imported, as by a test runner


def execute(request: dict[str, Any], results: int) -> None:
    """Run one request; write a JSON line an outcome to the descriptor `results`: a `value`, an `error`, or the nonce.

    The first line says `{"loaded": true}`: the module level ended. Nothing is written for a call that never returned.
    """
    write, dumps = os.write, json.dumps

    def report(outcome: dict[str, Any]) -> None:
        line = dumps(outcome).encode() + b"\n"
        while line:
            line = line[write(results, line) :]

    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    space = module.__dict__
    try:
        exec(compile(request["code"], "<solution>", "exec"), space)
    except BaseException as error:  # SystemExit too: code that ends the process has not been tested
        report({"error": _name(error)})
        return
    report({"loaded": True})
    if "suite" in request:
        try:
            exec(compile(request["suite"], "<tests>", "exec"), space)
            if "check" in space:
                space["check"](space[request["entry_point"]])
            report({"nonce": request["nonce"]})
        except BaseException as error:
            report({"error": _name(error)})
        return
    for function, args, kwargs in request["calls"]:
        try:
            report({"value": encode(space[function](*decode(args), **decode(kwargs)))})
        except BaseException as error:
            report({"error": _name(error)})


def _name(error: BaseException) -> str:
    """`Type: message` in at most 200 characters; the traceback goes to standard error."""
    try:
        traceback.print_exc(limit=-4)
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:  # a __str__ that raises
        return type(error).__name__
