"""Pictures of a record: roofline, batch sizes, classes, and the bars of `bars.py`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.bench import bars
from gpubackprop.bench.cells import shown
from gpubackprop.bench.drawing import COLORS, Axes, look, png
from gpubackprop.bench.notes import dates
from gpubackprop.bench.providers import LIMIT, NO_PEERS, OURS, SAME_SIZE
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.rows import Row
from gpubackprop.bench.tables import ours
from gpubackprop.tensorfile import write_atomically

TITLES = {
    "roofline": "Roofline", "batch": "Training step by batch size", "share": "Share of the limit",
    "peers": "Beside its peers", "classes": "Softmax cross entropy by number of classes",
}  # fmt: skip


def draw_all(record: dict[str, Any], folder: Path, card: str) -> list[Path]:
    """Draw every picture that the record has figures for: benchmark_<card>_<title>.png."""
    written = []
    for title, content in drawn(record).items():
        path = folder / f"benchmark_{card}_{title}.png"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        written.append(path)
    return written


def drawn(record: dict[str, Any]) -> dict[str, bytes]:
    """Return every picture that the record has figures for: key of `TITLES` -> PNG.

    Raises
    ------
    MissingDependencyError : Matplotlib is not installed.
    """
    rows = [row for row in rows_of(record) if row.seconds]
    most = max((row.threads for row in rows if row.device == "cpu"), default=1)
    rows = [row for row in rows if row.device != "cpu" or row.threads == most]
    drawings: dict[str, Callable[..., bool]] = {
        "roofline": roofline, "batch": batch_sizes, "share": bars.shares, "peers": bars.peers,
        "classes": classes,
    }  # fmt: skip
    found = {}
    for title, draw in drawings.items():
        content = png(
            functools.partial(draw, rows=rows, record=record),
            f"{TITLES[title]}: {_machine(record)}",
        )
        if content is not None:
            found[title] = content
    return found


def _machine(record: dict[str, Any]) -> str:
    name = record["gpu"]["name"] if record["gpu"] else record["cpu"]["model"]
    return f"{name}, {dates(record)}"


def roofline(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Draw rates against operations per byte, below the roof of copy rate and product rate."""
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
        color, marker = look(number).values()
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
    """Return (network, batch) from a training step's name."""
    found = re.fullmatch(r"training_step/\w+/\w+/([\dx-]+)/batch(\d+)", row.case)
    return (found[1], int(found[2])) if found else ("", 0)


def batch_sizes(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Draw the speed-up of the GPU over the CPU; without a GPU, our steps beside the peers'."""
    steps = [row for row in rows if row.op == "training_step" and row.provider not in NO_PEERS]
    networks = [
        network for network in dict.fromkeys(_batch(row)[0] for row in steps)
        if len({_batch(row)[1] for row in steps if _batch(row)[0] == network}) > 2
    ]  # fmt: skip
    if not networks:
        return False
    figure.set_size_inches(5.6 * len(networks) + 0.4, 4.8)
    names = list(dict.fromkeys(row.provider for row in steps))
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
        mine = sorted((row for row in rows if row.provider == name), key=lambda r: _batch(r)[1])
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
            **look(number),
        )
    axes.set_ylabel("samples per second")


def _speed_up(axes: Axes, rows: list[Row]) -> None:
    cpu = {_batch(row)[1]: _seconds(row) for row in rows if row.provider == OURS["cpu"]}
    for number, name in enumerate(("cupy_raw", "cupy_arrays")):
        gpu = {_batch(row)[1]: _seconds(row) for row in rows if row.provider == name}
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
    """Return the batch size from which on the ratio stays above 1, interpolated by logarithms.

    It is None if the ratio never stays above 1, and the smallest batch if it always does.
    """
    below = [i for i, ratio in enumerate(ratios) if ratio <= 1]
    if not below:
        return float(batches[0])
    last = below[-1]
    if last == len(ratios) - 1:
        return None
    x, y = np.log(batches[last : last + 2]), np.log(ratios[last : last + 2])
    return float(np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])))


def classes(figure: Any, rows: list[Row], record: dict[str, Any]) -> bool:
    """Draw softmax cross entropy's share of the copy rate against the number of classes."""
    device = record["device"] if record["gpu"] else "cpu"
    largest: dict[int, Row] = {}  # for each number of classes the case with most rows
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        match = re.fullmatch(r"softmax_cross_entropy/f32/(\d+)x(\d+)", row.case)
        if match and row.device == device and row.provider == OURS[device.partition(":")[0]]:
            k = int(match[2])
            largest[k] = max(largest.get(k, row), row, key=lambda row: row.bytes)
    for k, case in sorted((k, row.case) for k, row in largest.items()):
        for row in rows:
            if (row.case, row.device) == (case, device) and row.share and row.provider not in (
                LIMIT, SAME_SIZE
            ):  # fmt: skip
                found.setdefault(row.provider, []).append((k, row.share))
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
            **look(number),
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("number of classes")
    axes.set_ylabel("share of the limit: time of a copy / time")
    axes.grid(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True
