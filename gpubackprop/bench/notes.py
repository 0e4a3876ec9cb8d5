"""A record in words: where and when it was measured, remarks, what is missing, a summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpubackprop import __version__
from gpubackprop.bench.cells import place, rate, share_text, shown, time_text
from gpubackprop.bench.machines import is_smoke, too_busy
from gpubackprop.bench.providers import OURS, OWN
from gpubackprop.bench.record import rows_of, run_name
from gpubackprop.bench.rows import GOALS, Row

Record = dict[str, Any]
HEADLINES = (
    ("training_step/adam/f32/784-512-512-10/batch256", "step 784-512-512-10, batch 256"),
    ("softmax_cross_entropy/f32/4096x1000", "softmax cross entropy 4096x1000"),
)
PACKAGES = {
    "numpy": "NumPy", "torch": "PyTorch", "scikit-learn": "scikit-learn", "jax": "JAX",
    "thinc": "thinc", "liger-kernel": "Liger", "cupy-cuda12x": "CuPy", "cupy-cuda13x": "CuPy",
}  # fmt: skip


def machine(record: Record) -> str:
    """Say in a sentence where and when the record was measured."""
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
    """Return the runs that measured rows of the record, oldest first."""
    rows = {row.run for row in rows_of(record) if row.run}
    runs = [*record.get("earlier_runs", []), record]
    return [run for run in runs if not rows or run_name(run) in rows]


def dates(record: Record) -> str:
    """Return the day of the record's runs, or the first and the last day."""
    days = sorted({run["date"] for run in shown_runs(record)})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def remarks(rows: list[Row]) -> list[str]:
    """Return each remark about a provider once, e.g. why our plan is no CUDA graph."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for remark in filter(None, (row.remark, _timing(row))):
            found.setdefault(f"{shown(row.provider)}: {remark}", []).append(row.case)
    return [f"{text} ({_some(cases)})" for text, cases in found.items()]


def _timing(row: Row) -> str:
    if row.dropped and row.provider in OWN:
        return f"{row.dropped} rounds below 95 % of the highest clock were dropped"
    return ""


def left_out(record: dict[str, Any]) -> list[str]:
    """Say which figures the table lacks, and why."""
    rows = rows_of(record)
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(f"{row.provider}: {row.note}", []).append(row.case)
    text = [f"{note} ({_some(cases)})" for note, cases in notes.items()]
    if record["left_out"]:
        text.append(f"no time was left for {_some(record['left_out'])}")
    if record["device"] == "cpu":
        text.append(f"the GPU: {record['settings'].get('device_reason', 'not asked for')}")
    elif record.get("no_clocks"):
        text.append(f"clocks and energy: {record['no_clocks']}")
    return text


def _some(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def summary(record: dict[str, Any]) -> str:
    """Return one line that people can paste to compare machines."""
    device = record["device"]
    kind = device.partition(":")[0]
    if kind == "cuda":
        gpu = record["gpu"] or {}
        machine = f"{gpu.get('name', 'GPU')}, driver {gpu.get('driver_version', '?')}"
    else:
        threads = record["settings"]["threads"][-1]
        machine = f"{record['cpu']['model']}, {threads} thread{'s' if threads > 1 else ''}"
    parts = [f"gpubackprop {__version__} {record['commit']}".strip(), machine]
    limits = record["limits"].get(device, {})
    if "copy" in limits:
        parts.append(f"copy {rate(limits['copy'], 'B/s')}")
    if "product" in limits:
        parts.append(f"f32 product {rate(limits['product'], 'FLOP/s')}")
    rows = {(row["case"], row["provider"], row["device"]): row for row in record["rows"]
            if row["threads"] == record["settings"]["threads"][-1] or kind == "cuda"}  # fmt: skip
    for case, name in HEADLINES:
        row = rows.get((case, OURS[kind], device), {})
        if "seconds" in row:
            share = f" ({share_text(row['share'])} of {row['limit']})" if "share" in row else ""
            parts.append(f"{name}: {time_text(row['seconds'])}{share}")
    return " | ".join([*parts, record["date"], *_doubts(record)])


def _doubts(record: dict[str, Any]) -> list[str]:
    """Return the doubts that must stay with the pasted line."""
    found = ["smoke run: times mean nothing"] * is_smoke(record)
    return found + [few for few, _ in too_busy(record)]


def goals(record: Record) -> str:
    """Say how many of the project's CPU goals are met, and how far away the others are.

    Names the goals that were not measured.
    """
    rows = [row for row in rows_of(record) if row.goal and row.ratio is not None]
    missed = [row for row in rows if (row.ratio or 0) > (row.goal or 0)]
    if not rows:
        return ""
    lines = [f"Goals on a CPU: {len(rows) - len(missed)} of {len(rows)} met.", ""]
    lines += [
        f"- Not met: {row.case}, {place(row)}: {row.ratio:.2f} of {row.provider}, "
        f"goal {row.goal:.2f}"
        for row in missed
    ]
    measured = {(row.case, row.provider) for row in rows}
    lines += [
        f"- Not measured: {case} beside {name}" for case, name in GOALS
        if (case, name) not in measured
    ]  # fmt: skip
    return "\n".join(lines)
