"""Watching a run: lines or a bar on standard error, RUN/timings.jsonl, TensorBoard.

What an update computed goes to RUN/metrics.jsonl (iqc.train.run), a line an update, and is the same bit for bit after
a kill: step (from 0), rate, loss (nats a predicted token), tokens (sum of their weights), grad_norm (before clipping),
with experts balance, where held-out rows were scored valid_loss (by name for named rows), of several sources
domain_loss by name and, where they changed, shares, and what losses add under names of their own.

How long it took is never the same twice and goes to RUN/timings.jsonl: step; seconds since the update before, with the
checkpoint that follows it; tokens_per_second of the rows, padding not counted; flops_per_second, as `iqc model show`
counts them, attention within documents; flops_share of the peak of all devices in bfloat16 (peaks.toml), where it
is known; memory and memory_peak in bytes, of rank 0's device, or of its process on a CPU; waiting: for what, and for
which share of the seconds. An update that a run repeats after a kill has two lines.
"""

import resource
import sys
import time
import tomllib
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import torch

from iqc.errors import UsageError
from iqc.model.config import ModelConfig
from iqc.model.describe import flops
from iqc.tokens.loader import Batch
from iqc.train.ranks import Ranks

TIMINGS = "timings.jsonl"
WORTH_SAYING = 0.005  # of the time, for a wait to be shown; timings.jsonl has all
WINDOW = 20  # updates of which the shown speed and the time that is left are a mean
LINES = 10  # a run writes at least so many lines on standard error,
EVERY = 60.0  # and one at least every so many seconds


def work_of(batch: Batch) -> torch.Tensor:
    """[3] float64: tokens of the rows, the sum of the squares of their documents' lengths, predicted tokens."""
    lengths = [row.astype("f8") for row in batch.lengths]
    tokens, squares = sum(float(row.sum()) for row in lengths), sum(float(row @ row) for row in lengths)
    return torch.tensor([tokens, squares, float((batch.weights != 0).sum())], dtype=torch.float64)


def peak_flops(device: str) -> float | None:
    """Operations a second in bfloat16 of a device of that name, or None where peaks.toml has none."""
    table = tomllib.loads((Path(__file__).parent / "peaks.toml").read_text("utf-8"))
    return next((1e12 * rate for name, rate in table.items() if name in device), None)


