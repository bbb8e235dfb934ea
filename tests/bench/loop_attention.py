"""The loop's attention, forward and backward on one GPU, beside what can be had without own kernels.

    python tests/bench/loop_attention.py
    python tests/bench/loop_attention.py --cases 2048,packed --print-only

`floor` is the global branch alone on cuDNN (packed documents: on the fastest attention with offsets that is installed).
The compositions are cuDNN for the global branch, a window through FlexAttention or FlashAttention-2, and a compiled
gate. All take turns in one run, several in a row without a wait; `over floor` is a time over the floor's. `kept` are
the bytes that a forward keeps for its backward beyond its inputs, the output among them, from the saved tensors
themselves. No ratio is printed for results that differ. Before that, ours and the composition are held against float64
on fresh random inputs, the local branch on its own with gates near 0, 1/2 and 1.
"""

import argparse
import inspect
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import measure  # noqa: E402

from iqc.kernels.causal_attention import causal_attention  # noqa: E402
from iqc.kernels.documents import Documents  # noqa: E402
from iqc.kernels.loop_attention import gate, local_attention, loop_attention  # noqa: E402

HEADS, KEY_HEADS, SIZE, WINDOW = 40, 8, 128, 64  # the released 40B-Loop
GRID = {"2048": (8, 2048), "4096": (4, 4096), "8192": (2, 8192), "32768": (1, 32768), "131072": (1, 131072)}
GOALS = {"2048": 1.25, "4096": 1.18, "8192": 1.10, "32768": 1.03, "131072": 1.015}
PACKED = [9000, 300, 4096, 1500, 64, 7000, 800, 2500, 40, 5000, 2000, 468]  # 32,768 tokens
NAMES = ("out", "q", "k1", "v1", "k2", "v2", "weight", "bias")
AGREE = 2e-2  # between two bfloat16 computations of the same thing
Attention = Callable[..., Tensor]  # (q, k1, v1, k2, v2, weight, bias) -> out

flex = torch.compile(flex_attention, dynamic=False)
block_mask = torch.compile(create_block_mask, dynamic=False)


@torch.compile(dynamic=False)
def merged(q: Tensor, far: Tensor, near: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.lerp(near, far, gate(q, weight, bias))


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*turned, is_causal=True, enable_gqa=True).transpose(1, 2)


def flex_masked(q: Tensor, k: Tensor, v: Tensor, mask) -> Tensor:
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return flex(*turned, block_mask=mask, enable_gqa=True).transpose(1, 2)


def with_offsets(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int) -> Tensor:
    edges, longest = documents.offsets
    flat = (x.flatten(0, 1) for x in (q, k, v))
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}  # torch 2.13
    return varlen_attn(*flat, edges, edges, longest, longest, window_size=(window, 0), **grouped).view_as(q)


