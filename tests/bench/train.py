"""`iqc train` as it is run, with packed rows: what is left of the bare step's speed, and ZeRO beside plain DeepSpeed.

    python tests/bench/train.py [whole] [zero] [--place DIR] [--output FILE]
    python tests/bench/train.py --device cpu --cases nano --size tiny --print-only

whole   One GPU. The command on rows that `iqc pack` made of source files, until it has done its updates, and the bare
        step of train_step.py, in turns. The command's rate is of rows of full length, as the bare step's is, in the
        median update of RUN/timings.jsonl; its rows have documents and padding, the bare step's are whole. Waiting is
        the share of all its seconds, after the first updates, in which it had no batch.
zero    Two GPUs, by torchrun. The command with --engine deepspeed beside plain DeepSpeed around Hugging Face's Llama
        (client AdamW, its own bucket sizes, messages under way while backward computes), in turns: the same weights,
        the same rows of one document each in the same order. No ratio unless the losses are alike.

Rows and tokenizers are made in --place, once: `--prepare` makes them and ends, on a machine without a GPU if need be.
The command is ended when it has done its updates, so that no checkpoint is written.
"""

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from measure import REPO, RESULTS, save

sys.path.insert(0, str(REPO))

CASES = {  # of train_step.py: (preset, rows an update, context, vocabulary)
    "7b-4k": ("7b", 1, 4_096, 76_800),
    "100m": ("100m", 32, 2_048, 32_768),
    "loop14-4k": ("7b-loop", 1, 4_096, 76_800),
    "loop14-32k": ("7b-loop", 1, 32_768, 76_800),
}
SMALL = {"nano": ("nano", 2, 128, 4_096), "nano-loop": ("nano-loop", 2, 128, 4_096)}
RECOMPUTE = {"loop14-32k": "mlp:19", "nano-loop": "mlp:6"}  # as train_step.py has it
ROWS, LENGTH = 4, 2_048  # of `zero`, a GPU
SIZES = {  # vocabulary, hidden, feed-forward, layers, heads, key heads, context
    "0.9b": (32_768, 2_048, 5_632, 16, 16, 8, 2_048),  # 889 M parameters
    "tiny": (4_096, 64, 176, 2, 4, 2, 2_048),
}
GOALS = {1: 1.15, 3: 1.3}  # of ours over the peer's tokens/s, by ZeRO stage
WAITING = 0.01
FIRST = 5  # updates that compile and allocate
ALIKE = {"bf16": 5e-3, "fp32": 1e-4}  # largest relative difference of a loss


def shapes() -> None:
    """Make the benchmark's shapes presets of this process."""
    from iqc.model.config import PRESETS, ModelConfig, preset

    PRESETS["7b-loop"] = replace(preset("7b"), loop_num=2)
    for name, size in SIZES.items():
        PRESETS[name] = ModelConfig(*size)


def child(device: str, arguments: list[str]) -> None:
    """`iqc train` in this process, with those shapes; weights are drawn on that device, which saves minutes; no room on
    the disk is asked for, nothing will be saved."""
    shapes()
    from iqc import cli
    from iqc.train import start
    from iqc.train.run import Run

    start.Decoder = partial(start.Decoder, device=device)  # type: ignore[misc]

    if hasattr(Run, "need"):
        Run.need = lambda *_, **__: None  # type: ignore[method-assign]
    sys.argv = ["iqc", "train", *arguments]
    cli.main()


def iqc(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "iqc", *map(str, arguments)], check=True, env=os.environ | {"PYTHONPATH": str(REPO)}
    )


