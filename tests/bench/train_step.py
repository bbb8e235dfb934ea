"""Whole training steps (forward, backward, optimiser) on one GPU, beside Hugging Face's Llama under torch.compile.

    python tests/bench/train_step.py [--cases 7b-4k,100m] [--output FILE]
    python tests/bench/train_step.py --device cpu --cases nano,nano-loop --print-only

Both models are the same tensors: the peer is given our parameters, and our AdamW and torch's fused one step the same
moments, so that weights and the precision of all state are equal by construction and memory counts them once for
either. They are bfloat16, or float32 with both models under autocast to bfloat16 (the cases with masters). A case is a
process of its own; inside it the two take turns, and a matrix product of 8192 is timed before and after. No ratio is
printed for a case unless both are right: losses alike, and our gradients no further from float32 ones than WORSE times
the peer's (where attention in float32 is too large: the two alike). Model FLOPs are those of `iqc model show`: 6 for
each parameter of the blocks, pass and token, the head once, half of the attention's square three times; window and
recompute are not counted.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import measure  # noqa: E402

GIB = 1 << 30


@dataclass(slots=True)
class Case:
    """One row of the table. `recompute` is what iqc.model.decoder.Recompute parses."""

    preset: str
    batch: int
    length: int
    layers: int = 0  # 0: the preset's
    loops: int = 1
    peer: str = ""  # "compiled", "checkpointed" (and compiled), or none
    recompute: str = "none"
    precision: str = "bf16-pure"  # or bf16: weights, gradients and moments in float32, products in bfloat16
    warm: int = 2  # untimed steps after the comparison
    rounds: int = 3
    steps: int = 3  # of a round, timed
    limit: int = 150  # seconds


CASES = {
    "7b-4k": Case("7b", 1, 4_096, peer="compiled", limit=200),
    "7b-32k": Case("7b", 1, 32_768, peer="checkpointed", recompute="mlp", warm=1, rounds=2, steps=1, limit=300),
    "100m": Case("100m", 32, 2_048, peer="compiled", warm=3, rounds=4, steps=5),
    "loop4-4k": Case("7b", 1, 4_096, layers=4, loops=2),
    "loop4-32k": Case("7b", 1, 32_768, layers=4, loops=2, rounds=2, steps=2),
    "loop14-4k": Case("7b", 1, 4_096, layers=14, loops=2),
    "loop14-32k": Case("7b", 1, 32_768, layers=14, loops=2, recompute="mlp:19", warm=1, rounds=1, steps=3),
    "7b-4k-masters": Case("7b", 1, 4_096, peer="compiled", precision="bf16", limit=200),
    "100m-masters": Case("100m", 32, 2_048, peer="compiled", precision="bf16", warm=3, rounds=4, steps=5),
    "loop4-4k-masters": Case("7b", 1, 4_096, layers=4, loops=2, precision="bf16"),
}
SMALL = {  # to try the script; not among the figures
    "nano": Case("nano", 2, 128, peer="compiled", warm=1, rounds=2, steps=2),
    "nano-checkpointed": Case("nano", 2, 128, peer="checkpointed", recompute="mlp:3", warm=1, rounds=2, steps=2),
    "nano-loop": Case("nano", 2, 128, loops=2, recompute="mlp:6", warm=1, rounds=2, steps=2),
}
# Largest relative difference between the losses of two right implementations, and between their gradients (norm of the
# difference over the norm). bfloat16 keeps 8 bits and 14 random layers amplify each rounding.
TOLERANCE = {"bf16-pure": (2e-3, 1e-1), "bf16": (2e-3, 1e-1), "fp32": (1e-5, 1e-3)}
WORSE = 1.2
EXACT_LENGTH = 4_096  # longest row for which attention in float32 fits


def flops(case: Case, config) -> float:
    """Model FLOPs of a step, as `iqc model show` counts them."""
    from iqc.model import describe

    return case.batch * case.length * sum(addend.value for addend in describe.flops(config, case.length))


class Side:
    """One of the two: a way to make the loss of some tokens, and what was measured of its steps."""

    def __init__(self, name: str, loss: Callable, optimizer, device):
        self.name, self.loss, self.optimizer, self.device = name, loss, optimizer, device
        self.milliseconds: list[float] = []
        self.peak = 0
        self.first = 0.0  # seconds of the first forward and backward, which compile

    def step(self, tokens) -> None:
        self.loss(tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, batches: list, timed: bool) -> None:
        """Some steps without a wait between them; each is timed on the device."""
        import torch

        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(batches) + 1)] if cuda else []
        clock = [time.perf_counter()]
        if cuda:
            marks[0].record()
        for number, tokens in enumerate(batches):
            self.step(tokens)
            if cuda:
                marks[number + 1].record()
            clock.append(time.perf_counter())
        if cuda:
            torch.cuda.synchronize()
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        if timed and cuda:
            self.milliseconds += [a.elapsed_time(b) for a, b in pairwise(marks)]
        elif timed:
            self.milliseconds += [1e3 * (b - a) for a, b in pairwise(clock)]

    def result(self, case: Case, work: float) -> dict:
        seconds = median(self.milliseconds) / 1e3
        return {
            "ms": round(1e3 * seconds, 2),
            "tokens_per_second": round(case.batch * case.length / seconds),
            "model_tflops": round(work / seconds / 1e12, 2),
            "peak_gib": round(self.peak / GIB, 2),
            "first_call_s": round(self.first, 1),
            "all_ms": [round(x, 2) for x in self.milliseconds],
        }


def matmul_rate(device) -> float:
    """TFLOP/s of a square product in bfloat16, random data, 8192 wide (256 on a CPU): median of 20."""
    import torch

    n = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            a @ b
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
    return 2 * n**3 / median(times[5:]) / 1e12


def make_peer(model, how: str, device):
    """Hugging Face's Llama over the same parameters, compiled as its users do."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    record = model.config.to_hf(str(model.lm_head.weight.dtype).removeprefix("torch."))
    config = LlamaConfig(**{key: value for key, value in record.items() if key not in ("architectures", "model_type")})
    with torch.device("meta"):
        peer = LlamaForCausalLM(config)
    peer.load_state_dict(dict(model.named_parameters()), assign=True)
    with torch.device(device):  # not a parameter, and float32 whatever the weights are
        peer.model.rotary_emb = LlamaRotaryEmbedding(config)
    peer.train()
    for name, parameter in model.named_parameters():
        assert peer.get_parameter(name) is parameter, name
    if how == "checkpointed":
        peer.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return torch.compile(peer, dynamic=False)


