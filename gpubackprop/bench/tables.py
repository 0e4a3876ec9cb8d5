"""Results as tables: rows of cells, and those as Markdown, CSV or HTML."""

from __future__ import annotations

import csv
import io
from functools import cache
from typing import Any

from gpubackprop.bench.cases import cases
from gpubackprop.bench.contestants import NO_PEERS, OURS
from gpubackprop.bench.record import rows_of, run_name
from gpubackprop.bench.rows import GOALS, Row
from gpubackprop.bench.table import (
    noise,
    place,
    rate,
    share_cell,
    shown,
    time_cell,
    time_text,
)
from gpubackprop.bench.table import verdict as undecided

Record = dict[str, Any]
Cells = list[list[str]]
PACKAGES = {
    "numpy": "NumPy", "torch": "PyTorch", "scikit-learn": "scikit-learn", "jax": "JAX",
    "thinc": "thinc", "liger-kernel": "Liger", "cupy-cuda12x": "CuPy", "cupy-cuda13x": "CuPy",
}  # fmt: skip


def ours(rows: list[Row]) -> list[Row]:
    """This library's rows that have a time."""
    return [row for row in rows if row.contestant in OURS.values() and row.seconds]


def machine(record: Record) -> str:
    """Where and when it was measured, in a sentence."""
    runs = shown_runs(record)
    packages = ", ".join(
        f"{name} {' and '.join(found)}"
        for key, name in PACKAGES.items() if (found := _versions(runs, key))
    )  # fmt: skip
    cpu, gpu = record["cpu"], record["gpu"]
    where = f"{cpu['model']}, {cpu['cores']} cores, {cpu['blas']}"
    if gpu:
        where = f"{gpu['name']} (driver {gpu.get('driver_version', '?')}) and {where}"
    commits = list(dict.fromkeys(run["commit"] for run in runs))
    return (
        f"Measured {dates(record)} at commit{'s' * (len(commits) > 1)} {', '.join(commits)}: "
        f"{where}; {packages}."
    )


def _versions(runs: list[Record], package: str) -> list[str]:
    found = [run.get("versions", {}).get(package) for run in runs]
    return list(dict.fromkeys(version for version in found if version))


def shown_runs(record: Record) -> list[Record]:
    """The runs that rows of the record are of, oldest first."""
    rows = {row.run for row in rows_of(record) if row.run}
    runs = [*record.get("earlier_runs", []), record]
    return [run for run in runs if not rows or run_name(run) in rows]


def dates(record: Record) -> str:
    """The day of its runs, or the first and the last."""
    days = sorted({run["date"] for run in shown_runs(record)})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def markdown(table: Cells) -> str:
    head, *rest = table
    return "\n".join(_line(cells) for cells in (head, ["---"] * len(head), *rest))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def csv_text(table: Cells) -> str:
    """As a spreadsheet reads it."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table)
    return out.getvalue()


def key_table(record: Record) -> str:
    return markdown(key_cells(record))


def key_cells(record: Record) -> Cells:
    """The key cases: our time, and our time over everybody's; bold where it is above 1."""
    rows = [row for row in rows_of(record) if row.case in key_names()]
    names = [name for name in _contestants(rows) if name not in NO_PEERS]
    energy = ["joules"] * any(row.joules for row in ours(rows))
    head = ["work", "on", "time (p20 – p80)", "of the limit", *energy, *map(shown, names)]
    table = [head]
    order = list(dict.fromkeys(row.case for row in rows))
    for row in sorted(ours(rows), key=lambda row: (order.index(row.case), row.device, row.threads)):
        by_name = {other.contestant: other for other in rows if _same(other, row)}
        cells = [row.case, place(row), time_cell(row), share_cell(row)]
        cells += [joules(row)] * len(energy)
        cells += [_ratio(by_name.get(name)) for name in names]
        table.append(cells)
    return table


def joules(row: Row) -> str:
    return f"{row.joules:.3g}" if row.joules else ""


@cache
def key_names() -> frozenset[str]:
    found = (case for kind in OURS for case in cases("full", kind))
    return frozenset(case.name for case in found if case.key and case.op != "cold_start")


def full_table(record: Record) -> str:
    return markdown(full_cells(record))


