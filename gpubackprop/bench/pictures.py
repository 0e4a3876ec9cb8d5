"""Pictures of a record (roofline, batch size, share of the limit, peers, classes) or of several."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop._optional import require
from gpubackprop.bench.comparing import Comparison
from gpubackprop.bench.contestants import LIMIT, NO_PEERS, OURS, SAME_SIZE
from gpubackprop.bench.machines import letter, machine
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.rows import Row
from gpubackprop.bench.table import shown
from gpubackprop.bench.tables import dates, key_names, ours
from gpubackprop.tensorfile import write_atomically

# Okabe & Ito 2008, told apart with every common colour blindness; ours is always the first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
MARKERS = "osD^vPX*"


def _look(number: int) -> dict[str, Any]:
    """Colour and marker of the number-th thing; the pairs repeat after 64."""
    shift = number // len(COLORS)
    return {
        "color": COLORS[number % len(COLORS)], "marker": MARKERS[(number + shift) % len(MARKERS)]
    }  # fmt: skip


TITLES = {
    "roofline": "Roofline", "batch": "Training step by batch size", "share": "Share of the limit",
    "peers": "Beside its peers", "classes": "Softmax cross entropy by number of classes",
}  # fmt: skip
LIMITS = {"copy": "copy", "products": "the products alone", "read": "read"}
STYLE = {
    "font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": "#DDDDDD", "legend.frameon": False, "legend.fontsize": 10, "lines.linewidth": 2,
    "figure.facecolor": "white",
}  # fmt: skip
Axes = Any


def draw_all(record: dict[str, Any], folder: Path, card: str) -> list[Path]:
    """Every picture that the record has figures for: benchmark_<card>_<title>.png."""
    written = []
    for title, content in drawn(record).items():
        path = folder / f"benchmark_{card}_{title}.png"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        written.append(path)
    return written


def drawn(record: dict[str, Any]) -> dict[str, bytes]:
    """Key of `TITLES` -> PNG, of every picture that the record has figures for.

    Raises
    ------
    MissingDependencyError : Matplotlib is not there.
    """
    rows = [row for row in rows_of(record) if row.seconds]
    most = max((row.threads for row in rows if row.device == "cpu"), default=1)
    rows = [row for row in rows if row.device != "cpu" or row.threads == most]
    drawings: dict[str, Callable[..., bool]] = {
        "roofline": roofline, "batch": batch_sizes, "share": shares, "peers": peers,
        "classes": classes,
    }  # fmt: skip
    found = {}
    for title, draw in drawings.items():
        content = _png(
            functools.partial(draw, rows=rows, record=record),
            f"{TITLES[title]}: {_machine(record)}",
        )
        if content is not None:
            found[title] = content
    return found


def _png(draw: Callable[[Any], bool], title: str) -> bytes | None:
    """What `draw(figure)` draws; None where it has nothing to draw."""
    matplotlib = require("matplotlib", "cli", "draw the benchmarks")
    module = require("matplotlib.figure", "cli", "draw the benchmarks")
    with matplotlib.rc_context(STYLE):
        figure = module.Figure(layout="constrained")
        if not draw(figure):
            return None
        figure.suptitle(title, fontsize=12)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        return content.getvalue()


def side_by_side(comparison: Comparison) -> bytes | None:
    """PNG: bars of each record's times over the first record's, case by case, with p20 and p80.

    Raises
    ------
    MissingDependencyError : Matplotlib is not there.
    """
    return _png(
        lambda figure: _bars(figure, comparison), "gpubackprop: time in each file / time in A"
    )


MOST_BARS = 40  # cases in one picture


def _bars(figure: Any, comparison: Comparison) -> bool:
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
        at, values, spread = [], [], []
        for place, line in enumerate(lines):
            factor, base, row = line.factor(number), line.rows[0], line.rows[number]
            if factor is None or base is None or row is None or not base.seconds:
                continue
            at.append(place + (number - (len(numbers) - 1) / 2) * height)
            values.append(factor)
            low, high = (end or row.seconds or 0.0 for end in (row.p20, row.p80))
            spread.append((factor - low / base.seconds, high / base.seconds - factor))
        axes.barh(
            at, values, height=height, color=_look(number)["color"], ecolor="#444444",
            xerr=np.abs(np.array(spread).T), label=f"{letter(number)}: "
            f"{machine(comparison.records[number])}",
        )  # fmt: skip
    names = [f"{line.case}\n{line.place}" if several else line.case for line in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=9)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    factors = [factor for line in lines for n in numbers if (factor := line.factor(n))]
    if max(factors) > 20:  # else the short bars could not be seen
        axes.set_xscale("log")
        axes.set_xlim(left=min(factors) / 2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("time / time in A, with p20 to p80 (to the left of the line: faster than A)")
    axes.grid(True, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    return True


def _machine(record: dict[str, Any]) -> str:
    name = record["gpu"]["name"] if record["gpu"] else record["cpu"]["model"]
    return f"{name}, {dates(record)}"


def roofline(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Rate against operations per byte, below what copy rate and product rate allow."""
    points = [row for row in ours(rows) if row.flops and row.bytes]
    limits = {
        device: found
        for device, found in record["limits"].items()
        if {"copy", "product"} <= found.keys()
    }
    if not points or not limits:
        return False
    figure.set_size_inches(9, 5.5)
    axes = figure.add_subplot()
    x = np.logspace(-2, 4, 200)
    for (device, found), style in zip(limits.items(), ("-", "--"), strict=False):
        roof = np.minimum(x * found["copy"], found["product"])
        axes.plot(x, roof, style, color="black", label=f"limits of {device}: copy and product")
    ops = list(dict.fromkeys(row.op for row in points))
    for number, op in enumerate(ops):
        mine = [row for row in points if row.op == op]
        color, marker = _look(number).values()
        hollow = [row.device == "cpu" and bool(record["gpu"]) for row in mine]
        axes.scatter(
            [row.flops / row.bytes for row in mine], [row.flops / _seconds(row) for row in mine],
            s=36, marker=marker, edgecolors=color, zorder=3,
            facecolors=["none" if empty else color for empty in hollow],
        )  # fmt: skip
        axes.scatter([], [], marker=marker, color=color, label=op.replace("_", " "))
    if record["gpu"]:
        axes.scatter([], [], marker="o", facecolors="none", edgecolors="black", label="on the CPU")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ratios = [row.flops / row.bytes for row in points]
    axes.set_xlim(min(ratios) / 3, max(ratios) * 10)
    top = max(found["product"] for found in limits.values())
    axes.set_ylim(min(row.flops / _seconds(row) for row in points) / 2, top * 2)
    axes.set_xlabel("arithmetic intensity: FLOP per byte of least traffic")
    axes.set_ylabel("gpubackprop: FLOP/s")
    axes.grid(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def _seconds(row: Row) -> float:
    assert row.seconds
    return row.seconds


def _batch(row: Row) -> tuple[str, int]:
    """(network, batch) of a training step's name."""
    found = re.fullmatch(r"training_step/\w+/\w+/([\dx-]+)/batch(\d+)", row.case)
    return (found[1], int(found[2])) if found else ("", 0)


def batch_sizes(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Speed-up of the GPU over the CPU; where there is no GPU, steps beside the peers'."""
    steps = [row for row in rows if row.op == "training_step" and row.contestant not in NO_PEERS]
    networks = [
        network for network in dict.fromkeys(_batch(row)[0] for row in steps)
        if len({_batch(row)[1] for row in steps if _batch(row)[0] == network}) > 2
    ]  # fmt: skip
    if not networks:
        return False
    figure.set_size_inches(5.6 * len(networks) + 0.4, 4.8)
    names = list(dict.fromkeys(row.contestant for row in steps))
    draw = _speed_up if record["gpu"] else functools.partial(_samples, names)
    for number, network in enumerate(networks):
        axes = figure.add_subplot(1, len(networks), number + 1)
        draw(axes, [row for row in steps if _batch(row)[0] == network])
        axes.set_title(network, fontsize=11)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("batch size (rows of a step)")
        axes.grid(True)
        axes.legend()
    return True


def _samples(names: list[str], axes: Axes, rows: list[Row]) -> None:
    for number, name in enumerate(names):
        mine = sorted((row for row in rows if row.contestant == name), key=lambda r: _batch(r)[1])
        if not mine:
            continue
        batches = np.array([_batch(row)[1] for row in mine])
        rates = batches / np.array([_seconds(row) for row in mine])
        axes.plot(
            batches,
            rates,
            label=shown(name),
            markersize=5,
            zorder=3 + (number == 0),
            **_look(number),
        )
    axes.set_ylabel("samples per second")


def _speed_up(axes: Axes, rows: list[Row]) -> None:
    cpu = {_batch(row)[1]: _seconds(row) for row in rows if row.contestant == OURS["cpu"]}
    for number, name in enumerate(("cupy_raw", "cupy_arrays")):
        gpu = {_batch(row)[1]: _seconds(row) for row in rows if row.contestant == name}
        batches = sorted(set(cpu) & set(gpu))
        if not batches:
            continue
        ratios = [cpu[batch] / gpu[batch] for batch in batches]
        axes.plot(batches, ratios, marker="o", color=COLORS[number], label=shown(name))
        at = crossing(batches, ratios)
        if at is not None:
            axes.axvline(at, color=COLORS[number], linestyle=":")
            axes.annotate(f"from {at:.0f}", (at, 1), xytext=(4, 6), textcoords="offset points")
    axes.axhline(1, color="black", linewidth=1)
    axes.set_ylabel("time of gpubackprop on the CPU / time")


def crossing(batches: list[int], ratios: list[float]) -> float | None:
    """The batch size from which the ratio stays above 1, between two measured ones by logarithms.

    None where it never does; the smallest where it always did.
    """
    below = [i for i, ratio in enumerate(ratios) if ratio <= 1]
    if not below:
        return float(batches[0])
    last = below[-1]
    if last == len(ratios) - 1:
        return None
    x, y = np.log(batches[last : last + 2]), np.log(ratios[last : last + 2])
    return float(np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])))


