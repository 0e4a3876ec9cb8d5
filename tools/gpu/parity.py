"""parity.json and parity.md: every verb on the GPU against NumPy, the worst error of each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from gpubackprop.cli import parity
from tools.gpu.common import cuda_backend, write_json

SECONDS = 15  # from one writing of the files to the next


def main() -> int:
    out, backend = Path(sys.argv[1]), cuda_backend()
    return compare(out, backend)


def compare(out: Path, backend: Any, *, short: bool = False) -> int:
    """Write the tables as they grow; 1 where a comparison failed."""
    rows: list[parity.Result] = []
    written = time.monotonic()
    for source in (
        parity.results(backend, short=short),
        parity.training_results(backend.device, short=short),
    ):
        for row in source:
            rows.append(row)
            if time.monotonic() > written + SECONDS:
                write(out, rows)
                written = time.monotonic()
    write(out, rows)
    failed = [row for row in rows if not row.passed]
    for row in failed:
        print(f"FAILED {row}")
    print(f"{len(rows)} comparisons, {len(failed)} failed")
    return 1 if failed else 0


def write(out: Path, rows: list[parity.Result]) -> None:
    write_json(out / "parity.json", [row.row() for row in rows])
    (out / "parity.md").write_text(table(rows))


def table(rows: list[parity.Result]) -> str:
    lines = [
        "# The GPU against NumPy",
        "",
        "Worst error against NumPy in float64, in units: the epsilon of the result's dtype times",
        "the largest value. NumPy: its own error in the same dtype.",
        "",
        "| operation | dtype | cases | failed | GPU, units | NumPy, units | passes | worst case |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {e['operation']} | {e['dtype']} | {e['cases']} | {e['failed']} | {e['units']:.2f} | "
        f"{e['numpy']:.2f} | {e['limit']:g} | {e['variant']} |"
        for e in parity.summary(rows)
    ]
    failed = [row for row in rows if not row.passed]
    lines += ["", "## Failed", "", *(f"- {row}" for row in failed)] if failed else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
