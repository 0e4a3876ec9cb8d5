"""The cases for pytest-benchmark: each is a group; ``-k gather_rows`` chooses an operation.

All runs in one process, so only this library takes part (`numpy`, `cupy_arrays`, `cupy_raw`). Peers
take part in ``python -m benchmarks``, which gives each its own process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpubackprop.backends import devices
from gpubackprop.bench import operations, problems
from gpubackprop.bench.cases import SIZES, cases
from gpubackprop.bench.providers import BY_NAME, module_name
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.timers import Timer, Work

BACKENDS = {"numpy": "cpu", "cupy_arrays": "cuda", "cupy_raw": "cuda"}
SECONDS, ROUNDS = 0.05, 7  # length of a round, and number of rounds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=SIZES, default="quick", help="which cases (default quick)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case on each backend of its devices."""
    if "work" not in metafunc.fixturenames:
        return
    size = metafunc.config.getoption("--size")
    found = [
        (case, backend)
        for backend, kind in BACKENDS.items()
        for case in cases(size, kind)
        if case.op != "cold_start" and BY_NAME[backend].takes_part(case, kind, frozenset())
    ]
    ids = [f"{case.name}-{backend}" for case, backend in found]
    metafunc.parametrize("case_and_backend", found, ids=ids)


@pytest.fixture
def work(case_and_backend: tuple[Case, str]) -> Iterator[tuple[Case, str, Timer, Work]]:
    """Set up the case on its backend, and compare its result with the float64 oracle."""
    case, backend = case_and_backend
    device, reason = "cpu", ""
    if BACKENDS[backend] == "cuda":
        device, reason = devices.choose("auto")
        if device == "cpu":
            pytest.skip(f"needs a GPU: {reason}")
    module = importlib.import_module(module_name(BY_NAME[backend].name))
    timer = module.timer(device, backend)
    try:
        made = module.setup(case, timer, backend)
    except problems.Unsupported as why:
        pytest.skip(str(why))
    ratio, error = operations.get(case.op).check(case, made.outputs())
    assert ratio <= 1, f"WRONG: differs from the oracle by {error:.1e}; not timed"
    yield case, backend, timer, made
    timer.release()


@pytest.fixture
def measure(work: tuple[Case, str, Timer, Work], benchmark: Any) -> Callable[[], None]:
    """Time the work: pytest-benchmark takes host time, on a GPU until the work is done.

    `extra_info` has the times by CUDA events and by graph replay, the bytes and the flops.

    All of these belong to one call. A call of a training step makes several steps, as the group
    says.
    """
    case, backend, timer, made = work
    problem, units, info = operations.get(case.op), made.units, benchmark.extra_info
    benchmark.group = case.name if units == 1 else f"{case.name}, {units} of them"
    info |= {"backend": backend, "units": units}
    info |= {"bytes": units * problem.bytes(case), "flops": units * problem.flops(case)}

    def run() -> None:
        made.run()
        timer.wait()

    def measured() -> None:
        if not benchmark.enabled:
            benchmark(run)
            return
        once = max(timer.time(made.run, 2)[0], 1e-7)
        count = max(1, min(1000, round(SECONDS / once)))
        if timer.device != "cpu":
            info["events_s"], info["host_s"] = timer.time(made.run, count)
            info["graph"] = made.uncaptured
            if made.replay is not None:
                info["graph_s"], _ = timer.time(made.replay, count)
        benchmark.pedantic(run, rounds=ROUNDS, iterations=count, warmup_rounds=1)

    return measured