def prepare(place: Path, cases: list[str], sizes: list[str], megabytes: int) -> None:
    """Tokenizers and rows that are not there yet."""
    import numpy as np
    from streams import documents

    place.mkdir(parents=True, exist_ok=True)
    text = place / "text.jsonl"
    if not text.exists():
        text.write_bytes(b"\n".join(documents(megabytes * 1_000_000)) + b"\n")
    wanted = {(vocabulary, context) for _, _, context, vocabulary in ((CASES | SMALL)[case] for case in cases)}
    for vocabulary in sorted({v for v, _ in wanted} | {SIZES[size][0] for size in sizes}):
        tokenizer = place / f"tokenizer-{vocabulary}"
        if not tokenizer.exists():
            iqc("tokenizer", "train", "--vocab-size", vocabulary, "--limit-mib", 64, "-q", "-o", tokenizer, text)
    for vocabulary, context in sorted(wanted):
        rows = place / f"rows-{vocabulary}-{context}.jsonl.zst"
        if not rows.exists():
            iqc("pack", "--context", context, "--tokenizer", place / f"tokenizer-{vocabulary}", "-q", "-o", rows, text)
    for size in sizes:
        path = place / f"whole-{size}.jsonl"
        if not path.exists():
            draw, lines = np.random.Generator(np.random.PCG64(0)), []
            loss = np.ones(LENGTH, "u1")
            loss[0] = 0
            for number in range(512):
                row = {"lengths": np.array([LENGTH], "<u4"), "loss": loss}
                row["tokens"] = draw.integers(0, SIZES[size][0], LENGTH).astype("<u4")
                fields = {key: base64.b64encode(value.tobytes()).decode() for key, value in row.items()}
                lines.append(json.dumps({"id": str(number), "ids": [str(number)], **fields}))
            path.write_text("\n".join(lines) + "\n")