def inputs(rows: int, width: int, gate_bias: float = 2.0, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    made = [normal(rows, width, HEADS, SIZE), *(normal(rows, width, KEY_HEADS, SIZE) for _ in range(4))]
    made += [0.05 * normal(HEADS, SIZE), torch.full((HEADS,), gate_bias, device="cuda", dtype=dtype)]
    return [x.requires_grad_() for x in made]


def contestants(rows: int, width: int, documents: Documents) -> tuple[dict[str, Attention], dict[str, Attention]]:
    """(floors, attentions), each by name."""
    documents.flat_starts, documents.offsets  # noqa: B018  (once per batch, not once per layer)

    def ours(q, k1, v1, k2, v2, weight, bias):
        return loop_attention(q, k1, v1, k2, v2, weight, bias, documents, WINDOW)

    if documents.whole:

        def window(b, h, i, j):
            return (i >= j) & (i - j < WINDOW)

        def far(q, k, v):
            return cudnn(q, k, v)

        floors = {"cuDNN": lambda q, k1, v1, *_: far(q, k1, v1)}
    else:
        number = documents.flat_starts

        def window(b, h, i, j):
            return (i >= j) & (i - j < WINDOW) & (number[i] == number[j])

        def same(b, h, i, j):
            return (i >= j) & (number[i] == number[j])

        packed = block_mask(same, None, None, width, width, device="cuda")
        floors = {
            "FlexAttention": lambda q, k1, v1, *_: flex_masked(q, k1, v1, packed),
            "varlen_attn": lambda q, k1, v1, *_: with_offsets(q, k1, v1, documents, -1),
        }

        def far(q, k, v):
            return flex_masked(q, k, v, packed)

    mask = block_mask(window, None, None, width, width, device="cuda")

    def through_flex(q, k1, v1, k2, v2, weight, bias):
        return merged(q, far(q, k1, v1), flex_masked(q, k2, v2, mask), weight, bias)

    def through_flash(q, k1, v1, k2, v2, weight, bias):
        return merged(q, far(q, k1, v1), with_offsets(q, k2, v2, documents, WINDOW - 1), weight, bias)

    return floors, {"ours": ours, "composed, Flex window": through_flex, "composed, FA2 window": through_flash}


def several(function: Attention, tensors: list[Tensor], grad: Tensor, count: int) -> list[tuple[float, float]]:
    """Milliseconds of each forward and backward, `count` in a row: the device never waits for the next launch, as it
    never does in training."""
    marks = []
    for _ in range(count):
        marks.append([torch.cuda.Event(enable_timing=True) for _ in range(3)])
        marks[-1][0].record()
        out = function(*tensors)
        marks[-1][1].record()
        torch.autograd.grad(out, tensors, grad, allow_unused=True)
        marks[-1][2].record()
    torch.cuda.synchronize()
    return [(start.elapsed_time(middle), middle.elapsed_time(end)) for start, middle, end in marks]


def replayed(functions: dict[str, Attention], tensors: list[Tensor], grad: Tensor) -> dict[str, float]:
    """Milliseconds of a forward and backward replayed as one CUDA graph: what the device takes where launches, of which
    ours has more, are never waited for. In turns."""
    graphs, kept = {}, []
    for name, function in functions.items():
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # whatever is compiled or planned is so before
            for _ in range(3):
                torch.autograd.grad(function(*tensors), tensors, grad, allow_unused=True)
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name], capture_error_mode="thread_local"):
            kept.append(torch.autograd.grad(function(*tensors), tensors, grad, allow_unused=True))
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(5):
        for name, graph in graphs.items():
            marks = []
            for _ in range(12):
                marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
                marks[-1][0].record()
                graph.replay()
                marks[-1][1].record()
            torch.cuda.synchronize()
            if turn:
                times[name] += [start.elapsed_time(end) for start, end in marks[4:]]
    return {name: median(each) for name, each in times.items()}


