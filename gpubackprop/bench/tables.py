"""Results as tables: rows of cells, written as text, Markdown or CSV.

`page.py` writes them as HTML.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Container
from functools import cache
from typing import Any

from gpubackprop.bench.cases import cases
from gpubackprop.bench.cells import (
    joules,
    noise,
    place,
    rate,
    share_cell,
    shown,
    time_cell,
    time_only,
    time_text,
)
from gpubackprop.bench.cells import verdict as undecided
from gpubackprop.bench.providers import NO_PEERS, OURS, OWN
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.rows import Row

Record = dict[str, Any]
Cells = list[list[str]]


# -- writing --------------------------------------------------------------------------------------


def text(table: Cells, right: Container[int] = ()) -> list[str]:
    """Write a table for a terminal; the columns in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(f"{cell:>{w}}" if n in right else f"{cell:<{w}}"
                      for n, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in table]  # fmt: skip


def markdown(table: Cells) -> str:
    head, *rest = table
    return "\n".join(_markdown_line(cells) for cells in (head, ["---"] * len(head), *rest))


def _markdown_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def csv_text(table: Cells) -> str:
    """Write a table for spreadsheets."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table)
    return out.getvalue()


# -- tables ---------------------------------------------------------------------------------------


def ours(rows: list[Row]) -> list[Row]:
    """Return this library's rows that have a time."""
    return [row for row in rows if row.provider in OWN and row.seconds]


def lines(rows: list[Row]) -> list[str]:
    """Write `case_cells` for a terminal, with room before the last column."""
    table = case_cells(rows)
    return text([[*line[:-1], f" {line[-1]}"] for line in table], range(1, len(table[0]) - 1))


def case_cells(rows: list[Row]) -> Cells:
    """Return a line for each case and number of threads: our times, shares of the limit, peers."""
    groups: dict[tuple[str, int], list[Row]] = {}
    on_gpu = any(row.device != "cpu" for row in rows)
    most = max((row.threads for row in rows if row.device == "cpu"), default=1)
    for row in rows:
        threads = row.threads if row.device == "cpu" else most
        groups.setdefault((row.case, threads), []).append(row)
    with_noise = any(noise(row) for row in rows if row.provider in OWN)
    head = ["", "CPU", *["GPU", "speed-up"] * on_gpu, "of limit", *["p20 – p80"] * with_noise]
    table = [[*head, "our time / theirs, who beats us first"]]
    for (case, threads), group in groups.items():
        name = case + ("" if threads == most else f", {threads} thread")
        cpu, cuda = (_own(group, kind) for kind in ("cpu", "cuda"))
        both = cpu and cuda and cpu.seconds and cuda.seconds
        speed_up = f"{cpu.seconds / cuda.seconds:.3g}" if both else "-"  # type: ignore
        best = cuda if cuda and cuda.seconds else cpu
        peers = [_peers(group, best)]
        if best is cuda and (on_cpu := _peers(group, cpu)):
            peers.append(f"on the CPU {on_cpu}")
        table.append([
            name, time_only(cpu), *[time_only(cuda), speed_up] * on_gpu,
            (share_cell(best) if best else "") or "-",
            *[noise(best) if best else ""] * with_noise, "; ".join(filter(None, peers)),
        ])  # fmt: skip
    return table


def _own(group: list[Row], kind: str) -> Row | None:
    """Return our row on that kind of device."""
    mine = (row for row in group if row.provider in OWN)
    return next((row for row in mine if row.device.partition(":")[0] == kind), None)


def _peers(group: list[Row], best: Row | None) -> str:
    if best is None:
        return ""
    theirs = [row for row in group if row.device == best.device
              and row.provider not in (*NO_PEERS, best.provider)]  # fmt: skip
    timed = sorted((row for row in theirs if row.ratio), key=lambda row: -(row.ratio or 0))
    text = [f"{shown(row.provider)} {row.ratio:.2f} {undecided(row)}".rstrip() for row in timed]
    return ", ".join([*text, *(f"{shown(row.provider)} WRONG" for row in theirs if row.wrong)])


