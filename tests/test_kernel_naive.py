"""The naive softmax kernel, the first rung of kernels/README.md: right, and no more than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import emulator, first_rung, references
from tests.emulator import Launch, run_sanitized
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.module import KERNELS, Module

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
SHAPES = [(1, 1), (3, 10), (128, 7), (300, 33), (2, 1501)]  # one row, whole blocks, a part of one


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_naive_kernel_matches_pytorch_in_float64(shape, in_place):
    memory = Guarded(shape[1])
    z = memory.normal(shape, np.float32, shift=1, scale=3)
    y = memory.put(np.arange(shape[0]) * 7 % shape[1])
    losses, gradient = references.cross_entropy(wide(z), y, reduction="none")
    row_loss = memory.empty(shape[:1], np.float32)
    delta = z if in_place else memory.empty(shape, np.float32, shift=3)
    Module(first_rung.SOURCE)(*first_rung.launch(z, y, row_loss, delta))
    memory.check()
    assert ulps(row_loss, losses, np.float32) <= 4
    assert ulps(delta, gradient, np.float32) <= 4


def test_the_largest_logit_is_subtracted_before_the_exponential():
    z = np.array([[1000, 1000], [-1000, -1000], [0, 1000]], np.float32)
    row_loss, delta = np.empty(3, np.float32), np.empty_like(z)
    Module(first_rung.SOURCE)(*first_rung.launch(z, np.array([0, 1, 1]), row_loss, delta))
    assert row_loss.tolist() == [np.log(np.float32(2))] * 2 + [0]
    assert delta.tolist() == [[-0.5, 0.5], [0.5, -0.5], [0, 0]]


@pytest.mark.parametrize("mode", ["address", "thread"])
def test_no_finding_of_a_sanitizer_in_the_naive_kernel(mode):
    launches = []
    for rows, cols in SHAPES:
        z, y = np.ones((rows, cols), np.float32), np.arange(rows) % cols
        entry, grid, block, arguments = first_rung.launch(z, y, np.empty(rows, np.float32), z)
        launches.append(Launch(first_rung.SOURCE, entry, grid, block, arguments))
    assert run_sanitized(launches, mode) == ""


def test_the_naive_kernel_is_some_forty_lines():
    assert len(Path(KERNELS / first_rung.SOURCE).read_text().splitlines()) <= 40