def kept(function: Attention, tensors: list[Tensor]) -> int:
    """Bytes of the storages that a forward saves, and of its output, less those of the inputs."""
    found = {}

    def save(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        out = function(*tensors)
    save(out)
    for x in tensors:
        found.pop(x.untyped_storage().data_ptr(), None)
    return sum(found.values())


def results(function: Attention, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def error(got: Tensor, true: Tensor) -> float:
    return ((got.double() - true.double()).norm() / true.double().norm()).item()


def against_float64(bias: float, width: int = 1536, heads: int = 10) -> dict[str, dict[str, float]]:
    """Relative errors of outputs and gradients, gates around sigmoid(bias), S > window: ours, and the same libraries'
    global branch put together with window and gate in plain PyTorch."""
    keys = heads * KEY_HEADS // HEADS
    tensors = inputs(1, width, bias)
    tensors = [x.detach()[..., :heads, :] if x.dim() == 4 and x.shape[2] == HEADS else x.detach() for x in tensors]
    tensors = [x[..., :keys, :] if x.dim() == 4 and x.shape[2] == KEY_HEADS else x for x in tensors]
    tensors = [x[:heads] if x.dim() < 4 else x for x in tensors]
    tensors = [x.contiguous().requires_grad_() for x in tensors]
    grad = torch.randn_like(tensors[0])
    documents = Documents.from_lengths([[width - 300, 300]], 1, width, "cuda")

    def composed(q, k1, v1, k2, v2, weight, bias):
        near = local_attention(q, k2, v2, documents, WINDOW)
        return torch.lerp(near, causal_attention(q, k1, v1, documents), gate(q, weight, bias))

    def ours(*x):
        return loop_attention(*x, documents, WINDOW)

    with warnings.catch_warnings():  # in float64 everything is plain PyTorch, which it says
        warnings.simplefilter("ignore")
        true = results(composed, [x.detach().double().requires_grad_() for x in tensors], grad.double())
    found = {}
    for name, function in (("ours", ours), ("composed", composed)):
        found[name] = {n: error(a, b) for n, a, b in zip(NAMES, results(function, tensors, grad), true)}
    return found


def run(case: str, rounds: int) -> dict:
    rows, width = GRID.get(case, (1, sum(PACKED)))
    documents = Documents.from_lengths(None if case in GRID else [PACKED], rows, width, "cuda")
    tensors = inputs(rows, width)
    grad = torch.randn_like(tensors[0])
    floors, attentions = contestants(rows, width, documents)
    ours = results(attentions["ours"], tensors, grad)
    found: dict[str, dict] = {"floor": {}, "attention": {}}
    usable = {("floor", name): function for name, function in floors.items()}
    for name, function in attentions.items():
        try:
            apart = [error(a, b) for a, b in zip(results(function, tensors, grad), ours)]
            place = found["attention"][name] = {"differs": max(apart), "kept": kept(function, tensors)}
        except Exception as failure:  # one row less, whatever it was
            print(f"{case} {name}: {str(failure)[:200]}", flush=True)
            continue
        if place["differs"] <= AGREE:
            usable["attention", name] = function
        else:
            print(f"{case} {name}: differs from ours by {place['differs']:.1e}, not timed", flush=True)
    del ours
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in usable}
    settle, count = (3, 5) if width < 100_000 else (1, 1)  # the clock settles on each contestant
    for turn in range(rounds + 1):
        for key, function in usable.items():
            taken = several(function, tensors, grad, settle + count)
            if turn:
                times[key] += taken[settle:]
    for (kind, name), each in times.items():
        forward, backward = (median(x) for x in zip(*each))
        found[kind].setdefault(name, {}).update(forward=forward, backward=backward, total=forward + backward)
    if documents.whole and width < 10_000:
        one = {"floor": floors["cuDNN"], "ours": attentions["ours"]}
        found["graphs"] = replayed(one, tensors, grad)
    floor = min(x["total"] for x in found["floor"].values())
    for x in found["attention"].values():
        if "total" in x:
            x["over_floor"] = x["total"] / floor
    return found | {"shape": [rows, width], "goal": GOALS.get(case)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(["packed", *GRID]))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    found: dict[str, dict] = {"device": torch.cuda.get_device_name(), "errors": {}, "cases": {}}
    for bias in (-8.0, 0.0, 8.0, 2.0):
        found["errors"][str(bias)] = against_float64(bias)
    for case in options.cases.split(","):
        started = time.perf_counter()
        try:
            found["cases"][case] = run(case, min(3, options.rounds) if case == "131072" else options.rounds)
        except Exception as failure:
            print(f"{case}: {str(failure)[:300]}", flush=True)
        torch.cuda.empty_cache()
        print(f"{case}: {time.perf_counter() - started:.0f} s", flush=True)
        measure.save("loop_attention", found, ["torch", "triton"], options.print_only, options.output)
    worst = max(of["ours"][n] / of["composed"][n] for of in found["errors"].values() for n in NAMES)
    print(f"\nlargest error over the composition's: {worst:.2f} (goal 1.2)")
    print("\ngate     ", *(f"{name:>18}" for name in NAMES), "  (error against float64: ours / composed)")
    for bias, of in found["errors"].items():
        cells = (f"{of['ours'][n]:.1e} / {of['composed'][n]:.1e}" for n in NAMES)
        print(f"{torch.sigmoid(torch.tensor(float(bias))):.4f}   ", *(f"{cell:>18}" for cell in cells))
    print(f"\n{'case':>8} {'':<24}{'forward':>9}{'backward':>9}{'ms':>9}{'over floor':>11}{'goal':>7}{'kept GiB':>10}")
    for case, of in found["cases"].items():
        if "graphs" in of:
            ours, floor = of["graphs"]["ours"], of["graphs"]["floor"]
            print(f"{case:>8} as one CUDA graph: ours {ours:.3f}, floor {floor:.3f} ms: {ours / floor:.3f}")
        for kind in ("floor", "attention"):
            for name, x in of[kind].items():
                if "total" not in x:
                    continue
                over = f"{x['over_floor']:11.3f}" if "over_floor" in x else " " * 11
                goal = f"{of['goal']:7.3f}" if name == "ours" and of["goal"] else " " * 7
                size = f"{x['kept'] / 2**30:10.2f}" if "kept" in x else ""
                print(f"{case:>8} {name:<24}{x['forward']:9.3f}{x['backward']:9.3f}{x['total']:9.3f}{over}{goal}{size}")


if __name__ == "__main__":
    main()
