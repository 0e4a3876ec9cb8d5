"""Marks for whole files, and the fixtures `way` (`tests/ways.py`), `device` and `sweep`.

Tests marked ``gpu`` run if the CUDA backend can run; otherwise they are skipped with the reason. Files
of emulated kernels are marked ``emulated``: together they take minutes, and `make check` leaves them
to `make test`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from gpubackprop.backends import devices
from gpubackprop.backends.native import host_path
from tests import ways
from tests.sweep_plugin import pytest_addoption, pytest_configure, sweep

__all__ = ["pytest_addoption", "pytest_configure", "sweep"]

EMULATED = ("test_kernel_", "test_cupy_", "test_emulator", "test_gpu_", "test_mutants")


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ways.Way]:
    """The way in which the test runs, one of `ways.WAYS`."""
    with ways.taken(request.param, monkeypatch) as taken:
        yield taken


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.emulated)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device of a network: the CPU, or the CUDA backend on emulated kernels."""
    with ways.taken({"cpu": "host", "cuda": "cuda-emulated"}[request.param], monkeypatch):
        yield request.param


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let Ctrl-C interrupt, which a shell forbids what it starts with `&`; compile the host kernels
    before the workers begin, so that they find them in the cache."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(session.config, "workerinput"):
        host_path()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make each test that uses `way` run all ways, or those of its mark ``ways``."""
    if "way" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("ways")
    if mark is not None and not mark.kwargs.get("reason"):
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: the mark `ways` wants a reason")
    names = ways.WAYS if mark is None else mark.args
    metafunc.parametrize("way", [ways.parameter(name) for name in names], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(EMULATED):
            item.add_marker(pytest.mark.emulated)
    marked = [
        item
        for item in items
        if item.get_closest_marker("gpu")
        and "way" not in item.fixturenames  # `way` skips by itself
    ]
    if not marked:
        return
    device, reason = devices.choose("auto")
    if device == "cpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))