def command(
    place: Path,
    rows: Path,
    vocabulary: int,
    asked: dict[str, object],
    updates: int,
    limit: int,
    launcher: list[str],
    drawn_on: str = "cpu",
) -> tuple[list[dict], list[dict]]:
    """Run `iqc train` until it has done so many updates: its timings and metrics."""
    with tempfile.TemporaryDirectory(dir=place) as run:
        options = {"steps": 1_000_000, "save-every": 0, "rate": 1e-5, "tokenizer": place / f"tokenizer-{vocabulary}"}
        flags = [str(part) for key, value in (options | asked).items() for part in (f"--{key}", value)]
        child = [__file__, "--child", drawn_on, *flags, "--output", run, str(rows)]
        with open(Path(run) / "errors", "w+") as errors:
            process = subprocess.Popen([*launcher, *child], stderr=errors, stdout=errors, start_new_session=True)
            until = time.monotonic() + limit
            try:
                while count(Path(run) / "timings.jsonl") < updates and process.poll() is None:
                    if time.monotonic() > until:
                        break
                    time.sleep(0.2)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    time.sleep(1)
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            errors.seek(0)
            said = errors.read()
        if count(Path(run) / "timings.jsonl") < updates:
            raise RuntimeError(f"{' '.join(child)}\n{said[-3000:]}")
        return tuple(  # type: ignore[return-value]
            [json.loads(line) for line in (Path(run) / name).read_bytes().splitlines()[:updates]]
            for name in ("timings.jsonl", "metrics.jsonl")
        )


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def whole(case: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The command and the bare step, in turns."""
    name, rows, context, vocabulary = (CASES | SMALL)[case]
    packed = asked.place / f"rows-{vocabulary}-{context}.jsonl.zst"
    precision = "bf16-pure" if asked.device == "cuda" else "fp32"
    options: dict[str, object] = {"model": name, "batch-rows": rows, "context": context, "precision": precision}
    options["recompute"] = RECOMPUTE.get(case, "none")
    ours, waits, bare, memory, shares = [], [], [], 0, []
    for _ in range(asked.rounds):
        timings, _ = command(
            asked.place, packed, vocabulary, options, FIRST + asked.updates, asked.limit, [sys.executable], asked.device
        )
        timed = timings[FIRST:]
        ours.append(rows * context / median(line["seconds"] for line in timed))
        seconds = sum(line["seconds"] for line in timed)
        waits.append(sum(line["waiting"].get("data", 0.0) * line["seconds"] for line in timed) / seconds)
        shares.append(sum(line["tokens_per_second"] * line["seconds"] for line in timed) / len(timed) / rows / context)
        memory = max(memory, *(line["memory_peak"] for line in timed))
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch) / "found.json"
            step = [sys.executable, str(REPO / "tests/bench/train_step.py"), "--cases", case, "--no-peer"]
            step += ["--device", asked.device, "--precision", precision, "--output", str(place)]
            subprocess.run(step, check=True, stdout=subprocess.DEVNULL)
            found = json.loads(place.read_text())["result"]["cases"][case]
        if "ours" not in found:
            raise RuntimeError(f"the bare step of {case}: {found.get('error', 'no figures')}")
        bare.append(found["ours"]["tokens_per_second"])
    return {
        "case": case,
        "tokens_per_second": median(ours),
        "bare_tokens_per_second": median(bare),
        "ratio": median(ours) / median(bare),
        "waiting_for_data": max(waits),
        "full": median(shares),
        "peak_gib": memory / 2**30,
        "all": ours,
        "all_bare": bare,
    }


def launcher(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def zero(stage: int, asked: argparse.Namespace) -> dict[str, Any]:
    """The command with DeepSpeed beside plain DeepSpeed around Llama, in turns."""
    vocabulary, rows = SIZES[asked.size][0], asked.place / f"whole-{asked.size}.jsonl"
    precision = "bf16" if asked.device == "cuda" else "fp32"
    updates = FIRST + asked.updates
    options: dict[str, object] = {"model": asked.size, "batch-rows": ROWS * asked.ranks, "context": LENGTH}
    options |= {"engine": "deepspeed", "zero": stage, "precision": precision}
    ours: list[float] = []
    theirs: list[float] = []
    found: dict[str, Any] = {"zero": stage, "ranks": asked.ranks, "agree": True, "worst": 0.0}
    tokens = ROWS * asked.ranks * LENGTH
    for _ in range(asked.rounds):
        timings, metrics = command(asked.place, rows, vocabulary, options, updates, asked.limit, launcher(asked.ranks))
        ours.append(tokens / median(line["seconds"] for line in timings[FIRST:]))
        found["peak_gib"] = max(line["memory_peak"] for line in timings) / 2**30
        with tempfile.TemporaryDirectory() as scratch:
            to = Path(scratch) / "found.json"
            peer = ["--peer", str(stage), str(to), str(rows), asked.size, asked.device, str(updates)]
            done = subprocess.run(
                [*launcher(asked.ranks), __file__, *peer], capture_output=True, text=True, timeout=asked.limit
            )
            if done.returncode:
                raise RuntimeError(f"the peer at ZeRO-{stage}: {done.stderr[-3000:]}")
            other = json.loads(to.read_text())
        theirs.append(tokens / median(other["seconds"][FIRST:]))
        found["peer_peak_gib"] = other["peak"] / 2**30
        worst = max(abs(line["loss"] / loss - 1) for line, loss in zip(metrics, other["losses"]))
        found["worst"] = max(found["worst"], worst)
    found["agree"] = found["worst"] <= ALIKE[precision]
    found |= {"tokens_per_second": median(ours), "peer_tokens_per_second": median(theirs), "goal": GOALS.get(stage)}
    found |= {"all": ours, "all_peer": theirs}
    return found | ({"ratio": median(ours) / median(theirs)} if found["agree"] else {})


def peer(stage: int, to: str, rows: str, size: str, device: str, updates: int) -> None:
    """A rank of plain DeepSpeed around Llama, as its users write it: mean loss of a rank's rows, their average."""
    import torch
    import torch.distributed as dist

    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from transformers import LlamaConfig, LlamaForCausalLM

    from iqc.model.config import preset
    from iqc.model.decoder import Decoder
    from iqc.tokens.dataset import open_dataset
    from iqc.tokens.loader import Limits, batches

    shapes()
    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which it would compile for minutes
    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    place = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    config = preset(size)
    started = Decoder(config, seed=0)
    record = {k: v for k, v in config.to_hf().items() if k not in ("architectures", "model_type")}
    model = LlamaForCausalLM(LlamaConfig(**record))
    model.load_state_dict(started.state_dict())
    del started
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-9, betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
    )  # the rate of ours in its warm-up: no loss of these updates depends on it
    settings = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "overlap_comm": device == "cuda", "contiguous_gradients": True},
        "bf16": {"enabled": device == "cuda"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    losses, seconds = [], []
    dataset, _ = open_dataset([rows])
    limits = Limits(LENGTH, config.vocab_size, 0)
    source = batches(dataset, limits, seed=0, batch_rows=ROWS * ranks, rank=rank, ranks=ranks)
    for _ in range(updates):
        clock = time.perf_counter()
        tokens = torch.from_numpy(next(source).tokens).to(place)
        loss = engine(input_ids=tokens, labels=tokens, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        total = loss.detach().double()
        dist.all_reduce(total)
        losses.append(total.item() / ranks)
        seconds.append(time.perf_counter() - clock)
    source.close()
    if rank == 0:
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        Path(to).write_text(json.dumps({"losses": losses, "seconds": seconds, "peak": peak}))
    dist.barrier()
    dist.destroy_process_group()


def table(found: dict[str, Any]) -> None:
    for row in found.get("whole", []):
        rates = f"{row['tokens_per_second']:,.0f} tokens/s, bare step {row['bare_tokens_per_second']:,.0f}"
        waits = f"waiting {row['waiting_for_data']:.2%} (goal {WAITING:.0%}), rows {row['full']:.1%} full"
        print(f"{row['case']:12} {rates} ({row['ratio']:.3f}), {waits}, {row['peak_gib']:.1f} GiB")
    for row in found.get("zero", []):
        ratio = f"{row['ratio']:.3f} (goal {row['goal']})" if "ratio" in row else "NOT ALIKE: no ratio"
        ours = f"{row['tokens_per_second']:,.0f} tokens/s, {row['peak_gib']:.1f} GiB"
        theirs = f"plain {row['peer_tokens_per_second']:,.0f}, {row['peer_peak_gib']:.1f} GiB"
        print(f"ZeRO-{row['zero']} on {row['ranks']}: {ours}; {theirs}; {ratio}; losses differ by {row['worst']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="whole|zero", help="by default both")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES | SMALL)}")
    parser.add_argument("--size", default="0.9b", choices=list(SIZES), help="the shape of zero")
    parser.add_argument("--stages", default="1,3", help="ZeRO stages")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--updates", type=int, default=30, help="timed, a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=300, help="seconds for one process")
    parser.add_argument("--mb", type=int, default=60, help="MB of source text")
    parser.add_argument(
        "--place", type=Path, help="where rows and tokenizers are, or are made; by default for this run"
    )
    parser.add_argument("--prepare", action="store_true", help="make them and end")
    parser.add_argument("--output", type=Path, default=RESULTS / "train.json")
    parser.add_argument("--print-only", action="store_true")
    asked = parser.parse_args()
    parts = asked.parts or ["whole", "zero"]
    if not set(parts) <= {"whole", "zero"}:
        parser.error("the parts are whole and zero")
    cases = asked.cases.split(",") if "whole" in parts else []
    sizes = [asked.size] if "zero" in parts else []
    with tempfile.TemporaryDirectory(prefix="iqc-bench-") as scratch:
        asked.place = (asked.place or Path(scratch)).resolve()
        prepare(asked.place, cases, sizes, asked.mb)
        if asked.prepare:
            return
        found: dict[str, Any] = {"whole": [], "zero": []}
        for case in cases:
            found["whole"].append(whole(case, asked))
            table({"whole": found["whole"][-1:]})
        for stage in asked.stages.split(",") if sizes else []:
            found["zero"].append(zero(int(stage), asked))
            table({"zero": found["zero"][-1:]})
    import torch

    found["device"] = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
    save("train", found, ["torch", "transformers", "deepspeed"], asked.print_only, asked.output)
    table(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["--peer"]:
        stage, to, rows, size, device, updates = sys.argv[2:]
        peer(int(stage), to, rows, size, device, int(updates))
    else:
        main()
