"""parity.json and parity.md: every operation on the GPU against NumPy, the worst error of each."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpubackprop.bench import parity
from tools.gpu.common import WORST, cuda_backend, write_json

SECONDS = 15  # the files are written at this interval


def main() -> int:
    out, seconds, backend = Path(sys.argv[1]), float(sys.argv[2]), cuda_backend()
    return compare(out, backend, seconds, short=sys.argv[3:] == ["short"])


def compare(out: Path, backend: Any, seconds: float, *, short: bool = False) -> int:
    """Write the tables as they grow; return 1 if a comparison failed.

    The short list comes first, so that every operation is compared before the time is up.
    """
    rows: list[parity.Result] = []
    written, end, left = time.monotonic(), time.monotonic() + 0.95 * seconds, ""
    for source in _sources(backend, short):
        for row in source:
            rows.append(row)
            if time.monotonic() > written + SECONDS:
                write(out, rows)
                written = time.monotonic()
            if time.monotonic() > end:
                left = "; the time was up before all were compared"
                break
        if left:
            break
    write(out, rows, left)
    failed = [row for row in rows if not row.passed]
    for row in failed:
        print(f"FAILED {row}")
    print(note(rows) + left)
    return 1 if failed else 0


def _sources(backend: Any, short: bool) -> Iterator[Iterable[parity.Result]]:
    yield parity.results(backend, short=True)
    yield parity.training_results(backend.device, short=True)
    if not short:
        yield parity.results(backend, short=False)
        yield parity.training_results(backend.device, short=False)


def note(rows: list[parity.Result]) -> str:
    return f"{len(rows)} comparisons, {sum(not row.passed for row in rows)} failed"


def write(out: Path, rows: list[parity.Result], left: str = "") -> None:
    """Write parity.json and parity.md; `worst` has the largest errors over their bounds."""
    bad = sorted(rows, key=_badness, reverse=True)[:WORST]
    worst = [[_badness(row), f"{_badness(row):.3g} of the limit: {_text(row)}"] for row in bad]
    found = {"note": note(rows) + left, "worst": worst, "rows": [row.row() for row in rows]}
    write_json(out / "parity.json", found)
    (out / "parity.md").write_text(table(rows), encoding="utf-8")


def _text(row: parity.Result) -> str:
    what = f"{row.operation} {row.variant} {row.dtype}"
    if row.error:
        return f"{what}: {row.error}"
    places = "" if row.pattern else "; NaN or infinities in other places"
    return f"{what}: {row.units:.2f} units, NumPy {row.numpy:.2f}, limit {row.limit:g}{places}"


def _badness(row: parity.Result) -> float:
    return 1e4 if row.error or not math.isfinite(row.units) else row.units / max(row.limit, 1e-9)


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
