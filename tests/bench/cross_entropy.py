"""Vocabulary head and cross-entropy, forward and backward, beside what PyTorch and Liger give.

    python tests/bench/cross_entropy.py
    python tests/bench/cross_entropy.py --device cpu --shapes 64x32x100 --print-only

Every contestant gets the same bfloat16 inputs and must come within LIMIT of float64 in the loss and both gradients,
ours also within 1.2 times the error of the plain form; no speed is printed for one that does not. They take turns;
`extra` is the most memory that a contestant allocates beyond its inputs, their gradients among it.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import measure  # noqa: E402

from iqc.kernels.linear_cross_entropy import linear_cross_entropy  # noqa: E402

LIMIT = 1e-2  # norm of the difference over the norm
WORSE = 1.2
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, weight, targets) -> mean loss


def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), targets)


def ours(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(x, weight, targets, torch.ones(len(x), device=x.device)) / len(x)


def contestants() -> dict[str, Loss]:
    found = {"plain": plain, "compiled": torch.compile(plain, dynamic=False), "ours": ours}
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return found
    liger = LigerFusedLinearCrossEntropyLoss()
    return found | {"liger": lambda x, weight, targets: liger(weight, x, targets)}


def exact(x: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    """Loss and both gradients in float64, a few tokens at a time."""
    wide = weight.detach().double().requires_grad_()
    total, grads = torch.zeros((), dtype=torch.float64, device=x.device), []
    for some, target in zip(x.detach().split(2048), targets.split(2048)):
        part = some.double().requires_grad_()
        loss = F.cross_entropy(F.linear(part, wide), target, reduction="sum") / len(x)
        loss.backward()
        total += loss.detach()
        grads.append(part.grad)
    return [total, torch.cat(grads), wide.grad]


def errors(function: Loss, inputs: list[Tensor], reference: list[Tensor]) -> dict[str, float]:
    x, weight, targets = inputs
    loss = function(x, weight, targets)
    found = [loss.detach(), *torch.autograd.grad(loss, (x, weight))]
    return {
        name: ((a.double() - b).norm() / b.norm()).item()
        for name, a, b in zip(("loss", "x", "weight"), found, reference)
    }


def once(function: Loss, inputs: list[Tensor]) -> tuple[float, int]:
    """Milliseconds and bytes beyond the inputs of one forward and backward."""
    x, weight, targets = inputs
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.autograd.grad(function(x, weight, targets), (x, weight))
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end), torch.cuda.max_memory_allocated() - before
    started = time.perf_counter()
    torch.autograd.grad(function(x, weight, targets), (x, weight))
    return 1e3 * (time.perf_counter() - started), 0


def measured(shape: str, device: str, rounds: int) -> dict:
    tokens, width, vocabulary = (int(n) for n in shape.split("x"))
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, width, generator=g, device=device).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, width, generator=g, device=device).mul_(0.02).bfloat16().requires_grad_()
    inputs = [x, weight, torch.randint(vocabulary, (tokens,), generator=g, device=device)]
    functions, rows = contestants(), {}
    reference = exact(*inputs)
    for name, function in list(functions.items()):
        try:
            rows[name] = {"errors": errors(function, inputs, reference)}
        except Exception as error:  # a contestant that runs out of memory, say, is a row that says so
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            del functions[name]
    del reference
    times: dict[str, list[float]] = {name: [] for name in functions}
    extra = dict.fromkeys(functions, 0)
    for turn in range(rounds + 1):
        for name, function in functions.items():
            milliseconds, size = once(function, inputs)
            if turn:
                times[name].append(milliseconds)
                extra[name] = max(extra[name], size)
    base = rows["plain"].get("errors", {})
    for name in functions:
        found = rows[name]["errors"]
        right = max(found.values()) <= LIMIT
        if name == "ours" and base:
            right = right and all(found[key] <= WORSE * base[key] for key in ("x", "weight"))
        rows[name] |= {"right": right, "ms": round(median(times[name]), 2), "extra_gib": round(extra[name] / 2**30, 2)}
    flop = 6 * tokens * width * vocabulary
    for name, row in rows.items():
        if "failed" in row:
            print(f"{shape:18} {name:9} failed: {row['failed'][:200]}")
            continue
        error = "  ".join(f"{key} {value:.2e}" for key, value in row["errors"].items())
        speed = f"{row['ms']:8.2f} ms {flop / row['ms'] / 1e9:6.1f} TFLOP/s" if row["right"] else "WRONG: no figure"
        print(f"{shape:18} {name:9} {speed} {row['extra_gib']:6.2f} GiB extra   errors: {error}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default="4096x5120x76800,16384x5120x76800,65536x768x32768")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {}
    for shape in arguments.shapes.split(","):
        found[shape] = measured(shape, arguments.device, arguments.rounds)
    measure.save("cross_entropy", found, ["torch"], arguments.print_only, arguments.output)


if __name__ == "__main__":
    main()
