"""One page about a run, from the side-cars that its stages left in a directory; no stage knows of it.

    *.json with "command"      what a stage counted (--summary)
    *.json with "benchmark"    the figures of an evaluation (--summary)
    DIR/metrics.jsonl          a training run, with lineage.json in its checkpoints
    sample*.jsonl.zst          completions to show

Other files of these names are passed over. Files are taken in the order of their names, runs in the order in which they
were last written.
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from iqc.errors import IqcError
from iqc.streams.inspect import lineage_text
from iqc.streams.runner import StreamInput, read_records
from iqc.streams.stage import Record
from iqc.tokens.mix import report as mix_report
from iqc.tokens.mix.report import COLOURS


@dataclass(slots=True)
class Run:
    """A training run: its name, its metrics, the lineage of its newest checkpoint."""

    name: str
    metrics: list[dict]
    lineage: dict | None

    @property
    def measure(self) -> str:
        """What it trained on: the loss, or in reinforcement learning the share of tests passed."""
        return "loss" if any("loss" in metrics for metrics in self.metrics) else "pass_rate"

    def series(self, measure: str) -> list[float]:
        """One measure over the updates; those whose value is null, a number that is not finite, are left out."""
        return [metrics[measure] for metrics in self.metrics if is_number(metrics.get(measure))]


@dataclass(slots=True)
class Findings:
    """All that was found in a directory."""

    stages: list[tuple[str, dict]] = field(default_factory=list)
    evals: list[tuple[str, dict]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)


def find(directory: str) -> Findings:
    """Read the side-cars below a directory. IqcError when there are none."""
    place = Path(directory)
    found = Findings()
    for path in sorted(place.rglob("*.json")):
        if not path.is_file() or path.parent.name.startswith(("step-", ".")) or (path.parent / "config.json").exists():
            continue  # inside a checkpoint or a model
        data = json_object(path)
        if "benchmark" in data and is_number(data.get("tasks")):
            found.evals.append((path.stem, data))
        elif "command" in data and is_counts(data):
            found.stages.append((path.stem, data))
    for path in sorted(place.rglob("metrics.jsonl"), key=lambda item: item.stat().st_mtime):
        checkpoints = sorted(path.parent.glob("step-*/lineage.json"))
        run = Run(path.parent.name, read_metrics(path), read_lineage(checkpoints[-1]) if checkpoints else None)
        if run.series(run.measure):
            found.runs.append(run)
    for path in sorted(place.rglob("sample*.jsonl.zst")):
        records = read_records(StreamInput([str(path)]))
        found.samples += [record for record in records if "task_id" in record and isinstance(record.get("text"), str)]
    if not (found.stages or found.evals or found.runs):
        raise IqcError(
            "nothing to report",
            where=directory,
            remedy="stages leave side-cars with --summary FILE; train and rl always",
        )
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_counts(data: dict) -> bool:
    """Whether a --summary has the counts that `funnel` shows."""
    dropped = data.get("dropped", {})
    return isinstance(dropped, dict) and all(map(is_number, (data.get("read"), data.get("kept"), *dropped.values())))


def json_object(path: Path) -> dict:
    """The JSON object in a file; an empty one where there is something else."""
    try:
        data = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}


def read_lineage(path: Path) -> dict | None:
    """The lineage in a file; None where there is something else."""
    lineage = json_object(path)
    try:
        lineage_text(lineage)
    except (KeyError, TypeError, AttributeError):
        return None
    return lineage


def read_metrics(path: Path) -> list[dict]:
    """The objects of a metrics.jsonl. A last line that is half written, as of a run that goes on, is left out."""
    metrics = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            metrics.append(orjson.loads(line))
            if not isinstance(metrics[-1], dict):
                raise ValueError(f"{type(metrics[-1]).__name__}, not an object")
        except ValueError as error:
            if not line.endswith(b"\n"):
                return metrics
            remedy = "the file is damaged: remove the line, or report on another directory"
            raise IqcError(f"not a line of metrics: {error}", where=f"{path}:{number}", remedy=remedy) from None
    return metrics


def measures(data: dict) -> list[tuple[str, dict]]:
    """(measure, its mean and interval) of an evaluation."""
    keys = ("mean", "low", "high")
    dicts = [(measure, value) for measure, value in data.items() if isinstance(value, dict)]
    return [(measure, value) for measure, value in dicts if all(is_number(value.get(key)) for key in keys)]


def funnel(found: Findings) -> list[tuple[str, ...]]:
    """Rows (stage, read, kept, dropped and why)."""
    rows: list[tuple[str, ...]] = []
    for name, data in found.stages:
        dropped = data.get("dropped", {})
        why = ", ".join(f"{rule} {count:,}" for rule, count in sorted(dropped.items(), key=lambda item: -item[1]))
        rows.append((name, f"{data['read']:,}", f"{data['kept']:,}", f"{sum(dropped.values()):,}", why))
    return rows


def figures(found: Findings) -> list[tuple[str, ...]]:
    """Rows (evaluation, measure, mean, interval, tasks)."""
    rows: list[tuple[str, ...]] = []
    for name, data in found.evals:
        for measure, value in measures(data):
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            rows.append((name, measure, f"{value['mean']:.3f}", interval, str(data["tasks"])))
    return rows


def training(found: Findings) -> list[tuple[str, ...]]:
    """Rows (run, updates, measure, first, last): means of the first and last tenth of the updates."""
    rows: list[tuple[str, ...]] = []
    for run in found.runs:
        values = run.series(run.measure)
        part = max(1, len(values) // 10)
        first, last = sum(values[:part]) / part, sum(values[-part:]) / part
        rows.append((run.name, str(len(values)), run.measure, f"{first:.3f}", f"{last:.3f}"))
    return rows


def mixtures(found: Findings) -> list[tuple[str, ...]]:
    """Rows of what went into each mixture, by source, language and difficulty."""
    shown = [(name, data) for name, data in found.stages if mix_report.is_mixture(data)]
    return [row for name, data in shown for row in mix_report.rows_of(data, name)]


TABLES = (
    ("Records in and out", ("stage", "read", "kept", "dropped", "why"), funnel),
    ("Mixtures", mix_report.COLUMNS, mixtures),
    ("Training", ("run", "updates", "measure", "first tenth", "last tenth"), training),
    ("Evaluations on held-out items", ("evaluation", "measure", "mean", "95 % interval", "tasks"), figures),
)


def tables(found: Findings) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, columns, rows) of the tables that have rows."""
    filled = [(title, columns, rows(found)) for title, columns, rows in TABLES]
    return [table for table in filled if table[2]]


