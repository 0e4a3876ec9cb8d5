"""Pictures of a record: roofline, batch size, share of the limit, peers, classes."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import dates, key_names, ours
from gpubackprop._optional import require
from gpubackprop.bench.contestants import LIMIT, OURS
from gpubackprop.bench.harness import Row
from gpubackprop.bench.record import rows_of
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
    "roofline": "Roofline", "batch": "Time against batch size", "share": "Share of the limit",
    "peers": "Beside its peers", "classes": "Softmax cross entropy by number of classes",
}  # fmt: skip
STYLE = {
    "font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": "#DDDDDD", "legend.frameon": False, "legend.fontsize": 10, "lines.linewidth": 2,
    "figure.facecolor": "white",
}  # fmt: skip
Axes = Any


def draw_all(record: dict[str, Any], folder: Path, card: str) -> list[Path]:
    """Every picture that the record has figures for: benchmark_<card>_<title>.png."""
    rows = [row for row in rows_of(record) if row.seconds]
    most = max((row.threads for row in rows if row.device == "cpu"), default=1)
    rows = [row for row in rows if row.device != "cpu" or row.threads == most]
    drawings: dict[str, Callable[[Any, list[Row], dict[str, Any]], bool]] = {
        "roofline": roofline, "batch": batch_sizes, "share": shares, "peers": peers,
        "classes": classes,
    }  # fmt: skip
    written = []
    matplotlib = require("matplotlib", "cli", "draw the benchmarks")
    module = require("matplotlib.figure", "cli", "draw the benchmarks")
    for title, draw in drawings.items():
        with matplotlib.rc_context(STYLE):
            figure = module.Figure(layout="constrained")
            if not draw(figure, rows, record):
                continue
            figure.suptitle(f"{TITLES[title]}: {_machine(record)}", fontsize=12)
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=110)
        path = folder / f"benchmark_{card}_{title}.png"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
        written.append(path)
    return written


def _machine(record: dict[str, Any]) -> str:
    name = record["gpu"]["name"] if record["gpu"] else record["cpu"]["model"]
    return f"{name}, {dates(record)}"


def roofline(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Rate against operations per byte, below what copy rate and product rate allow."""
    points = [row for row in ours(rows) if row.flops and row.bytes]
    limits = {device: found for device, found in record["limits"].items() if "copy" in found}
    if not points or not limits:
        return False
    figure.set_size_inches(9, 5.5)
    axes = figure.add_subplot()
    x = np.logspace(-2, 4, 200)
    for (device, found), style in zip(limits.items(), ("-", "--"), strict=False):
        roof = np.minimum(x * found["copy"], found["product"])
        axes.plot(x, roof, style, color="black", label=f"{device}: copy and product rate")
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
    axes.set_xlabel("operations per byte (least traffic)")
    axes.set_ylabel("operations per second")
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
    steps = [row for row in rows if row.op == "training_step" and row.contestant != LIMIT]
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
        axes.set_xlabel("batch size")
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
            batches, rates, label=name, markersize=5, zorder=3 + (number == 0), **_look(number)
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
        axes.plot(batches, ratios, marker="o", color=COLORS[number], label=name)
        at = crossing(batches, ratios)
        if at is not None:
            axes.axvline(at, color=COLORS[number], linestyle=":")
            axes.annotate(f"from {at:.0f}", (at, 1), xytext=(4, 6), textcoords="offset points")
    axes.axhline(1, color="black", linewidth=1)
    axes.set_ylabel("CPU time / GPU time")


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
    axes.barh(
        range(len(found)), values, xerr=np.abs(spread.T - values), height=0.7, ecolor="#444444",
        color=[COLORS[("copy", "products", "read").index(row.limit)] for row in found],
    )  # fmt: skip
    axes.set_yticks(range(len(found)), [row.case for row in found], fontsize=9)
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("limit's time / time; blue: copy, red: products alone, green: read")
    axes.grid(True, axis="x")
    return True


def peers(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Everybody's time over ours in the key cases: to the right of 1 they are slower."""
    keys = [row for row in ours(rows) if row.case in key_names()]
    if record["gpu"]:
        keys = [row for row in keys if row.device != "cpu"]
    groups = [
        (row, [other for other in rows if other.case == row.case and other.device == row.device
               and other.contestant not in (LIMIT, row.contestant) and other.ratio])
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
                f"  {other.contestant} {1 / ratio:.2f}", (1 / (other.ratio_p20 or ratio), at),
                va="center", fontsize=9,
            )  # fmt: skip
            at -= 1
        ticks.append(((first + at + 1) / 2, row.case))
        at -= 0.9
    axes.set_yticks([y for y, _ in ticks], [name.replace("/f32/", "\n") for _, name in ticks])
    axes.tick_params(axis="y", labelsize=9)
    axes.axvline(1, color=COLORS[0], linewidth=2)
    axes.set_xlabel("their time / ours: beyond the line they take longer")
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
            if (row.case, row.device) == (case, device) and row.share:
                found.setdefault(row.contestant, []).append((k, row.share))
    if max(map(len, found.values()), default=0) < 3:
        return False
    figure.set_size_inches(9, 5)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(found.items()):
        k, share = zip(*points, strict=True)
        axes.plot(k, share, label=name, markersize=5, zorder=3 + (number == 0), **_look(number))
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("classes")
    axes.set_ylabel("share of the copy rate (one read, one write)")
    axes.grid(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True
