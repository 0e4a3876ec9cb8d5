"""Results as Markdown."""

from __future__ import annotations

from typing import Any

from gpubackprop.bench import table
from gpubackprop.bench.contestants import LIMIT, OURS
from gpubackprop.bench.harness import Row
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.shapes import cases

Record = dict[str, Any]
PACKAGES = {
    "numpy": "NumPy", "torch": "PyTorch", "scikit-learn": "scikit-learn", "jax": "JAX",
    "thinc": "thinc", "liger-kernel": "Liger", "cupy-cuda12x": "CuPy", "cupy-cuda13x": "CuPy",
}  # fmt: skip


def ours(rows: list[Row]) -> list[Row]:
    """This library's rows that have a time."""
    return [row for row in rows if row.contestant in OURS.values() and row.seconds]


def machine(record: Record) -> str:
    """Where and when it was measured, in a sentence."""
    versions = record["versions"]
    packages = ", ".join(
        f"{name} {versions[key]}" for key, name in PACKAGES.items() if key in versions
    )
    cpu, gpu = record["cpu"], record["gpu"]
    where = f"{cpu['model']}, {cpu['cores']} cores, {cpu['blas']}"
    if gpu:
        where = f"{gpu['name']} (driver {gpu.get('driver_version', '?')}) and {where}"
    commits = [run["commit"] for run in record.get("earlier_runs", [])] + [record["commit"]]
    commits = list(dict.fromkeys(commits))
    return (
        f"Measured {record['date']} at commit{'s' * (len(commits) > 1)} {', '.join(commits)}: "
        f"{where}; {packages}."
    )


def key_table(record: Record) -> str:
    """The key cases: our time, and our time over everybody's; bold where it is above 1."""
    rows = [row for row in rows_of(record) if row.case in key_names()]
    names = [name for name in _contestants(rows) if name != LIMIT]
    head = ["work", "on", "time (p20 – p80)", "of the limit", *names]
    lines = [_cells(head), _cells(["---"] * len(head))]
    order = list(dict.fromkeys(row.case for row in rows))
    for row in sorted(ours(rows), key=lambda row: (order.index(row.case), row.device, row.threads)):
        by_name = {other.contestant: other for other in rows if _same(other, row)}
        time = f"{table.time_text(row.seconds or 0)} ({_noise(row)})"
        cells = [row.case, place(row), time, _share(row)]
        cells += [_ratio(by_name.get(name)) for name in names]
        lines.append(_cells(cells))
    return "\n".join(lines)


def key_names() -> set[str]:
    return {case.name for kind in OURS for case in cases("full", kind)
            if case.key and case.op != "cold_start"}  # fmt: skip


def full_table(record: Record) -> str:
    """Every case and contestant, losing and missing ones as well."""
    head = ["case", "on", "contestant", "time", "p20 – p80", "plain call", "host", "ours / its",
            "of the limit", "bytes", "flops", "error"]  # fmt: skip
    lines = [_cells(head), _cells(["---"] * len(head))]
    for row in rows_of(record):
        if row.note:
            lines.append(_cells([row.case, place(row), row.contestant, row.note, *[""] * 8]))
            continue
        times = [table.time_text(t) if t else "" for t in (row.seconds, row.plain, row.host)]
        lines.append(
            _cells([
                row.case, place(row), row.contestant, times[0] + (" (graph)" if row.graph else ""),
                _noise(row), times[1], times[2], f"{row.ratio:.2f}" if row.ratio else "",
                _share(row), f"{row.bytes:.3g}" if row.bytes else "",
                f"{row.flops:.3g}" if row.flops else "", f"{row.error:.1e}" if row.error else "",
            ])
        )  # fmt: skip
    return "\n".join(lines)


def limits_table(record: Record) -> str:
    lines = [_cells(["on", "copy", "read", "product, float32"]), _cells(["---"] * 4)]
    for device, found in record["limits"].items():
        if "missing" in found:
            lines.append(_cells([device, str(found["missing"]), "", ""]))
            continue
        rates = [table.rate(found["copy"], "B/s"), table.rate(found["read"], "B/s")]
        lines.append(_cells([device, *rates, table.rate(found["product"], "FLOP/s")]))
    return "\n".join(lines)


def goals(record: Record) -> str:
    """The project's CPU goals: how many are met, and how far away the others are."""
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
    return "\n".join(lines)


def place(row: Row) -> str:
    if row.device != "cpu":
        return row.device
    return f"{row.threads} thread" + ("s" if row.threads > 1 else "")


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
    return f"**{row.ratio:.2f}**" if row.ratio > 1 else f"{row.ratio:.2f}"


def _share(row: Row) -> str:
    return f"{row.share:.2f} {row.limit}" if row.share else ""


def _noise(row: Row) -> str:
    if row.p20 is None or row.p80 is None:
        return ""
    return f"{table.time_text(row.p20)} – {table.time_text(row.p80)}"


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
