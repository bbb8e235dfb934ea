"""What the audit of `iqc train` costs, in whole updates on one device.

    python tests/bench/audit_cost.py --preset 100m --rows 32 --length 2048 --micro-rows 8       on a GPU
    python tests/bench/audit_cost.py --preset nano --rows 8 --length 256 --micro-rows 4 --print-only

Updates take turns: without the audit, with what it does at every update, and audited. One update in 100 is taken to be
audited. Deterministic mode, without which a GPU cannot be audited, is a cost of its own: processes with it and without
take turns. Fails when an audited update finds anything.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import measure  # noqa: E402

AUDITED_IN = 100  # updates, of which one is audited


def cost(arguments: argparse.Namespace) -> dict:
    """Seconds of an update by kind, in this process: plain, checked, audited."""
    import torch

    from iqc.model.compiled import compile_blocks
    from iqc.model.config import preset
    from iqc.model.decoder import Decoder, Recompute
    from iqc.train.audit.audit import Audit
    from iqc.train.engines.local import Local
    from iqc.train.environment import deterministic
    from iqc.train.optimizer import make_optimizer
    from iqc.train.ranks import Ranks

    if arguments.deterministic:
        deterministic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = preset(arguments.preset)
    config.num_hidden_layers = arguments.layers or config.num_hidden_layers
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Decoder(config, device=device).to(dtype).train()
    model.model.recompute = Recompute.parse(arguments.recompute)
    if device.type == "cuda":
        compile_blocks(model, dynamic=False)
    ranks = Ranks(device=device)
    engine = Local(model, make_optimizer(model, 1e-5, "adamw"), ranks, 1.0, None)
    audit = Audit(engine, AUDITED_IN)
    audit.shared, audit.gradients_are_shared = list(model.named_parameters()), True  # as on one of several ranks
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randint(config.vocab_size, (arguments.rows, arguments.length), generator=generator, device=device)

    def accumulate(rows: Any) -> Any:
        parts = rows.split(arguments.micro_rows or len(rows))
        total = torch.zeros((), dtype=torch.float64, device=device)
        for number, part in enumerate(parts, 1):
            nll, _ = engine.compute(lambda model, tokens: model.loss(tokens), part)
            engine.backward(nll / rows.numel(), number == len(parts))
            total += nll.detach()
        return {"loss": total}

    def update(kind: str) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        step = AUDITED_IN - 1 if kind == "audited" else 0
        made = accumulate(rows) if kind == "plain" else audit.gradients(step, rows, accumulate)
        engine.reduce()
        findings = [] if kind == "plain" else audit.check(step)
        made["loss"].item()
        engine.apply(1e-5)
        if kind == "checked":
            audit.applied(step)
        elif kind == "audited":
            audit.applied(step - 1)  # the seal that an audited update finds
        if device.type == "cuda":
            torch.cuda.synchronize()
        if findings:
            raise SystemExit(f"not the same bits twice: {findings[0]}; run with --deterministic")
        return time.perf_counter() - started

    kinds = ("plain", "checked", "audited") if arguments.deterministic or device.type == "cpu" else ("plain",)
    for kind in kinds:
        update(kind)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.repeats):
        for kind in kinds:
            seconds[kind].append(update(kind))
    return {kind: median(found) for kind, found in seconds.items()} | {"tokens": rows.numel(), "device": str(device)}


def costs(arguments: argparse.Namespace) -> dict:
    """The cost in two processes that take turns: deterministic and not."""
    found: dict[str, list[dict]] = {"": [], "--deterministic": []}
    for _ in range(2):
        for mode, results in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", *([mode] if mode else [])]
            made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(made.stdout.splitlines()[-1]))
    exact = {kind: median(one[kind] for one in found["--deterministic"]) for kind in ("plain", "checked", "audited")}
    plain = median(one["plain"] for one in found[""])
    with_audit = ((AUDITED_IN - 1) * exact["checked"] + exact["audited"]) / AUDITED_IN
    return {
        "device": found[""][0]["device"], "tokens an update": found[""][0]["tokens"], "seconds": exact,
        "cost of the audit, %": round(100 * (with_audit / exact["plain"] - 1), 2),
        "cost of deterministic mode, %": round(100 * (exact["plain"] / plain - 1), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="100m")
    parser.add_argument("--layers", type=int, default=0, help="of the preset; 0: as many as it has")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--micro-rows", type=int, default=0)
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path)
    for name in ("--one", "--deterministic"):  # of the processes that this one starts
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(cost(arguments)))
    else:
        measure.save("audit_cost", costs(arguments), ["torch"], arguments.print_only, arguments.output)


if __name__ == "__main__":
    main()
