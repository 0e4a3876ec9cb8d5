"""The CUDA backend against NumPy, by emulated kernels and on a GPU: the same comparisons.

The emulated ones run in a process of their own: each compiled entry keeps the stacks of its fibers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from gpubackprop import backends
from gpubackprop.bench import parity
from tests import emulator

EMULATED = """
import dataclasses, json, sys
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.bench import parity
from tests.emulator import cupy_stub

devices.choose = lambda device: ("cpu", "") if device == "cpu" else ("cuda:0", "emulated")
short, name = sys.argv[1] == "short", sys.argv[2]
with cupy_stub.installed():
    if name == "training":
        rows = list(parity.training_results("cuda", short=short))
    else:
        rows = list(parity.results(CupyBackend(0), short=short, names=(name,)))
print(json.dumps([row.row() for row in rows]))
"""
NAMES = ("float64", "float32", "float16", "bfloat16", "training")


def emulated(form: str, name: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", EMULATED, form, name], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def on_gpu(name: str) -> list[dict[str, Any]]:
    if name == "training":
        return [row.row() for row in parity.training_results("cuda:0")]
    return [row.row() for row in parity.results(backends.get("cuda:0"), names=(name,))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("cuda-emulated", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_every_operation_and_training_matches_numpy_within_its_units(backend, name):
    if backend == "cuda-emulated" and emulator.missing_compiler():
        pytest.skip(emulator.missing_compiler())
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    rows = emulated("full", name) if backend == "cuda-emulated" else on_gpu(name)
    assert len(rows) >= (8 if name == "training" else 150)
    assert [row for row in rows if not row["passed"]] == []
