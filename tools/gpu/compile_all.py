"""compile.json: compile every entry for the card, on all cores, into the cache of later stages."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from gpubackprop.backends.cupy import compiling
from gpubackprop.backends.cupy_launch import entries
from gpubackprop.errors import one_line
from tools.gpu.common import cuda_backend, write_json


def main() -> int:
    out, seconds = Path(sys.argv[1]), float(sys.argv[2])
    backend = cuda_backend()
    found = compile_all(backend.cupy, backend.index, entries(), seconds)
    write_json(out / "compile.json", found)
    print(found["note"])
    return 1 if found["failed"] else 0


def compile_all(cupy: Any, index: int, wanted: list[compiling.Entry], seconds: float) -> Any:
    """Compile every entry, even if some fail; after `seconds` no further one starts."""
    start = time.monotonic()
    results = compiling.in_threads(
        partial(_one, cupy, index, start + 0.9 * seconds), sorted(set(wanted))
    )
    failed = {name: error for name, error in results if error and error != LATE}
    late = sum(error == LATE for _, error in results)
    note = f"{len(results) - len(failed) - late} of {len(results)} entries compiled"
    note += f", {len(failed)} failed" * bool(failed) + f", {late} not begun" * bool(late)
    return {
        "note": note,
        "seconds": time.monotonic() - start,
        "entries": len(results),
        "failed": failed,
        "not_begun": late,
        "worst": [[1e6, f"{name} does not compile: {error}"] for name, error in failed.items()],
    }


LATE = "no time was left"


def _one(cupy: Any, index: int, end: float, entry: compiling.Entry) -> tuple[str, str]:
    if time.monotonic() > end:
        return entry[1], LATE
    try:
        compiling.put_on_disk(cupy, index, entry)
    except Exception as error:
        return entry[1], one_line(error)
    return entry[1], ""


if __name__ == "__main__":
    sys.exit(main())
