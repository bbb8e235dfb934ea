"""Context parallelism on several GPUs of one machine: rows of 64k and 128k tokens, forward and backward.

    python tests/bench/context.py [--ranks 2] [--cases loop-64k,attention-64k] [--output FILE]
    python tests/bench/context.py --device cpu --cases nano-loop,nano-packed,nano-attention --print-only

The cases with `loop` and `packed` are whole models (four looped layers of the 7B shape, bfloat16): the same weights and
rows on one GPU and on all, in turns; scaling is the one's time over the ranks' number times theirs, memory the largest
peak of any rank. A row's gradients, summed over the ranks in float32, are held against those of the one GPU. The cases
with `attention` are one layer's dense causal attention beside torch's context_parallel (all-gather, and its ring by
all-to-all) and DeepSpeed's Ulysses, each through cuDNN; outputs and gradients of all are held against the attention of
whole rows on one GPU. No ratio is printed for what differs by more than AGREE, and no figure for what failed.

The ranks are started with torch.distributed.run; without GPUs (`--device cpu`) they speak through gloo, and torch's
peer, which knows no attention of a CPU, differs.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import measure  # noqa: E402

AGREE = {"bfloat16": 1e-2, "float64": 1e-6}  # relative, of the norm
SCALING, MEMORY = 0.85, 0.6  # goals


@dataclass(slots=True)
class Case:
    preset: str
    length: int
    kind: str = "model"  # or attention
    layers: int = 4
    loops: int = 2
    recompute: str = "none"
    packed: bool = False  # documents of 41 tokens to 0.4 of the row
    dtype: str = "bfloat16"
    rounds: int = 3


CASES = {
    "loop-64k": Case("7b", 65_536, recompute="mlp"),
    "loop-128k": Case("7b", 131_072, recompute="block", rounds=2),
    "loop-128k-tile": Case("7b", 131_072, recompute="block,tile:16384", rounds=1),
    "packed-64k": Case("7b", 65_536, recompute="mlp", packed=True, rounds=2),
    "attention-64k": Case("7b", 65_536, "attention", rounds=5),
    "attention-128k": Case("7b", 131_072, "attention", rounds=3),
}
SMALL = {  # to try the script; not among the figures
    "nano-loop": Case("nano", 300, layers=2, recompute="block:1,tile:64", dtype="float64"),
    "nano-packed": Case("nano", 300, layers=2, recompute="mlp", packed=True, dtype="float64"),
    "nano-dense": Case("nano", 512, layers=2, loops=1, packed=True, dtype="float64"),
    "nano-attention": Case("nano", 256, "attention", dtype="float64"),
}


def document_lengths(case: Case) -> list[list[int]] | None:
    """Long documents over several chunks, short ones, and padding at the row's end."""
    n = case.length
    return [[n * 3 // 10, 41, n // 100, n * 2 // 5, n // 8, n // 50]] if case.packed else None


def off(got, true) -> float:
    return ((got.double() - true.double()).norm() / true.double().norm()).item()


class World:
    """The ranks, and a clock and a meter of memory that all of them read together."""

    def __init__(self, device: str):
        import torch
        import torch.distributed as dist

        from iqc.kernels.ring import ProcessRing

        self.cuda = device == "cuda"
        local = int(os.environ["LOCAL_RANK"])
        self.device = torch.device("cuda", local) if self.cuda else torch.device("cpu")
        if self.cuda:
            torch.cuda.set_device(self.device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if self.cuda else "gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.ring = ProcessRing(dist.group.WORLD)

    def measured(self, function: Callable[[], object], alone: bool = False) -> dict:
        """Milliseconds and GiB of the slowest and the fullest rank; `alone`: rank 0 works, the others wait. What one
        rank raises is raised on all."""
        import torch
        import torch.distributed as dist

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        dist.all_reduce(torch.zeros(1))  # through gloo: no kernel waits on a GPU that works
        started, error = time.perf_counter(), ""
        if not alone or self.rank == 0:
            try:
                function()
                if self.cuda:
                    torch.cuda.synchronize()
            except Exception as failure:  # out of memory, a peer's refusal
                error = f"{type(failure).__name__}: {failure}"
        taken = 1e3 * (time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0
        found: list = [None] * self.size
        dist.all_gather_object(found, (taken, peak, error))
        if errors := [error for *_, error in found if error]:
            raise RuntimeError(errors[0][:500])
        working = found[:1] if alone else found
        return {"ms": max(ms for ms, *_ in working), "gib": max(gib for _, gib, _ in working)}


def run_model(case: Case, world: World, write: Callable[[dict], None]) -> None:
    """One GPU and all of them: loss, gradients, times, peaks."""
    import torch
    import torch.distributed as dist

    from iqc.model.compiled import compile_blocks
    from iqc.model.config import preset
    from iqc.model.decoder import Decoder, Recompute

    config = preset(case.preset)
    config.num_hidden_layers, config.loop_num = case.layers, case.loops
    config.max_position_embeddings = max(case.length, config.max_position_embeddings)
    model = Decoder(config, device=world.device).to(getattr(torch, case.dtype)).train()  # the same on every rank
    model.model.recompute = Recompute.parse(case.recompute)
    if world.cuda:
        compile_blocks(model, dynamic=False)
    tokens = torch.randint(config.vocab_size, (1, case.length), generator=torch.Generator().manual_seed(1))
    tokens, lengths = tokens.to(world.device), document_lengths(case)
    count = sum(n - 1 for n in lengths[0]) if lengths else case.length - 1
    losses = []

    def step(ring):
        def run():
            model.zero_grad(set_to_none=True)
            model.ring = ring
            loss, _ = model.loss(tokens, lengths)
            (loss / count).backward()
            losses.append(loss.detach().double() / count)

        return run

    ways = {"one": (step(None), True), "ring": (step(world.ring), False)}
    found: dict = {"case": asdict(case), "ranks": world.size, "parameters": sum(p.numel() for p in model.parameters())}
    world.measured(*ways["one"])  # compiles
    true = {name: p.grad.cpu() for name, p in model.named_parameters()} if world.rank == 0 else {}
    true_loss = losses[-1].item() if world.rank == 0 else 0.0
    world.measured(*ways["ring"])
    total = losses[-1].clone()
    dist.all_reduce(total)
    apart = {}
    for name, p in model.named_parameters():
        gradient = p.grad.to(torch.promote_types(p.dtype, torch.float32))
        dist.all_reduce(gradient)
        if world.rank == 0:
            apart[name] = off(gradient, true[name].to(world.device))
    del true
    worst = max(apart, key=apart.__getitem__, default="")
    if world.rank == 0:
        found |= {"loss_off": abs(total.item() / true_loss - 1), "gradients_off": apart[worst], "worst": worst}
        found["agree"] = max(found["loss_off"], apart[worst]) <= AGREE[case.dtype]
        write(found)
    times: dict[str, list[dict]] = {name: [] for name in ways}
    for _ in range(case.rounds):
        for name, way in ways.items():
            model.zero_grad(set_to_none=True)
            times[name].append(world.measured(*way))
    for name, each in times.items():
        found[name] = {"ms": median(x["ms"] for x in each), "gib": max(x["gib"] for x in each), "all": each}
    if found.get("agree"):
        found["scaling"] = found["one"]["ms"] / (world.size * found["ring"]["ms"])
        found["memory"] = found["ring"]["gib"] / found["one"]["gib"] if world.cuda else None
    write(found)


def run_attention(case: Case, world: World, write: Callable[[dict], None]) -> None:
    """Dense causal attention, ours and the peers', each in the layout that it asks for."""
    import torch

    from iqc.model.config import preset

    c = preset(case.preset)
    generator = torch.Generator(world.device).manual_seed(1)  # the same on every rank
    shapes = [(1, case.length, n, c.head_dim) for n in (c.num_attention_heads, *[c.num_key_value_heads] * 2)]
    shapes.append(shapes[0])
    whole = [torch.randn(s, generator=generator, device=world.device, dtype=getattr(torch, case.dtype)) for s in shapes]
    ways = {"one": one_gpu, "ring": our_ring, "torch all-gather": torch_gather, "torch ring": torch_ring}
    ways["Ulysses"] = ulysses
    found: dict = {"case": asdict(case), "ranks": world.size, "ways": {}}
    steps: dict[str, Callable] = {}
    true: list = []
    for name, make in ways.items():
        of = found["ways"][name] = {}
        try:
            run, joined = make(world, whole)
            world.measured(run, name == "one")
            if name != "one" or world.rank == 0:
                results = joined()
            if name == "one":
                true = results if world.rank == 0 else []
            elif world.rank == 0:
                of["off"] = max(off(a, b) for a, b in zip(results, true, strict=True))
            same = torch.tensor([world.rank > 0 or of.get("off", 0.0) <= AGREE[case.dtype]]).int()
            torch.distributed.all_reduce(same, torch.distributed.ReduceOp.MIN)
            of["agree"] = bool(same)
            if same:
                steps[name] = run
        except Exception as failure:  # a row less, whatever it was: `measured` raises on all ranks alike
            of["error"] = f"{type(failure).__name__}: {failure}"[:500]
        write(found)
    del true
    times: dict[str, list[dict]] = {name: [] for name in steps}
    for _ in range(case.rounds):
        for name, run in steps.items():
            times[name].append(world.measured(run, name == "one"))
    for name, each in times.items():
        found["ways"][name] |= {"ms": median(x["ms"] for x in each), "all": each}
    write(found)


def leaves(parts):
    return [x.detach().clone().contiguous().requires_grad_() for x in parts]


def one_gpu(world: World, whole: list):
    from iqc.kernels.causal_attention import causal_attention
    from iqc.kernels.documents import Documents

    documents = Documents.from_lengths(None, 1, whole[0].shape[1], world.device)
    return backward_of(lambda q, k, v: causal_attention(q, k, v, documents), whole, lambda x: x)


def our_ring(world: World, whole: list):
    import torch

    from iqc.kernels.documents import Documents
    from iqc.kernels.ring_attention import ring_attention
    from iqc.kernels.zigzag import Shard

    width = whole[0].shape[1]
    shard = Shard(Documents.from_lengths(None, 1, width, world.device), world.ring)
    places = shard.take(torch.arange(width, device=world.device)[None])[0]
    own = [shard.take(x) for x in whole]
    return backward_of(lambda q, k, v: ring_attention(q, k, v, shard), own, lambda x: placed(world, x, places))


def backward_of(function: Callable, own: list, join: Callable):
    """(forward and backward, what joins output and gradients of the last of them into whole rows)."""
    import torch

    *inputs, grad = own
    tensors, last = leaves(inputs), []

    def run():
        out = function(*tensors)
        last[:] = [out.detach(), *torch.autograd.grad(out, tensors, grad)]

    return run, lambda: [join(x) for x in last]


def placed(world: World, part, places):
    """The parts [1, n, ...] of all ranks in whole rows, by the index of each of their tokens in the row."""
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(part) for _ in range(world.size)]
    dist.all_gather(parts, part.contiguous())
    orders = [torch.empty_like(places) for _ in range(world.size)]
    dist.all_gather(orders, places)
    return torch.cat(parts, 1)[:, torch.cat(orders).argsort()]


def cudnn():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True)


def through_torch(method: str):
    def make(world: World, whole: list):
        import torch
        import torch.nn.functional as F
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.experimental import context_parallel
        from torch.distributed.tensor.experimental._attention import context_parallel_unshard, set_rotate_method

        mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("context",))
        set_rotate_method(method)
        group = whole[0].shape[2] // whole[1].shape[2]
        own = [x.transpose(1, 2).contiguous() for x in whole]  # sharded in place, by head and tail
        with context_parallel(mesh, buffers=own, buffer_seq_dims=[2] * 4, no_restore_buffers=set(own)):
            shards = [x.clone() for x in own]
        *inputs, grad = shards
        tensors, last = leaves(inputs), []

        def run():
            set_rotate_method(method)
            dummy = torch.zeros(1, 1, 2 * world.size, 1, device=world.device)
            with cudnn(), context_parallel(mesh, buffers=[dummy], buffer_seq_dims=[2], no_restore_buffers={dummy}):
                q, k, v = tensors  # keys repeated: the prototype's ring takes no grouped heads
                k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                last[:] = [out.detach(), *torch.autograd.grad(out, tensors, grad)]

        def joined():
            return [x.transpose(1, 2) for x in context_parallel_unshard(mesh, last, [2] * 4)]

        return run, joined

    return make


torch_gather, torch_ring = through_torch("allgather"), through_torch("alltoall")


def ulysses(world: World, whole: list):
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F

    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    import deepspeed
    from deepspeed.sequence.layer import DistributedAttention

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # built by a compiler on a CPU
    deepspeed.init_distributed("nccl" if world.cuda else "gloo", auto_mpi_discovery=False, verbose=False)

    def local(q, k, v, *args, **kwargs):
        turned = (x.transpose(1, 2) for x in (q, k, v))
        with cudnn():
            return F.scaled_dot_product_attention(*turned, is_causal=True, enable_gqa=True).transpose(1, 2)

    if whole[1].shape[2] % world.size:
        raise ValueError(f"{whole[1].shape[2]} key heads over {world.size} ranks")
    attention = DistributedAttention(local, dist.group.WORLD, scatter_idx=2, gather_idx=1)
    places = torch.arange(whole[0].shape[1], device=world.device).chunk(world.size)[world.rank]
    own = [x[:, places] for x in whole]
    return backward_of(lambda q, k, v: attention(q, k, v, 0), own, lambda x: placed(world, x, places))


def work(arguments: argparse.Namespace) -> None:
    """What one rank does: all cases, each written as soon as something of it is known."""
    import torch
    import torch.distributed as dist

    world = World(arguments.device)
    torch.manual_seed(0)
    if not world.cuda:
        torch.set_num_threads(1)
    found: dict = {"device": torch.cuda.get_device_name() if world.cuda else "cpu", "cases": {}}
    for name in arguments.cases.split(","):
        case = (CASES | SMALL)[name]

        def write(of: dict, name: str = name) -> None:
            if world.rank == 0:
                found["cases"][name] = of
                arguments.to.write_text(json.dumps(found))

        try:
            (run_attention if case.kind == "attention" else run_model)(case, world, write)
        except RuntimeError as failure:  # of `measured`, the same on all ranks
            write(found["cases"].get(name, {}) | {"error": str(failure)})
        gc.collect()
        if world.cuda:
            torch.cuda.empty_cache()
    dist.destroy_process_group()


def lines_of(name: str, of: dict) -> list[str]:
    lines = [f"{name:16} FAILED: {of['error']}"] if "error" in of else []
    if "gradients_off" in of:
        apart = f"loss off by {of['loss_off']:.1e}, gradients by up to {of['gradients_off']:.1e} ({of['worst']})"
        lines.append(f"{name:16} {apart}{'' if of['agree'] else ': TOO FAR, no ratio'}")
    for way in ("one", "ring"):
        if way in of:
            lines.append(f"{name:16} {way:16} {of[way]['ms']:10.1f} ms {of[way]['gib']:8.2f} GiB a rank")
    if "scaling" in of:
        memory = f", memory {of['memory']:.3f} of one's (goal {MEMORY})" if of["memory"] else ""
        lines.append(f"{name:16} {of['scaling']:.3f} of perfect scaling on {of['ranks']} (goal {SCALING}){memory}")
    one = of.get("ways", {}).get("one", {}).get("ms")
    for way, x in of.get("ways", {}).items():
        if "error" in x:
            lines.append(f"{name:16} {way:16} failed: {x['error'][:160]}")
        elif "ms" not in x:
            lines.append(f"{name:16} {way:16} differs by {x.get('off', float('nan')):.1e}: not timed")
        else:
            scaling = f"{one / (of['ranks'] * x['ms']):6.3f} of perfect scaling" if way != "one" and one else ""
            apart = f" off by {x['off']:.1e}" if "off" in x else ""
            lines.append(f"{name:16} {way:16} {x['ms']:10.2f} ms {scaling}{apart}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES | SMALL)}")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for all cases")
    parser.add_argument("--print-only", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)  # of a rank: where to write
    arguments = parser.parse_args()
    if arguments.to:
        work(arguments)
        return
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "OMP_NUM_THREADS": "1"} | os.environ
    environment["PYTHONPATH"] = str(REPO)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "found.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", arguments.ranks]
        command = [*launch, __file__, *sys.argv[1:], "--to", place]
        error = None
        try:
            done = subprocess.run([*map(str, command)], env=environment, timeout=arguments.limit)
            error = f"the ranks ended with {done.returncode}" if done.returncode else None
        except subprocess.TimeoutExpired:
            error = f"not done after {arguments.limit:.0f} s"
        found = json.loads(place.read_text()) if place.exists() else {"cases": {}}
    measure.save("context", found | {"error": error}, ["torch"], arguments.print_only, arguments.output)
    for name, of in found["cases"].items():
        print("\n".join(lines_of(name, of)))
    if error:
        sys.exit(error)


if __name__ == "__main__":
    main()
