"""Single-bit faults against the audit of `iqc train`, on CPUs, one rank and two: `python tests/bench/faults.py`.

Faults go where matrix.toml (iqc/train/audit) says `inject`, half of them into audited updates, half into others; on two
ranks into either. After a finding the update is computed again: a fault that passes must be gone, and the bits those of
a run without it; one in memory must be found again, which stops a run. A flip is none when all bits that the update
would have been made of (reduced gradients, weights, the optimiser's state, the loss) are those of an update without it.
Fails when a must-see goes by, or on an audited update a sampled one.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import measure  # noqa: E402

ALONE, TOGETHER = ("local-1",), ("local-n", "zero-1", "zero-2", "zero-3")
NEVER = 1 << 40
VOCABULARY, LENGTH, ROWS = 64, 16, 2


class Trial:
    """A small looped model on an engine, at one state that every fault starts from."""

    def __init__(self, layout: str, ranks: Any):
        import torch

        from iqc.model.config import ModelConfig
        from iqc.model.decoder import Decoder, Recompute
        from iqc.train.audit.audit import Audit, held
        from iqc.train.engines import deepspeed
        from iqc.train.engines.deepspeed import DeepSpeed
        from iqc.train.engines.local import Local
        from iqc.train.optimizer import make_optimizer

        config = ModelConfig(VOCABULARY, 32, 48, 1, 2, 1, LENGTH, loop_num=2, loop_window_size=8)
        model = Decoder(config, seed=1).train()
        model.model.recompute = Recompute.parse("block")
        optimizer = make_optimizer(model, 1e-3, "adamw")
        self.layout, self.ranks = layout, ranks
        self.engine: Any
        if layout.startswith("zero"):
            deepspeed.WHOLE = 1000  # norms stay whole, as small weights do; matrices are divided
            self.engine = DeepSpeed(model, optimizer, ranks, 1.0, int(layout[-1]))
        else:
            self.engine = Local(model, optimizer, ranks, 1.0, None)
        self.audit = Audit(self.engine, 1, lambda step, rank: self.rows(rank))
        self.calls = 0
        for _ in range(2):
            self.accumulate(self.rows(ranks.data_rank))
            self.engine.reduce()
            self.engine.apply(1e-3)
        self.kept = {name: tensor.detach().clone() for name, tensor in held(self.engine).items()}
        self.held = held
        self.good = {late: self.clean(late) for late in (False, True)}
        self.torch = torch

    def rows(self, rank: int) -> Any:
        import torch

        return torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(rank))

    def accumulate(self, rows: Any) -> Any:
        """Two micro-batches."""
        total = 0.0
        for number in range(2):
            nll, _ = self.engine.compute(lambda model, part: model.loss(part), rows[number : number + 1])
            self.engine.backward(nll / (ROWS * LENGTH * self.ranks.size), number == 1)
            total = total + nll.detach().double()
        return {"loss": total}

    def bits(self, made: Any) -> list[int]:
        """All that the update would be made of, and its loss, by rank."""
        from iqc.kernels.fingerprint import fingerprint, fingerprints

        stored = [gradient for _, gradient in self.engine.gradients()] + list(self.held(self.engine).values())
        return self.ranks.gather(fingerprint(fingerprints([*stored, made["loss"]]))).tolist()

    def restore(self) -> None:
        with self.torch.no_grad():
            for name, tensor in self.held(self.engine).items():
                tensor.copy_(self.kept[name])

    def clean(self, late: bool) -> list[int]:
        """Bits of the update without a fault; `late`: of the one after it."""
        import torch

        self.torch = torch
        if late:
            self.prelude()
        made = self.accumulate(self.rows(self.ranks.data_rank))
        self.engine.reduce()
        found = self.bits(made)
        self.engine.discard()
        self.restore()
        self.audit.ledger.clear()
        return found

    def prelude(self) -> None:
        """One whole update before the one that is looked at."""
        self.accumulate(self.rows(self.ranks.data_rank))
        self.engine.reduce()
        self.audit.ledger.clear()
        self.engine.apply(1e-3)

    def attempt(self, step: int, during: Callable[[], Any] = nullcontext, after: Callable[[], Any] = int) -> Any:
        """Findings and bits of an update. `during` is entered for its last computation, `after` called behind it."""
        audited = self.audit.audited(step)
        last = 2 + self.audit.elsewhere(step) if audited else 1
        calls = 0
        with ExitStack() as stack:

            def accumulate(rows: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == last:
                    stack.enter_context(during())
                return self.accumulate(rows)

            made = self.audit.gradients(step, self.rows(self.ranks.data_rank), accumulate)
            self.engine.reduce()
        after()
        found = self.audit.check(step)
        return found, self.bits(made)

    def fault(self, place: str, audited: bool, seed: str) -> dict:
        """One fault: what came of it. All ranks draw alike whose it is."""
        from iqc.train.audit import faults

        draw = random.Random(seed)
        guilty = draw.randrange(self.ranks.size)
        here = guilty == self.ranks.rank
        self.audit.every = 1 if audited else NEVER
        step = 4 + draw.randrange(4)  # one of four is also computed elsewhere
        engine, late = self.engine, False
        during: Callable[[], Any] = nullcontext
        after: Callable[[], Any] = int
        at_rest: Callable[..., str] | None = None
        match place:
            case "parameters":
                at_rest = faults.weight
            case "optimizer state":
                at_rest = faults.moment
            case "activations":
                during = (lambda: faults.activation(engine, draw)) if here else nullcontext
            case "gradients before the reduction":
                during = (lambda: faults.own_gradient(engine, draw)) if here else nullcontext
            case "gradients after the reduction":
                after = (lambda: faults.reduced_gradient(engine, draw)) if here else int
            case _:
                kinds = faults.GATHERS if "gathered" in place else faults.SUMS
                late = "gathered" in place and self.layout != "zero-3"
                at = draw.randrange(self.count(kinds, late))
                spoil = (lambda: faults.Messages(kinds, draw, at)) if here else nullcontext
                if late:
                    with spoil():
                        self.prelude()
                else:
                    during = spoil
        self.audit.seal = {}
        self.audit.applied(step - 1)
        if at_rest and here:
            at_rest(engine, draw)
        found, bits = self.attempt(step, during, after)
        changed = bits != self.good[late]
        result = {"seen": bool(found), "changed": changed, "checks": sorted({finding.check for finding in found})}
        if found:
            assert all(finding.step == step and finding.tensor and finding.ranks for finding in found)
            engine.discard()
            again, bits = self.attempt(step)
            result["sound when repeated"] = not again and bits == self.good[late]
            result["seen when repeated"] = bool(again)
            result["named"] = [guilty] == sorted({r for f in found for r in f.ranks}) or self.audit.to_blame(step) == (
                guilty,
            )
        engine.discard()
        self.restore()
        self.audit.failed = None
        self.audit.ledger.clear()
        return result

    def count(self, kinds: tuple[str, ...], late: bool) -> int:
        """How many messages an update has, or the applying of one."""
        from iqc.train.audit import faults

        with faults.Messages(kinds, random.Random(), -1) as messages:
            if late:
                self.prelude()
            else:
                self.accumulate(self.rows(self.ranks.data_rank))
                self.engine.reduce()
        self.engine.discard()
        self.restore()
        self.audit.ledger.clear()
        return messages.seen


def trials(layout: str, ranks: Any, each: int, seed: int) -> list[dict]:
    """Faults in all places of a layout, `each` a place, by turns in audited updates and in others."""
    from iqc.train.audit.matrix import rows

    trial, found = Trial(layout, ranks), []
    for turn, row in enumerate(row for row in rows() if row.inject and layout in row.layouts):
        for number in range(each):
            about = {"layout": layout, "place": row.place, "audited": (turn + number) % 2 == 0}
            found.append(about | trial.fault(row.place, about["audited"], f"{seed} {layout} {row.place} {number}"))
    return found


def world(arguments: argparse.Namespace) -> None:
    """One rank of several, or the only one."""
    import torch

    from iqc.train.ranks import Ranks

    torch.set_num_threads(1)
    with Ranks.start() as ranks:
        layouts = arguments.layouts.split(",")
        found = [one for layout in layouts for one in trials(layout, ranks, arguments.each, arguments.seed)]
        if ranks.main:
            Path(arguments.output).write_text(json.dumps(found))


def table(found: list[dict]) -> tuple[list[dict], list[str]]:
    """By place and layout; and what went wrong."""
    from iqc.train.audit.matrix import LAYOUTS, rows

    lines, wrong = [], []
    for row in (row for row in rows() if row.inject):
        for layout in (layout for layout in LAYOUTS if layout in row.layouts):
            cell = [one for one in found if (one["place"], one["layout"]) == (row.place, layout)]
            if not cell:
                continue
            real = {k: [one for one in cell if one["changed"] and one["audited"] is k] for k in (True, False)}
            seen = {k: sum(one["seen"] for one in many) for k, many in real.items()}
            checks = Counter(check for one in cell for check in one["checks"])
            line = {
                "place": row.place, "layout": layout, "verdict": row.verdict, "faults": len(cell),
                "no stored bit changed": sum(not one["changed"] for one in cell),
                "audited": len(real[True]), "seen on audited": seen[True],
                "others": len(real[False]), "seen on others": seen[False],
                "repeated and sound": sum(one.get("sound when repeated", False) for one in cell),
                "repeated and seen again": sum(one.get("seen when repeated", False) for one in cell),
                "rank named": sum(one.get("named", False) for one in cell),
                "checks": dict(checks),
            }  # fmt: skip
            lines.append(line)
            name = f"{row.place}, {layout}"
            if row.verdict != "cannot-see" and seen[True] < len(real[True]):
                wrong.append(f"{name}: {len(real[True]) - seen[True]} went by on audited updates")
            if row.verdict == "must-see" and seen[False] < len(real[False]):
                wrong.append(f"{name}: {len(real[False]) - seen[False]} went by")
            if any(one["seen"] and not (one["sound when repeated"] or one["seen when repeated"]) for one in cell):
                wrong.append(f"{name}: a repetition without findings had other bits")
            if any(one["seen"] for one in cell) and row.check not in checks:
                wrong.append(f"{name}: not seen by the check of {row.check}")
    return lines, wrong


def show(lines: list[dict]) -> None:
    heads = ("place", "layout", "verdict", "faults", "no bit", "audited", "others", "sound", "again", "named")
    form = "{:44} {:8} {:10}" + " {:>9}" * 7
    print(form.format(*heads), file=sys.stderr)
    for line in lines:
        audited, others = (f"{line[f'seen on {k}']}/{line[k]}" for k in ("audited", "others"))
        numbers = [line[k] for k in ("repeated and sound", "repeated and seen again", "rank named")]
        about = [line["place"].removeprefix("received "), line["layout"], line["verdict"]]
        counts = [line["faults"], line["no stored bit changed"], audited, others, *numbers]
        print(form.format(*about, *counts), file=sys.stderr)


def inject(arguments: argparse.Namespace) -> dict:
    """All faults, in one world of one rank and one of two."""
    from iqc.train.audit.matrix import rows

    cells = sum(len(row.layouts) for row in rows() if row.inject)
    each = -(-arguments.faults // cells)
    found = []
    env = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as place:
        for layouts, launcher in (
            (ALONE, [sys.executable]),
            (TOGETHER, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
        ):
            output = Path(place) / layouts[0]
            world = ["--world", "--layouts", ",".join(layouts), "--each", each, "--seed", arguments.seed]
            command = [*launcher, __file__, *world, "--output", output]
            subprocess.run(list(map(str, command)), env=env, check=True, stdout=sys.stderr)
            found += json.loads(output.read_text())
    lines, wrong = table(found)
    show(lines)
    real = [one for one in found if one["changed"]]
    return {
        "faults": len(found), "changed a stored bit": len(real), "seen": sum(one["seen"] for one in real),
        "table": lines, "wrong": wrong,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--world", action="store_true", help=argparse.SUPPRESS)  # of the processes that this one starts
    parser.add_argument("--layouts", help=argparse.SUPPRESS)
    parser.add_argument("--each", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.world:
        world(arguments)
        return
    found = inject(arguments)
    measure.save("faults", found, ["torch", "deepspeed"], arguments.print_only, arguments.output)
    if found["wrong"]:
        raise SystemExit("\n".join(found["wrong"]))


if __name__ == "__main__":
    main()
