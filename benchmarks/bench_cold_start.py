"""Time the import and the first steps with all that precedes them, each time in a new process."""

import pytest

from gpubackprop.backends import devices
from gpubackprop.bench.cases import cases
from gpubackprop.bench.harness import Harness, Plan


@pytest.mark.parametrize("backend", ["numpy", "cupy_raw"])
def bench_cold_start(backend, benchmark, request):
    device, reason = devices.choose("cpu" if backend == "numpy" else "auto")
    if backend == "cupy_raw" and device == "cpu":
        pytest.skip(f"needs a GPU: {reason}")
    size = request.config.getoption("--size")
    (case, *_) = [
        case for case in cases("smoke" if size == "smoke" else "full") if case.op == "cold_start"
    ]
    benchmark.group = case.name
    with Harness(Plan(small=True)) as harness:
        rows = benchmark.pedantic(harness.run_case, (case, device, 1), rounds=1)
    ours = {row.case: row for row in rows if row.provider == backend}
    assert all(row.seconds and not row.note for row in ours.values()), ours
    benchmark.extra_info |= {row.case: row.seconds for row in rows}