def key_table(record: Record) -> str:
    return markdown(key_cells(record))


def key_cells(record: Record) -> Cells:
    """Return the key cases: our time, and our time over each provider's, bold if above 1."""
    rows = [row for row in rows_of(record) if row.case in key_names()]
    names = [name for name in _providers(rows) if name not in NO_PEERS]
    energy = ["joules"] * any(row.joules for row in ours(rows))
    head = ["work", "on", "time (p20 – p80)", "of the limit", *energy, *map(shown, names)]
    table = [head]
    order = list(dict.fromkeys(row.case for row in rows))
    for row in sorted(ours(rows), key=lambda row: (order.index(row.case), row.device, row.threads)):
        by_name = {other.provider: other for other in rows if _same(other, row)}
        cells = [row.case, place(row), time_cell(row), share_cell(row)]
        cells += [joules(row)] * len(energy)
        cells += [_ratio(by_name.get(name)) for name in names]
        table.append(cells)
    return table


@cache
def key_names() -> frozenset[str]:
    found = (case for kind in OURS for case in cases("full", kind))
    return frozenset(case.name for case in found if case.key and case.op != "cold_start")


def full_table(record: Record) -> str:
    return markdown(full_cells(record))


def full_cells(record: Record) -> Cells:
    """Return every case and provider, including lost comparisons and missing providers."""
    head = ["case", "on", "provider", "time", "p20 – p80", "plain call", "host", "ours / its",
            "of the limit", "joules", "MHz", "bytes", "flops", "error", "measured"]  # fmt: skip
    table = [head]
    for row in rows_of(record):
        if row.note:
            empty = [""] * (len(head) - 5)
            table.append([row.case, place(row), shown(row.provider), row.note, *empty, row.run])
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
    """Return the median clock of the rounds that count, and how many rounds do not."""
    kept = sorted(mhz for mhz, counts in zip(row.clocks, row.kept, strict=False) if counts)
    if not kept:
        return ""
    return f"{kept[len(kept) // 2]}" + f", {row.dropped} dropped" * bool(row.dropped)


# The columns of `row_cells`: field names of `Row`, in its units (seconds, joules, bytes).
COLUMNS = (
    "case", "op", "provider", "device", "threads", "seconds", "p20", "p80", "graph", "queued",
    "plain", "host", "ratio", "ratio_p20", "ratio_p80", "share", "share_p20", "share_p80",
    "share_same_size", "limit", "joules", "dropped", "bytes", "flops", "error", "note", "remark",
    "run",
)  # fmt: skip


def row_cells(record: Record) -> Cells:
    """Return every row unformatted, for other programs."""
    table: Cells = [["size", *COLUMNS]]
    size = str(record["settings"].get("size", ""))
    for row in rows_of(record):
        values = [getattr(row, name) for name in COLUMNS]
        table.append([size, *("" if value is None else str(value) for value in values)])
    return table


def _name(row: Row) -> str:
    """Return the provider, and what was different about it."""
    threads = f"{row.workers} thread" + "s" * (row.workers != 1) if row.workers else ""
    return ", ".join(filter(None, (shown(row.provider), threads, row.remark)))


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


def _same(a: Row, b: Row) -> bool:
    return (a.case, a.device, a.threads) == (b.case, b.device, b.threads)


def _providers(rows: list[Row]) -> list[str]:
    names = dict.fromkeys(row.provider for row in rows)
    return [name for name in names if name not in OWN]


def _ratio(row: Row | None) -> str:
    if row is None:
        return ""
    if row.ratio is None:
        return "WRONG" if row.wrong else "–"
    text = f"**{row.ratio:.2f}**" if row.ratio > 1 else f"{row.ratio:.2f}"
    return f"{text} {undecided(row)}".rstrip()
