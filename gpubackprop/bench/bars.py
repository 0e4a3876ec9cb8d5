"""Pictures of bars: shares of the limit, peers, and several records side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.bench.cells import shown
from gpubackprop.bench.comparing import Comparison
from gpubackprop.bench.drawing import COLORS, Axes, look, png
from gpubackprop.bench.machines import letter, machine
from gpubackprop.bench.providers import NO_PEERS
from gpubackprop.bench.rows import Row
from gpubackprop.bench.tables import key_names, ours

LIMITS = {"copy": "copy", "products": "the products alone", "read": "read"}
MOST_BARS = 40  # a picture shows at most so many cases


def bars(axes: Axes, at: Any, values: Any, ends: Any, **options: Any) -> None:
    """Draw a horizontal bar for each value, and a line over its range `ends` = (low, high)."""
    errors = np.abs(np.array(ends, float).reshape(-1, 2).T - np.array(values, float))
    axes.barh(at, values, xerr=errors, ecolor="#444444", **options)


def finish(axes: Axes, names: list[str], label: str) -> None:
    """Name the bars at 0, 1, ..., and draw the line at 1 and the grid."""
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(label)
    axes.grid(True, axis="x")


def side_by_side(comparison: Comparison) -> bytes | None:
    """Return a PNG that compares records: in each case a bar is a record's time over the first's.

    Lines show p20 and p80.

    Raises
    ------
    MissingDependencyError : Matplotlib is not installed.
    """
    return png(
        lambda figure: _compared(figure, comparison), "gpubackprop: time in each file / time in A"
    )


def _compared(figure: Any, comparison: Comparison) -> bool:
    numbers = range(len(comparison.records))
    lines = [line for line in comparison.lines if any(line.factor(n) for n in numbers[1:])]
    keys = key_names()
    lines = sorted(lines, key=lambda line: (line.place != "GPU", line.case not in keys))[:MOST_BARS]
    if not lines:
        return False
    several = len({line.place for line in lines}) > 1
    figure.set_size_inches(10, 1.8 + len(lines) * (0.12 + 0.17 * len(numbers)))
    axes, height = figure.add_subplot(), 0.85 / len(numbers)
    for number in numbers:
        at, values, ends = [], [], []
        for place, line in enumerate(lines):
            factor, base, row = line.factor(number), line.rows[0], line.rows[number]
            if factor is None or base is None or row is None or not base.seconds:
                continue
            at.append(place + (number - (len(numbers) - 1) / 2) * height)
            values.append(factor)
            ends.append([(end or row.seconds or 0.0) / base.seconds for end in (row.p20, row.p80)])
        name = f"{letter(number)}: {machine(comparison.records[number])}"
        bars(axes, at, values, ends, height=height, color=look(number)["color"], label=name)
    names = [f"{line.case}\n{line.place}" if several else line.case for line in lines]
    label = "time / time in A, with p20 to p80 (to the left of the line: faster than A)"
    finish(axes, names, label)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    factors = [factor for line in lines for n in numbers if (factor := line.factor(n))]
    if max(factors) > 20:  # on a linear axis the short bars could not be seen
        axes.set_xscale("log")
        axes.set_xlim(left=min(factors) / 2)
        axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    return True


def shares(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Draw the share of the limit that each operation or network reaches at its largest shape.

    Lines show p20 and p80. If the record has a GPU, the shares are the GPU's.
    """
    best: dict[tuple[str, str], Row] = {}
    for row in ours(rows):
        parts = row.case.split("/")
        key = ("/".join(parts[:-1]), row.device)
        if record["gpu"] and row.device == "cpu":
            continue
        if row.share and row.bytes >= getattr(best.get(key), "bytes", 0):
            best[key] = row
    found = list(best.values())[::-1]
    if not found:
        return False
    figure.set_size_inches(9.5, 1.6 + 0.32 * len(found))
    axes = figure.add_subplot()
    values = np.array([row.share for row in found], float)
    ends = np.array([[row.share_p20 or row.share, row.share_p80 or row.share] for row in found])
    for color, (limit, label) in zip(COLORS, LIMITS.items(), strict=False):
        at = [number for number, row in enumerate(found) if row.limit == limit]
        if at:
            bars(axes, at, values[at], ends[at], height=0.7, color=color, label=f"limit: {label}")
    text = "share of the limit: limit's time / time of gpubackprop (p20 to p80)"
    finish(axes, [row.case for row in found], text)
    axes.set_ylim(-0.7, len(found) - 0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return True


def peers(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Draw each provider's time over ours in the key cases: above 1 the provider is slower."""
    keys = [row for row in ours(rows) if row.case in key_names()]
    if record["gpu"]:
        keys = [row for row in keys if row.device != "cpu"]
    groups = [
        (row, [other for other in rows if other.case == row.case and other.device == row.device
               and other.provider not in (*NO_PEERS, row.provider) and other.ratio])
        for row in keys
    ]  # fmt: skip
    groups = [(row, others) for row, others in groups if others]
    if not groups:
        return False
    names = list(dict.fromkeys(other.provider for _, others in groups for other in others))
    figure.set_size_inches(9.5, 1.4 + 0.27 * sum(len(others) + 1 for _, others in groups))
    axes, at, ticks = figure.add_subplot(), 0.0, []
    for row, others in groups:
        first = at
        for other in others:
            ratio = other.ratio or 1.0
            color = COLORS[1 + names.index(other.provider) % (len(COLORS) - 1)]
            ends = [1 / (other.ratio_p80 or ratio), 1 / (other.ratio_p20 or ratio)]
            bars(axes, at, 1 / ratio, ends, color=color, height=0.85)
            axes.annotate(
                f"  {shown(other.provider)} {1 / ratio:.2f}",
                (1 / (other.ratio_p20 or ratio), at),
                va="center", fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )  # fmt: skip
            at -= 1
        ticks.append(((first + at + 1) / 2, row.case))
        at -= 0.9
    axes.set_yticks([y for y, _ in ticks], [name.replace("/f32/", "\n") for _, name in ticks])
    axes.tick_params(axis="y", labelsize=9)
    axes.set_ylim(at + 1, 1)
    axes.axvline(1, color=COLORS[0], linewidth=2)
    axes.set_xlabel("their time / time of gpubackprop (the line): beyond it they take longer")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 1.25)
    axes.grid(True, axis="x")
    return True
