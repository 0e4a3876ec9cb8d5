"""Marks for whole files.

Tests marked ``gpu`` run where the CUDA backend can; elsewhere they are skipped with the reason. Files
of emulated kernels are marked ``emulated``: together they take minutes, and `make check` leaves them
to `make test`.
"""

from __future__ import annotations

import pytest

from gpubackprop.backends import devices

EMULATED = ("test_kernel_", "test_cupy_", "test_emulator", "test_gpu_", "test_mutants")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(EMULATED):
            item.add_marker(pytest.mark.emulated)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    device, reason = devices.choose("auto")
    if device == "cpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))
