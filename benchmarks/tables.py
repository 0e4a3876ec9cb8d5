"""Results as Markdown."""

from __future__ import annotations

from typing import Any

from gpubackprop.bench import table
from gpubackprop.bench.contestants import LIMIT, OURS
from gpubackprop.bench.harness import GOALS, Row
from gpubackprop.bench.record import rows_of, run_name
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
            "of the limit", "bytes", "flops", "error", "measured"]  # fmt: skip
    lines = [_cells(head), _cells(["---"] * len(head))]
    for row in rows_of(record):
        if row.note:
            lines.append(
                _cells([row.case, place(row), row.contestant, row.note, *[""] * 8, row.run])
            )
            continue
        times = [table.time_text(t) if t else "" for t in (row.seconds, row.plain, row.host)]
        lines.append(
            _cells([
                row.case, place(row), _name(row), times[0] + (" (graph)" if row.graph else ""),
                _noise(row), times[1], times[2], f"{row.ratio:.2f}" if row.ratio else "",
                _share(row), f"{row.bytes:.3g}" if row.bytes else "",
                f"{row.flops:.3g}" if row.flops else "", f"{row.error:.1e}" if row.error else "",
                row.run,
            ])
        )  # fmt: skip
    return "\n".join(lines)


def _name(row: Row) -> str:
    """The contestant, and what was different about it."""
    threads = f"{row.workers} thread" + "s" * (row.workers != 1) if row.workers else ""
    return ", ".join(filter(None, (row.contestant, threads, row.remark)))


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
    return f"{table.share_text(row.share)} {row.limit}" if row.share else ""


def _noise(row: Row) -> str:
    if row.p20 is None or row.p80 is None:
        return ""
    return f"{table.time_text(row.p20)} – {table.time_text(row.p80)}"


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
