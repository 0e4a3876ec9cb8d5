"""Tests marked ``gpu`` run where the CUDA backend can; elsewhere they are skipped with the reason."""

from __future__ import annotations

import pytest

from gpubackprop.backends import devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    device, reason = devices.choose("auto")
    if device == "cpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))
