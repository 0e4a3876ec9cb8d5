"""python -m benchmarks: the CPU benchmarks, as a table and as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.harness import Row, run_case

PACKAGES = ("gpubackprop", "numpy", "torch", "scikit-learn")


def main() -> int:
    args = _arguments()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = args.threads or sorted({1, cores or 1})
    names = [name for name in CASES if not args.case or args.case in name]
    if not names:
        print(f"no case contains {args.case!r}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    rounds, seconds = (3, 0.05) if args.quick else (args.rounds, 0.4)
    rows: list[Row] = []
    for name in names:
        for count in threads:
            rows += run_case(CASES[name], count, rounds, seconds)
            _show([row for row in rows if row.case == name and row.threads == count])
    if args.json:
        record = environment() | {"rounds": rounds, "rows": [row.json() for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {args.json}")
    return 1 if any(row.note.startswith("WRONG") for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--case", help="only the cases whose name contains this")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--quick", action="store_true", help="3 short rounds: does it work?")
    parser.add_argument("--json", type=Path, help="write the raw results to this file")
    return parser.parse_args()


def environment() -> dict[str, Any]:
    """What a reader of the figures must know."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "device": "cpu",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    from gpubackprop.backends.host import probe_cpu

    return probe_cpu().model


def _show(rows: list[Row]) -> None:
    first = rows[0]
    print(f"\n{first.case}, {first.threads} thread{'s' if first.threads > 1 else ''}")
    print(f"  {'':28s}{'median':>11s}{'p20':>11s}{'p80':>11s}{'ours/its':>10s}  goal")
    for row in rows:
        if row.seconds is None or row.p20 is None or row.p80 is None:
            print(f"  {row.contestant:28s}{row.note}")
            continue
        times = "".join(f"{value * 1e3:8.3f} ms" for value in (row.seconds, row.p20, row.p80))
        ratio = f"{row.ratio:10.2f}" if row.ratio is not None else f"{'':10s}"
        goal = f"  <= {row.goal:.2f} {'met' if row.met else 'NOT met'}" if row.goal else ""
        print(f"  {row.contestant:28s}{times}{ratio}{goal}")


if __name__ == "__main__":
    raise SystemExit(main())