def full_cells(record: Record) -> Cells:
    """Every case and contestant, losing and missing ones as well."""
    head = ["case", "on", "contestant", "time", "p20 – p80", "plain call", "host", "ours / its",
            "of the limit", "joules", "MHz", "bytes", "flops", "error", "measured"]  # fmt: skip
    table = [head]
    for row in rows_of(record):
        if row.note:
            empty = [""] * (len(head) - 5)
            table.append([row.case, place(row), shown(row.contestant), row.note, *empty, row.run])
            continue
        times = [time_text(t) if t else "" for t in (row.seconds, row.plain, row.host)]
        how = ", ".join(["graph"] * row.graph + ["queue filled"] * row.queued)
        ratio = f"{row.ratio:.2f} {undecided(row)}".rstrip() if row.ratio else ""
        table.append([
            row.case, place(row), _name(row), times[0] + f" ({how})" * bool(how),
            noise(row), times[1], times[2], ratio,
            share_cell(row), joules(row), _clocks(row), f"{row.bytes:.3g}" if row.bytes else "",
            f"{row.flops:.3g}" if row.flops else "", f"{row.error:.1e}" if row.error else "",
            row.run,
        ])  # fmt: skip
    return table


def _clocks(row: Row) -> str:
    """The middle clock of the rounds that count, and how many do not."""
    kept = sorted(mhz for mhz, counts in zip(row.clocks, row.kept, strict=False) if counts)
    if not kept:
        return ""
    return f"{kept[len(kept) // 2]}" + f", {row.dropped} dropped" * bool(row.dropped)


# Of `row_table`, for programs: names of `Row`, in its units (seconds, joules, bytes).
COLUMNS = (
    "case", "op", "contestant", "device", "threads", "seconds", "p20", "p80", "graph", "queued",
    "plain", "host", "ratio", "ratio_p20", "ratio_p80", "share", "share_p20", "share_p80",
    "share_same_size", "limit", "joules", "dropped", "bytes", "flops", "error", "note", "remark",
    "run",
)  # fmt: skip


def row_cells(record: Record) -> Cells:
    """Every row as it is, for other programs."""
    table: Cells = [["size", *COLUMNS]]
    size = str(record["settings"].get("size", ""))
    for row in rows_of(record):
        values = [getattr(row, name) for name in COLUMNS]
        table.append([size, *("" if value is None else str(value) for value in values)])
    return table


def _name(row: Row) -> str:
    """The contestant, and what was different about it."""
    threads = f"{row.workers} thread" + "s" * (row.workers != 1) if row.workers else ""
    return ", ".join(filter(None, (shown(row.contestant), threads, row.remark)))


def limits_table(record: Record) -> str:
    return markdown(limits_cells(record))


def limits_cells(record: Record) -> Cells:
    table = [["on", "copy", "read", "product, float32"]]
    for device, found in record["limits"].items():
        if "missing" in found:
            table.append([device, str(found["missing"]), "", ""])
            continue
        units = {"copy": "B/s", "read": "B/s", "product": "FLOP/s"}
        rates = [rate(found[key], unit) if key in found else "" for key, unit in units.items()]
        table.append([device, *rates])
    return table


def goals(record: Record) -> str:
    """The project's CPU goals: how many are met, how far away the others are, and which were not
    measured."""
    rows = [row for row in rows_of(record) if row.goal and row.ratio is not None]
    missed = [row for row in rows if (row.ratio or 0) > (row.goal or 0)]
    if not rows:
        return ""
    lines = [f"Goals on a CPU: {len(rows) - len(missed)} of {len(rows)} met.", ""]
    lines += [
        f"- Not met: {row.case}, {place(row)}: {row.ratio:.2f} of {row.contestant}, "
        f"goal {row.goal:.2f}"
        for row in missed
    ]
    measured = {(row.case, row.contestant) for row in rows}
    lines += [
        f"- Not measured: {case} beside {name}" for case, name in GOALS
        if (case, name) not in measured
    ]  # fmt: skip
    return "\n".join(lines)


def _same(a: Row, b: Row) -> bool:
    return (a.case, a.device, a.threads) == (b.case, b.device, b.threads)


def _contestants(rows: list[Row]) -> list[str]:
    names = dict.fromkeys(row.contestant for row in rows)
    return [name for name in names if name not in OURS.values()]


def _ratio(row: Row | None) -> str:
    if row is None:
        return ""
    if row.ratio is None:
        return "WRONG" if row.wrong else "–"
    text = f"**{row.ratio:.2f}**" if row.ratio > 1 else f"{row.ratio:.2f}"
    return f"{text} {undecided(row)}".rstrip()