def compare(sides: list[Side], model, tokens, precision: str) -> dict:
    """Loss and gradients of both on the same tokens; their first calls are timed here."""
    layers = len(model.model.layers)
    watched = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_proj.weight",
        f"model.layers.{layers // 2}.mlp.gate_proj.weight",
        f"model.layers.{layers - 1}.mlp.down_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "lm_head.weight",
    ]
    losses, gradients = [], []
    for side in sides:
        started = time.perf_counter()
        loss = side.loss(tokens)
        loss.backward()
        losses.append(loss.item())
        side.first = time.perf_counter() - started
        gradients.append({name: model.get_parameter(name).grad.clone() for name in watched})
        side.optimizer.zero_grad(set_to_none=True)
    found: dict = {"losses": losses, "agree": True}
    if tokens.shape[1] <= EXACT_LENGTH:
        exact_loss, exact = exactly(model, tokens, watched)
        found["losses_off"] = [abs(loss / exact_loss - 1) for loss in losses]
        off = [{name: relative(g[name], exact[name]) for name in watched} for g in gradients]
        found["gradients_off"] = off
        most_loss, most = TOLERANCE[precision]
        found["agree"] = max(found["losses_off"]) <= most_loss and max(off[0].values()) <= most
        if len(sides) > 1 and precision != "fp32":
            found["agree"] = found["agree"] and all(off[0][name] <= WORSE * off[1][name] for name in watched)
    if len(sides) > 1:
        apart = {name: relative(gradients[0][name], gradients[1][name]) for name in watched}
        found |= {"loss_difference": abs(losses[0] / losses[1] - 1), "gradient_differences": apart}
        most_loss, most = TOLERANCE[precision]
        found["agree"] = found["agree"] and found["loss_difference"] <= most_loss and max(apart.values()) <= most
    return found


def exactly(model, tokens, watched: list[str]) -> tuple[float, dict]:
    """Loss and gradients of the same weights in float32: the plain model, neither compiled nor under autocast."""
    import torch

    from iqc.model.decoder import Decoder, Recompute

    exact = Decoder(model.config, device="meta").train()
    weights = {name: p.detach().float() for name, p in model.named_parameters()}
    exact.load_state_dict(weights, assign=True)
    for name, p in exact.named_parameters():
        p.requires_grad_(name in watched)
    exact.model.recompute = Recompute.parse("block")
    with torch.autocast(tokens.device.type, enabled=False):
        nll, count = exact.loss(tokens)
    (nll / count).backward()
    return (nll / count).item(), {name: exact.get_parameter(name).grad for name in watched}


