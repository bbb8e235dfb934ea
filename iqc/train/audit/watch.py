"""What to do about an update before it is applied: apply it, compute it again, skip its batch, go back, or stop.

Judged are the findings of an audit, a loss or gradient norm that is no number, a loss far above those before and a
gradient norm many times theirs (watch.toml). A decision that is not to apply is an event in RUN/events.jsonl, written
before it takes effect and never cut back: a run that is started again passes over the same batches without computing
them, so it gives the bits of one that was not killed. The window of losses is that of metrics.jsonl.

A roll back is a start from the newest checkpoint, with the batches since passed over; the number of an update stays
that of its batch.
"""

import math
import os
import statistics
import sys
import threading
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from iqc.errors import IqcError
from iqc.train.ranks import Ranks

EVENTS = "events.jsonl"
POLICIES = {
    "mismatch": ("repeat", "stop"),
    "spike": ("note", "skip", "rollback", "stop"),
    "nan": ("stop", "skip", "rollback"),
}
REMEDIES = {
    "mismatch": "look for faulty hardware on the ranks named; the same command goes on from the newest checkpoint",
    "spike": "look at the rows of this update; --on-spike skip or rollback goes on without them",
    "nan": "lower --rate, or look for damaged rows in the data",
}


class RollBack(Exception):
    """Go on from the newest checkpoint; `passed_over` knows the batches since."""


def thresholds() -> dict[str, float]:
    return tomllib.loads(Path(__file__).with_name("watch.toml").read_text("utf-8"))


