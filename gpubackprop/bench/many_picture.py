"""The picture of many networks: their number against the time."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpubackprop.bench.drawing import look, png
from gpubackprop.bench.many import SMALL
from gpubackprop.bench.notes import dates
from gpubackprop.bench.pictures import crossing
from gpubackprop.bench.providers import IN_TURN, MANY, PROCESSES
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.rows import Row


def picture(record: dict[str, Any]) -> bytes | None:
    """Return the picture of a record as PNG: networks against time; None if it has no such rows.

    Raises
    ------
    MissingDependencyError : Matplotlib is not installed.
    """
    rows = [row for row in rows_of(record) if row.op == "fit_many" and row.seconds]
    name = record["gpu"]["name"] if record["gpu"] else record["cpu"]["model"]
    title = f"Many networks {'-'.join(map(str, SMALL))}: {name}, {dates(record)}"
    return png(partial(_draw, rows=rows), title)


def _draw(figure: Any, rows: list[Row]) -> bool:
    by_provider = {name: _seconds(rows, name) for name in (MANY, PROCESSES, IN_TURN)}
    if max(map(len, by_provider.values())) < 3:
        return False
    figure.set_size_inches(8, 5)
    axes = figure.add_subplot()
    for number, (name, seconds) in enumerate(by_provider.items()):
        if seconds:
            axes.plot([*seconds], [*seconds.values()], label=name, zorder=3, **look(number))
    name = PROCESSES if by_provider[PROCESSES] else MANY  # on the CPU fit_many itself takes turns
    at = _crossing(by_provider[name], by_provider[IN_TURN])
    if at is not None and at > 1:
        axes.axvline(at, color="black", linestyle=":")
        axes.annotate(
            f"{name}: faster from {at:.0f} on ", (at, 0.02), xycoords=("data", "axes fraction"),
            fontsize=10, ha="right",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("networks")
    axes.set_xticks([*by_provider[IN_TURN]], [*map(str, by_provider[IN_TURN])])
    axes.set_ylabel("seconds for all of them")
    axes.grid(True)
    axes.legend()
    return True


def _seconds(rows: list[Row], provider: str) -> dict[int, float]:
    """Return the time by number of networks."""
    found = {}
    for row in rows:
        if row.provider == provider and row.seconds:
            found[int(row.case.split("/")[-1].removeprefix("networks"))] = row.seconds
    return dict(sorted(found.items()))


def _crossing(mine: dict[int, float], theirs: dict[int, float]) -> float | None:
    networks = sorted(mine.keys() & theirs.keys())
    return crossing(networks, [theirs[n] / mine[n] for n in networks]) if networks else None