def adamw_difference(device, dtype) -> float:
    """Our AdamW against torch's fused one: the largest relative difference of weights and moments after 3 updates."""
    import torch

    from iqc.train.adamw import AdamW

    g = torch.Generator(device).manual_seed(2)
    shapes = [(1024, 1024), (1000,)]
    starts = [torch.randn(shape, generator=g, device=device).to(dtype) for shape in shapes]
    found = []
    for make in (AdamW, partial(torch.optim.AdamW, fused=True)):
        params = [torch.nn.Parameter(p.clone()) for p in starts]
        optimizer = make(params, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
        g = torch.Generator(device).manual_seed(3)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g, device=device).to(dtype)
            optimizer.step()
        found.append(
            [x for p in params for x in (p.detach(), *(optimizer.state[p][k] for k in ("exp_avg", "exp_avg_sq")))]
        )
    return max(relative(a, b) for a, b in zip(*found))


def relative(a, b) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def run_case(name: str, case: Case, arguments: argparse.Namespace, write: Callable[[dict], None]) -> None:
    """Measure; `write` is called with all that is known after every round, so that a limit loses the rest alone."""
    import torch

    from iqc.model.compiled import compile_blocks
    from iqc.model.config import preset
    from iqc.model.decoder import Decoder, Recompute
    from iqc.train.adamw import AdamW

    device = torch.device(arguments.device)
    precision = arguments.precision or case.precision
    dtype = torch.bfloat16 if precision == "bf16-pure" else torch.float32
    half = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    config = replace(preset(case.preset), loop_num=case.loops)
    config.num_hidden_layers = case.layers or config.num_hidden_layers
    model = Decoder(config, device=device).to(dtype).train()
    recompute = arguments.recompute or case.recompute
    model.model.recompute = Recompute.parse(recompute)
    compile_blocks(model, dynamic=False)
    # A small rate: the loss stays where it starts, and no figure depends on what is learnt.
    options = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizer = (torch.optim.AdamW if arguments.torch_adamw else AdamW)(
        model.parameters(), **options, **({"fused": True} if arguments.torch_adamw else {})
    )

    def ours(tokens):
        with half():
            nll, count = model.loss(tokens)
        return nll / count

    generator = torch.Generator(device).manual_seed(1)

    def batch():
        shape = (case.batch, case.length)
        return torch.randint(config.vocab_size, shape, generator=generator, device=device)

    sides = [Side("ours", ours, optimizer, device)]
    found: dict = {"case": asdict(case), "recompute": recompute, "precision": precision}
    found["parameters"] = sum(p.numel() for p in model.parameters())
    work = flops(case, config)
    found["model_tflop"] = work / 1e12
    if case.peer and not arguments.no_peer:
        peer = make_peer(model, case.peer, device)

        def theirs(tokens):
            with half():
                return peer(input_ids=tokens, labels=tokens, use_cache=False).loss

        fused = torch.optim.AdamW(model.parameters(), **options, fused=True)
        for p in model.parameters():  # the same moments, each with its own count of steps
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            count = torch.zeros((), device=device)
            optimizer.state[p] = {"step": count.clone() if arguments.torch_adamw else torch.zeros(())} | moments
            fused.state[p] = {"step": count} | moments
        sides.append(Side("peer", theirs, fused, device))
    found["check"] = compare(sides, model, batch(), precision)
    found["check"]["adamw_off"] = adamw_difference(device, dtype)
    found["check"]["agree"] &= found["check"]["adamw_off"] <= (4e-3 if dtype == torch.bfloat16 else 1e-6)
    write(found)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    rates = []
    for turn in range(case.rounds + 1):
        rates.append(matmul_rate(device))
        for side in sides:
            timed = turn > 0
            side.run([batch() for _ in range(case.steps if timed else case.warm)], timed)
        found["matmul_tflops"] = [round(rate, 1) for rate in rates]
        if turn:
            found |= {side.name: side.result(case, work) for side in sides}
            write(found)
    rates.append(matmul_rate(device))
    found["matmul_tflops"] = [round(rate, 1) for rate in rates]
    write(found)
    if arguments.profile:
        found["profile"] = {side.name: profiled(side, batch()) for side in sides}
        write(found)