class Watch:
    """Judges updates by policy, {"mismatch" | "spike" | "nan": one of POLICIES}. All ranks judge alike.

    `newest` gives the number of updates of the newest checkpoint, None where there is none.
    """

    def __init__(self, policy: dict[str, str], directory: str | Path, ranks: Ranks, newest: Callable[[], int | None]):
        self.policy, self.ranks, self.newest = policy, ranks, newest
        self.path = Path(directory) / EVENTS
        self.table = thresholds()
        self.losses: deque[float] = deque(maxlen=int(self.table["window"]))
        self.norms: deque[float] = deque(maxlen=int(self.table["window"]))
        self.passed: dict[int, str] = {}
        self.known: list[dict] = []  # a resumed run meets, and notes, the same again
        self.repeated: int | None = None  # the update that is computed for the second time
        self.step = 0  # the update that the loop is at
        self.lock = threading.Lock()  # stalls are told by another thread
        for event in ranks.once(lambda: read_events(directory)):
            self.known.append(event)
            self._obey(event)

    def resume(self, past: Iterable[dict]) -> None:
        """The lines of metrics.jsonl before the update that comes next."""
        self.losses.clear()
        self.norms.clear()
        for line in past:
            if "skipped" not in line:
                self._remember(line)

    def passed_over(self, step: int) -> str | None:
        """Why the batch of this update, which comes next, is not trained on: the decision of an earlier moment."""
        self.step = step
        return self.passed.get(step)

    def judge(self, step: int, metrics: dict, findings: Sequence[Any] = (), to_blame: Sequence[int] = ()) -> str:
        """ "apply", "repeat" or "skip"; raises RollBack, or IqcError to stop.

        metrics: the update's loss and grad_norm. findings: of the audit; to_blame: after a repetition without any,
        the ranks that had been wrong.
        """
        kind, said = "", {}
        if findings:
            kind = "mismatch"
            said = {"found": [str(finding) for finding in findings[:20]], "findings": len(findings)}
        elif not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["grad_norm"]):
            kind, said = "nan", {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"]}
        elif unusual := self.unusual(metrics):
            kind, said = "spike", unusual
        if not findings and self.repeated == step:
            self._record({"step": step, "kind": "repeated", "decision": "apply", "ranks": list(to_blame)})
        if kind:
            return self._decide(step, kind, said, metrics)
        self._remember(metrics)
        return "apply"

    def unusual(self, metrics: dict) -> dict | None:
        """The measure that is beyond its threshold, if one is."""
        if len(self.losses) < self.table["least"]:
            return None
        middle = statistics.median(self.losses)
        deviation = 1.4826 * statistics.median(abs(loss - middle) for loss in self.losses)
        spread = max(deviation, self.table["floor"] * abs(middle), sys.float_info.min)
        norm = statistics.median(self.norms)
        found = {
            "loss": (metrics["loss"], (metrics["loss"] - middle) / spread),
            "grad_norm": (metrics["grad_norm"], metrics["grad_norm"] / max(norm, sys.float_info.min)),
        }
        for rule, (value, measure) in found.items():
            if measure > self.table[rule]:
                return {"rule": rule, "value": value, "measure": measure, "threshold": self.table[rule]}
        return None

    def _decide(self, step: int, kind: str, said: dict, metrics: dict) -> str:
        decision = self.policy[kind]
        if decision == "repeat" and self.repeated == step:
            decision = "stop"
            said["repeated"] = True
        event = {"step": step, "kind": kind, "decision": decision} | said
        back = self.newest() if decision == "rollback" else None
        if decision == "rollback" and back is None:
            event["decision"] = decision = "stop"
        if back is not None:
            event["to"] = back
        self._record(event)
        if decision == "stop":
            raise IqcError(described(event), remedy=REMEDIES[kind])
        self._obey(event)
        if decision == "rollback":
            raise RollBack(described(event))
        if decision == "repeat":
            self.repeated = step
        if decision == "note":
            self._remember(metrics)
            return "apply"
        return decision

    def stalled(self, stop: bool, phase: str, seconds: float, where: str) -> None:
        """A part of an update hangs: a decision of stalls.py, told by its thread."""
        decision, seconds = "stop" if stop else "note", round(seconds, 1)
        event = {"step": self.step, "kind": "stall", "decision": decision, "rank": self.ranks.rank, "phase": phase}
        self._record(event | {"seconds": seconds, "where": where})

    def _obey(self, event: dict) -> None:
        first = event.get("to", event["step"])
        if event["decision"] in ("skip", "rollback"):
            self.passed |= {step: event["kind"] for step in range(first, event["step"] + 1)}

    def _remember(self, metrics: dict) -> None:
        self.losses.append(metrics["loss"])
        self.norms.append(metrics["grad_norm"])

    def _record(self, event: dict) -> None:
        finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
        stalled = event["kind"] == "stall"  # which each rank has for itself
        if stalled or (self.ranks.main and event["decision"] != "stop"):  # that is the error that ends the run
            print(f"iqc train: {described(event)}", file=sys.stderr, flush=True)
        with self.lock:
            if self.ranks.main and finite not in self.known:
                append_event(self.path, finite)
            self.known.append(finite)


def described(event: dict) -> str:
    """An event as a sentence."""
    step = event["step"]
    match event["kind"]:
        case "mismatch":
            many = f", and {event['findings'] - 1} more" if event["findings"] > 1 else ""
            again = ", also when computed again" if event.get("repeated") else ""
            what = f"silent error: {event['found'][0]}{many}{again}"
        case "repeated":
            ranks = ", ".join(map(str, event["ranks"]))
            what = f"update {step} computed again is sound" + (
                f"; the bits of rank {ranks} had been wrong" if ranks else ""
            )
        case "nan":
            what = f"update {step}: loss {event['loss']}, gradient norm {event['grad_norm']}"
        case "spike":
            measure, most = (format(event[key], ".3g") for key in ("measure", "threshold"))
            what = f"update {step}: {event['rule']} {event['value']:.4g} is unusual ({measure}, more than {most})"
        case "stall":
            what = f"update {step}, rank {event['rank']}: {event['phase']} takes {event['seconds']} s so far, at\n"
            what += event["where"].rstrip()
        case other:
            raise ValueError(f"an event of kind {other!r}")
    match event["decision"]:
        case "repeat":
            return f"{what}: computing the update again"
        case "skip":
            return f"{what}: its batch is skipped"
        case "rollback":
            return f"{what}: going back to the checkpoint of {event['to']} updates, without the batches since"
    return what


def append_event(path: Path, event: dict) -> None:
    """One line, on the disk before what it decides happens; a line cut by a kill is taken away first."""
    with open(path, "a+b") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.write(orjson.dumps(event) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_events(directory: str | Path) -> list[dict]:
    """The events of a run; a last line that a kill cut is not one."""
    path = Path(directory) / EVENTS
    return [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.is_file() else []
