"""bench_torch and bench_sklearn share this: they run cases in the harness, print, and write a
file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpubackprop.backends import devices
from gpubackprop.bench import record as records
from gpubackprop.bench.cells import spread, time_text
from gpubackprop.bench.harness import Harness, Plan
from gpubackprop.bench.providers import reference
from gpubackprop.bench.rows import Row
from gpubackprop.bench.shapes import Case

ROUND_SECONDS = 0.05


def measure(
    chosen: Iterable[Case], names: Mapping[str, str], options: argparse.Namespace, threads: int
) -> dict[str, Any]:
    """Return a record of the cases; print each row as soon as it is measured.

    `names` maps providers to the names to print. A provider that is not installed or is wrong says
    so and is not timed.
    """
    device, reason = devices.choose(options.device)
    settings = {"device_reason": reason, "threads": [threads], "rounds": options.rounds}
    record = records.new(device, settings)
    plan = Plan(
        options.rounds, ROUND_SECONDS, threads=threads, card=records.bus_id(device),
        only=frozenset(names), few=options.rounds,
    )  # fmt: skip
    with Harness(plan) as harness:
        for case in chosen:
            rows = harness.run_case(case, device, threads)
            ours = reference([row.provider for row in rows], device)
            for row in rows:
                print(_line(row, names, ours), flush=True)
                record["rows"].append(row.json() | {"run": records.run_name(record)})
    return record


def _line(row: Row, names: Mapping[str, str], ours: str) -> str:
    taken, ratio = "-", row.note or "-"
    if row.seconds:
        taken = f"{time_text(row.seconds)} ({spread(row.rounds)})"
        ratio = "" if row.provider == ours else "-"
    if row.ratio and row.ratio_p20 and row.ratio_p80 and row.provider != ours:
        ratio = f"ours / theirs {row.ratio:.2f} ({row.ratio_p20:.2f} – {row.ratio_p80:.2f})"
    remark = f", {row.remark}" * bool(row.remark)
    return f"{row.case:52} {names[row.provider]:14} {taken:30} {ratio}{remark}".rstrip()


def finish(record: dict[str, Any], out: Path | None) -> int:
    """Write the record if a file was named; return 1 if a result was wrong."""
    if out is not None:
        records.write(out, record)
    return int(any(row.wrong for row in records.rows_of(record)))