def profiled(side: Side, tokens) -> list[tuple[float, int, str]]:
    """The kernels of one step that take longest: milliseconds in all, calls, name."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = side.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as trace:
        side.step(tokens)
        if cuda:
            torch.cuda.synchronize()
    rows = [
        (round((e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e3, 3), e.count, e.key[:90])
        for e in trace.key_averages()
    ]
    return sorted(rows, reverse=True)[:40]


def in_process(name: str, arguments: argparse.Namespace) -> dict:
    """A case in a process of its own: its memory is returned, and its failure is a row."""
    case = (CASES | SMALL)[name]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "found.json"
        started = time.monotonic()
        own = ["--one", name, "--to", str(place)]
        environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
        error = None
        try:
            command = [sys.executable, __file__, *arguments.given, *own]
            limit = arguments.limit or case.limit
            done = subprocess.run(command, env=environment, timeout=limit, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                error = done.stderr.strip()[-2000:]
        except subprocess.TimeoutExpired:
            error = f"not done after {limit} s"
        found = json.loads(place.read_text()) if place.exists() else {}
        found["seconds"] = round(time.monotonic() - started, 1)
        return found | ({"error": error} if error else {})


def lines_of(name: str, found: dict) -> list[str]:
    """The rows of the table for a case."""
    lines = []
    rate = median(found.get("matmul_tflops") or [0])
    sides = [side for side in ("ours", "peer") if side in found]
    for side in sides:
        r = found[side]
        share = f"{r['model_tflops'] / rate:6.3f}" if rate else ""
        lines.append(
            f"{name:18} {side:5} {r['ms']:9.1f} {r['tokens_per_second']:9,} {r['model_tflops']:7.1f} {share} "
            f"{r['peak_gib']:7.2f} {r['first_call_s']:6.1f}  {found['precision']}"
            f"{', recompute ' + found['recompute'] if side == 'ours' else ''}"
        )
    check = found.get("check", {})
    if len(sides) == 2 and check.get("agree"):
        speed = found["ours"]["tokens_per_second"] / found["peer"]["tokens_per_second"]
        memory = found["ours"]["peak_gib"] / found["peer"]["peak_gib"] if found["peer"]["peak_gib"] else float("nan")
        lines.append(f"{name:18} ratio {speed:9.3f} x the peer's tokens/s at {memory:.3f} x its memory")
    elif not check.get("agree", True):
        lines.append(f"{name:18} NOT RIGHT: no ratio")
    if "adamw_off" in check:
        lines.append(f"{name:18} AdamW off torch's by {check['adamw_off']:.1e}")
    if "gradients_off" in check:
        off = ", ".join(f"{max(side.values()):.1e}" for side in check["gradients_off"])
        lines.append(f"{name:18} gradients off float32 by up to: {off} (ours, peer)")
    if "gradient_differences" in check:
        worst = max(check["gradient_differences"].values())
        lines.append(f"{name:18} loss differs by {check['loss_difference']:.1e}, gradients by up to {worst:.1e}")
    if "error" in found:
        lines.append(f"{name:18} FAILED after {found['seconds']} s: ...{found['error'][-600:]}")
    lines.append(f"{name:18} took {found['seconds']} s, matmul {found.get('matmul_tflops')}")
    for side, rows in found.get("profile", {}).items():
        lines += [f"{name:18} {side:5} {ms:9.3f} ms {count:5} x {kernel}" for ms, count, kernel in rows]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES | SMALL)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=list(TOLERANCE), help="instead of the cases' own")
    parser.add_argument("--recompute", default="", metavar="WHAT", help="instead of the cases' own")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--torch-adamw", action="store_true", help="torch's fused AdamW for ours too")
    parser.add_argument("--profile", action="store_true", help="also the kernels of one more step each")
    parser.add_argument("--limit", type=int, default=0, help="seconds a case, instead of the cases' own")
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "train_step.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.given = sys.argv[1:]
    if arguments.one:

        def write(found: dict) -> None:
            arguments.to.write_text(json.dumps(found))

        run_case(arguments.one, (CASES | SMALL)[arguments.one], arguments, write)
        return
    result: dict = {"device": device_name(arguments.device), "cases": {}}
    table = []
    for name in arguments.cases.split(","):
        found = in_process(name, arguments)
        result["cases"][name] = found
        table += lines_of(name, found)
        print("\n".join(lines_of(name, found)), flush=True)
    measure.save("train_step", result, ["torch", "transformers"], arguments.print_only, arguments.output)
    print(
        f"\n{'case':18} {'':5} {'ms':>9} {'tokens/s':>9} {'TFLOP/s':>7} {'/mm':>6} {'GiB':>7} {'first':>6}  precision"
    )
    print("\n".join(table))


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    main()
