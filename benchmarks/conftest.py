"""The cases for pytest-benchmark: a group for each; ``-k gather_rows`` chooses an operation.

In one process, so for this library alone (`numpy`, `cupy_arrays`, `cupy_raw`): peers take part in
``python -m benchmarks``, which gives each a process of its own.
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
SECONDS, ROUNDS = 0.05, 7  # of a round


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=SIZES, default="quick", help="which cases (default quick)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case meets each backend of its devices."""
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
    """The case set up on its backend, its result held to the float64 oracle."""
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
    """Times the work: host time by pytest-benchmark, on a GPU until it is done; `extra_info` has
    the time by CUDA events and by graph replay, bytes and flops.

    All of these are of one call, which for a training step is several steps, as the group says.
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