class Meter:
    """Of a run that begins at update `first`. A context manager; rank 0 alone writes."""

    def __init__(
        self,
        config: ModelConfig,
        name: str,
        steps: int,
        first: int,
        ranks: Ranks,
        precision: str,
        directory: str | Path,
        tensorboard: str | None = None,
        quiet: bool = False,
    ):
        """`name` is the stage's, `precision` one of iqc.train.settings.PRECISIONS."""
        self.name, self.steps, self.ranks = name, steps, ranks
        self.costs = [addend.value for addend in flops(config, 1)]  # of blocks, attention, head
        cuda = ranks.device.type == "cuda"
        self.device = torch.cuda.get_device_name(ranks.device) if cuda else "cpu"
        peak = peak_flops(self.device) if precision != "fp32" else None  # other units, another peak
        self.peak = peak * ranks.size if peak else None
        self.said = not quiet and ranks.main
        self.waits: dict[str, float] = defaultdict(float)  # seconds since the last update
        self.recent: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)  # seconds, tokens, operations
        self.total = 0.0
        self.waited: dict[str, float] = defaultdict(float)
        self.bar: Any = None
        if self.said and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(desc=f"iqc train {name}", unit=" updates", total=steps, initial=first, leave=False)
        self.board = open_board(tensorboard, first) if tensorboard and ranks.main else None
        self.file = open(Path(directory) / TIMINGS, "ab") if ranks.main else None  # noqa: SIM115
        self.last = self.line = time.monotonic()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around what the device waits for: "data", "checkpoint"."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.waits[what] += time.monotonic() - started

    def update(self, step: int, metrics: dict[str, Any], batch: Batch) -> None:
        """Update `step` (from 0) is done; `metrics` are its line, `batch` are this rank's rows. All ranks call it."""
        now = time.monotonic()
        seconds, self.last = max(now - self.last, 1e-9), now
        waits, self.waits = dict(self.waits), defaultdict(float)
        for what, spent in waits.items():
            self.waited[what] += spent
        self.total += seconds
        amounts = self.ranks.sum(work_of(batch)).tolist()
        amounts = [amount / self.ranks.context for amount in amounts]  # ranks that share rows have the same ones
        tokens, operations = amounts[0], sum(cost * amount for cost, amount in zip(self.costs, amounts))
        if len(self.recent) == 1 and self.recent[0][0] > 2 * seconds:
            self.recent.clear()  # the first update compiles and allocates
        self.recent.append((seconds, tokens, operations))
        if self.file is None:
            return
        memory, peak = memory_of(self.ranks.device)
        timings = {
            "step": step,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": operations / seconds,
            **({"flops_share": operations / seconds / self.peak} if self.peak else {}),
            "memory": memory,
            "memory_peak": peak,
            "waiting": {what: spent / seconds for what, spent in waits.items()},
        }
        self.file.write(orjson.dumps(timings) + b"\n")
        self.file.flush()
        if self.board is not None:
            for tag, value in numbers(metrics | {"timings": timings}):
                if not tag.endswith("step"):
                    self.board.add_scalar(tag, value, step)
        if self.bar is not None:
            self.bar.set_postfix_str(self.text(metrics, timings), refresh=False)
            self.bar.update(step + 1 - self.bar.n)  # updates that were passed over count
        elif self.said and (
            (step + 1) % max(1, self.steps // LINES) == 0 or step + 1 == self.steps or now - self.line >= EVERY
        ):
            self.line = now
            at, left = f"update {step + 1}/{self.steps}", clock(self.seconds_left(step))
            print(f"iqc train: {self.name}: {at}, {self.text(metrics, timings)}, {left} left", file=sys.stderr)

    def text(self, metrics: dict[str, Any], timings: dict[str, Any]) -> str:
        """Loss, gradient and speed in a line; speeds are means of the last updates."""
        seconds, tokens, operations = map(sum, zip(*self.recent))
        parts = [f"{word} {metrics[key]:.3f}" for word, key in (("loss", "loss"), ("gradient norm", "grad_norm"))
                 if isinstance(metrics.get(key), float)]  # fmt: skip
        if domains := metrics.get("domain_loss"):
            parts.insert(1, "of " + ", ".join(f"{name} {loss:.3f}" for name, loss in domains.items()))
        speed = f"{tokens / seconds:,.0f} tokens/s"
        if self.peak:
            speed += f" ({operations / seconds / self.peak:.1%} of {self.peak / 1e12:,.0f} TFLOP/s, {self.device})"
        memory = f"{timings['memory'] / 2**30:.1f} GiB, at most {timings['memory_peak'] / 2**30:.1f}"
        shares = [(what, spent / self.total) for what, spent in sorted(self.waited.items())]
        waits = [f"{share:.1%} waiting for {what}" for what, share in shares if share >= WORTH_SAYING]
        return ", ".join([*parts, speed, memory, *waits])

    def seconds_left(self, step: int) -> float:
        return (self.steps - step - 1) * sum(seconds for seconds, _, _ in self.recent) / len(self.recent)

    def close(self) -> None:
        for opened in (self.bar, self.board, self.file):
            if opened is not None:
                opened.close()


def numbers(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested tables under `name/name`."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes in use, and the most there were."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        return now, max(now, most)  # two counts, which differ by some pages
    except OSError:  # no Linux
        return most, most


def open_board(directory: str, first: int) -> Any:
    """A TensorBoard writer; what an earlier run wrote there from update `first` on is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs TensorBoard", remedy="pip install 'iqc[tensorboard]'") from None
    return SummaryWriter(directory, purge_step=first)


def clock(seconds: float) -> str:
    """25 s, 3 min 20 s, 5 h 07 min, 3 d 4 h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