def print_report(found: Findings) -> None:
    """The tables on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, columns, rows in tables(found):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        console.print(table, "")
    for sample in found.samples:
        console.print(f"sample {sample['task_id']}", style="bold", markup=False)
        console.print(sample["text"], markup=False, highlight=False)


def curve(run: Run, measure: str, colour: str, width: int = 420, height: int = 150) -> str:
    """One measure over the updates as an SVG picture, smoothed over a twentieth of them."""
    values = run.series(measure)
    part = max(1, len(values) // 20)
    smooth = [
        sum(values[max(0, k - part + 1) : k + 1]) / len(values[max(0, k - part + 1) : k + 1])
        for k in range(len(values))
    ]
    low, high = min(smooth), max(smooth)
    span = (high - low) or 1.0
    left, top, right, bottom = 46, 22, width - 8, height - 20

    def x(k: int) -> float:
        return left + (right - left) * k / max(1, len(smooth) - 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / span

    points = " ".join(f"{x(k):.1f},{y(value):.1f}" for k, value in enumerate(smooth))
    labels = "".join(
        f'<text x="{left - 4}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.3g}</text>' for value in (low, high)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f'<text x="{left}" y="14" class="title">{html.escape(run.name)}: {measure}</text>'
        f'<path d="M{left} {top}V{bottom}H{right}" class="axis"/>{labels}'
        f'<text x="{right}" y="{height - 5}" text-anchor="end">{len(values)} updates</text>'
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/></svg>'
    )


def bars(found: Findings, width: int = 640) -> str:
    """The evaluations' means with their intervals as an SVG picture, each measure on its own scale."""
    rows = [
        (f"{name}: {measure}", value, 100.0 if value["high"] > 1 else 1.0)
        for name, data in found.evals
        for measure, value in measures(data)
    ]
    height, left = 24 * len(rows) + 8, 280
    parts = []
    for number, (label, value, scale) in enumerate(rows):
        y = 24 * number + 4
        length, low, high = ((width - left - 60) * value[key] / scale for key in ("mean", "low", "high"))
        parts.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{html.escape(label)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="14" fill="{COLOURS[0]}"/>'
            f'<path d="M{left + low:.1f} {y + 10}H{left + high:.1f}" stroke="#24292f" stroke-width="2"/>'
            f'<text x="{left + high + 6:.1f}" y="{y + 14}">{value["mean"]:.3f}</text>'
        )
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(parts)}</svg>'


def table_html(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; color: #24292f }
table { border-collapse: collapse; margin-bottom: 1.5em } td, th { padding: .2em .8em; text-align: left }
th { border-bottom: 1px solid #d0d7de } td { border-bottom: 1px solid #eaeef2; vertical-align: top }
pre { background: #f6f8fa; padding: 1em; overflow-x: auto; font-size: 13px }
svg { font: 12px system-ui, sans-serif; max-width: 100% }
svg .axis { stroke: #8c959f; fill: none } svg .title { font-weight: 600 }
"""


def page(found: Findings, title: str) -> str:
    """The report as one HTML file that needs nothing else."""
    mixed = "".join(mix_report.pictures(data, name) for name, data in found.stages if mix_report.is_mixture(data))
    curves = "".join(
        curve(run, measure, COLOURS[number % len(COLOURS)])
        for number, run in enumerate(found.runs)
        for measure in (("loss",) if run.measure == "loss" else ("pass_rate", "reward"))
        if run.series(measure)
    )
    samples = "".join(
        f"<h3>{html.escape(str(sample['task_id']))}</h3><pre>{html.escape(sample['text'])}</pre>"
        for sample in found.samples
    )
    newest = next((run for run in reversed(found.runs) if run.lineage), None)
    origin = f"<pre>{html.escape(lineage_text(newest.lineage))}</pre>" if newest and newest.lineage else ""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<h2>{name}</h2>{table_html(columns, rows)}" for name, columns, rows in tables(found)),
        f"<h2>Pictures</h2>{mixed}{bars(found) if found.evals else ''}<div>{curves}</div>",
        f"<h2>Samples of the exported model</h2>{samples}" if samples else "",
        f"<h2>Where {html.escape(newest.name)} comes from</h2>{origin}" if newest else "",
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"
