"""What went into a mixture, from the summary that `iqc mix` leaves: rows of a table, and pictures of its course."""

import html
from collections.abc import Sequence
from typing import Any

COLUMNS = ("mixture", "part", "there", "given", "bytes", "amount", "share wanted", "share given", "epochs")
KINDS = ("source", "language", "band")
COLOURS = ("#1f6feb", "#d1570b", "#1a7f37", "#8250df", "#bf3989", "#57606a")


def is_mixture(data: Any) -> bool:
    """Whether a summary has a mixture whose numbers can be shown."""
    try:
        lanes, marks = data["mixture"]["lanes"], data["mixture"]["marks"]
        rows_of(data, "")
        return bool(lanes) and all(len(mark) == len(lanes) and sum(mark) >= 0 for mark in marks)
    except (KeyError, TypeError, ValueError):
        return False


def rows_of(data: dict, name: str) -> list[tuple[str, ...]]:
    """A row for each source; below one that is parted a row for each language and band; at last the whole."""
    mixture = data["mixture"]
    unit = mixture["by"]
    rows: list[tuple[str, ...]] = []
    lanes = mixture["lanes"]
    for source in dict.fromkeys(lane["source"] for lane in lanes):
        parts = [lane for lane in lanes if lane["source"] == source and (lane["there"]["records"] or lane["wanted"])]
        rows.append(row(name, source, parts, unit))
        if len(parts) > 1:
            rows += [row("", f"- {' '.join(filter(None, label(lane)))}", [lane], unit) for lane in parts]
    return [*rows, row(name, "all", lanes, unit)]


def label(lane: dict) -> tuple[str, str]:
    language = {"": "", "*": "others"}.get(lane["language"], lane["language"])
    return language, lane["band"] or ("" if language else "no score")


def row(name: str, part: str, lanes: Sequence[dict], unit: str) -> tuple[str, ...]:
    there, given, size = (
        sum(lane[what][of] for lane in lanes)
        for what, of in (("there", "records"), ("given", "records"), ("given", "bytes"))
    )
    amount = sum(lane["given"]["amount"] for lane in lanes)
    shares = (f"{sum(lane[key] for lane in lanes):.2%}" for key in ("wanted", "share"))
    return (
        name,
        part,
        f"{there:,}",
        f"{given:,}",
        f"{size:,}",
        f"{amount:,} {unit}",
        *shares,
        f"{given / (there or 1):.3g}",
    )


def pictures(data: dict, name: str) -> str:
    """The shares over the course of the output as SVG: of sources, and of languages and bands where there are any."""
    lanes, marks = data["mixture"]["lanes"], data["mixture"]["marks"]
    found = []
    for kind in KINDS:
        groups = list(dict.fromkeys(lane[kind] for lane in lanes))
        if kind == "source" or len(groups) > 1:
            steps = [grouped(lanes, kind, groups, one, other) for one, other in zip([[0] * len(lanes), *marks], marks)]
            found.append(stacked(f"{name}: {kind}s", groups, [step for step in steps if sum(step)]))
    return "".join(found)


def grouped(lanes: list[dict], kind: str, groups: list[str], before: list[float], after: list[float]) -> list[float]:
    """What each group gave between two marks."""
    given = dict.fromkeys(groups, 0.0)
    for lane, one, other in zip(lanes, before, after):
        given[lane[kind]] += max(0, other - one)
    return list(given.values())


def stacked(title: str, names: list[str], steps: list[list[float]], width: int = 640, height: int = 200) -> str:
    """Columns of shares, one a step, from the first name at the bottom to the last; the legend has the whole shares."""
    left, top, right, bottom = 40, 24, width - 200, height - 22
    across = (right - left) / max(1, len(steps))
    parts = [f'<text x="{left}" y="14" class="title">{html.escape(title)}</text>']
    base = [0.0] * len(steps)
    whole = sum(map(sum, steps)) or 1.0
    for number, name in enumerate(names):
        upper = [low + step[number] / sum(step) for low, step in zip(base, steps)]
        outline = [(left + across * (k + side), share) for k, share in enumerate(upper) for side in (0, 1)]
        outline += [(left + across * (k + side), base[k]) for k in reversed(range(len(steps))) for side in (1, 0)]
        points = " ".join(f"{x:.1f},{bottom - (bottom - top) * share:.1f}" for x, share in outline)
        style = f'fill="{COLOURS[number % len(COLOURS)]}" fill-opacity="{0.9 ** (number // len(COLOURS)) * 0.85:.2f}"'
        parts.append(f'<polygon points="{points}" {style}/>')
        base = upper
        y = top + 6 + 16 * number
        share = sum(step[number] for step in steps) / whole
        text = html.escape(f"{name or 'none'} {share:.1%}")
        parts.append(f'<rect x="{right + 12}" y="{y}" width="10" height="10" {style}/>')
        parts.append(f'<text x="{right + 28}" y="{y + 9}">{text}</text>')
    parts.append(f'<path d="M{left} {top}V{bottom}H{right}" class="axis"/>')
    for share in (0, 0.5, 1):
        parts.append(
            f'<text x="{left - 4}" y="{bottom - (bottom - top) * share + 4:.0f}" text-anchor="end">{share:.0%}</text>'
        )
    parts.append(f'<text x="{right}" y="{bottom + 16}" text-anchor="end">course of the output</text>')
    height = max(height, top + 16 * len(names) + 12)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(parts)}</svg>'