def shares(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Bars: the share of the limit of each operation or network, at its largest shape, with p20
    and p80; on the GPU where there is one."""
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
    spread = np.array([[row.share_p20 or row.share, row.share_p80 or row.share] for row in found])
    errors = np.abs(spread.T - values)
    for color, (limit, label) in zip(COLORS, LIMITS.items(), strict=False):
        at = [number for number, row in enumerate(found) if row.limit == limit]
        if at:
            axes.barh(at, values[at], xerr=errors[:, at], height=0.7, color=color,
                      ecolor="#444444", label=f"limit: {label}")  # fmt: skip
    axes.set_yticks(range(len(found)), [row.case for row in found], fontsize=9)
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("share of the limit: limit's time / time of gpubackprop (p20 to p80)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes.grid(True, axis="x")
    return True


def peers(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Everybody's time over ours in the key cases: to the right of 1 they are slower."""
    keys = [row for row in ours(rows) if row.case in key_names()]
    if record["gpu"]:
        keys = [row for row in keys if row.device != "cpu"]
    groups = [
        (row, [other for other in rows if other.case == row.case and other.device == row.device
               and other.contestant not in (*NO_PEERS, row.contestant) and other.ratio])
        for row in keys
    ]  # fmt: skip
    groups = [(row, others) for row, others in groups if others]
    if not groups:
        return False
    names = list(dict.fromkeys(other.contestant for _, others in groups for other in others))
    figure.set_size_inches(9.5, 1.4 + 0.27 * sum(len(others) + 1 for _, others in groups))
    axes, at, ticks = figure.add_subplot(), 0.0, []
    for row, others in groups:
        first = at
        for other in others:
            ratio = other.ratio or 1.0
            color = COLORS[1 + names.index(other.contestant) % (len(COLORS) - 1)]
            spread = [[1 / ratio - 1 / (other.ratio_p80 or ratio)],
                      [1 / (other.ratio_p20 or ratio) - 1 / ratio]]  # fmt: skip
            axes.barh(at, 1 / ratio, color=color, height=0.85,
                      xerr=np.abs(spread), ecolor="#444444")  # fmt: skip
            axes.annotate(
                f"  {shown(other.contestant)} {1 / ratio:.2f}",
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


def classes(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Softmax cross entropy: the share of the copy rate against the number of classes."""
    device = record["device"] if record["gpu"] else "cpu"
    largest: dict[int, Row] = {}  # of each number of classes the case of most rows
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        match = re.fullmatch(r"softmax_cross_entropy/f32/(\d+)x(\d+)", row.case)
        if match and row.device == device and row.contestant == OURS[device.partition(":")[0]]:
            k = int(match[2])
            largest[k] = max(largest.get(k, row), row, key=lambda row: row.bytes)
    for k, case in sorted((k, row.case) for k, row in largest.items()):
        for row in rows:
            if (row.case, row.device) == (case, device) and row.share and row.contestant not in (
                LIMIT, SAME_SIZE
            ):  # fmt: skip
                found.setdefault(row.contestant, []).append((k, row.share))
    if max(map(len, found.values()), default=0) < 3:
        return False
    figure.set_size_inches(9, 5)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(found.items()):
        numbers, share = zip(*points, strict=True)
        axes.plot(
            numbers,
            share,
            label=shown(name),
            markersize=5,
            zorder=3 + (number == 0),
            **_look(number),
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("number of classes")
    axes.set_ylabel("share of the limit: time of a copy / time")
    axes.grid(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True
