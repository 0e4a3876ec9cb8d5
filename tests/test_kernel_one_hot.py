"""Layers of one-hot inputs: emulated, against the product with the matrix in float64.

`test_one_hot.py` has the operations in every way; here is what only a kernel can get wrong: memory
around the arrays, rows with gaps, a grid smaller than the batch, the order of additions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests import emulator
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations, run_now

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
GROUPS = ((0, 10), (12, 13), (13, 30), (30, 33), (33, 40))  # five: one more than are in flight
INPUTS = 43
# rows, units: one; a warp's units and one more; three chunks of rows and a rest
SHAPES = [(1, 1), (9, 33), (300, 4), (800, 2)]


class Layer:
    """Codes, weights and outputs of a layer, with gaps between their rows."""

    def __init__(self, dtype: str, rows: int, units: int) -> None:
        self.memory = Guarded(rows)
        rng = self.memory.rng
        codes = np.stack([rng.integers(first, stop, rows) for first, stop in GROUPS], 1)
        codes[rng.random(codes.shape) < 0.1] = -1
        codes[0, 0], codes[rows // 2, -1], codes[-1, 2] = GROUPS[0][0], INPUTS, INPUTS - 1
        self.codes = self.memory.put(codes.astype(np.int32))
        self.x = (self.codes[:, :, None] == np.arange(INPUTS)).sum(1).astype(np.float64)
        self.W = self.memory.normal((units, INPUTS), DTYPES[dtype], shift=1, gap=2)
        self.a = self.memory.normal((rows, units), DTYPES[dtype], gap=3)

    def in_order(self, a: np.ndarray) -> np.ndarray:
        """Return `a` and the columns of W, added one after another in their own type."""
        for codes in self.codes.T:
            there = (codes >= 0) & (codes < INPUTS)
            a = a + np.where(there, self.W[:, np.where(there, codes, 0)], 0).astype(a.dtype).T
        return a


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_a_layer_is_the_product_with_the_matrix_and_a_number_of_no_input_adds_nothing(
    dtype, shape, add
):
    layer = Layer(dtype, *shape)
    before = np.array(layer.a) if add else np.zeros_like(layer.a)
    wanted = layer.x @ wide(layer.W).astype(np.longdouble).T + before
    Operations().one_hot_forward(layer.codes, layer.W, layer.a, add=add)
    layer.memory.check()
    # At most five additions that round, each by half a unit.
    assert ulps(layer.a, wanted, DTYPES[dtype]) <= 2.5
    assert np.array_equal(layer.a, layer.in_order(before)), "the order of additions is fixed"


@pytest.mark.parametrize("grid", [1, 2])
def test_blocks_take_rows_in_turn_where_the_grid_is_smaller_than_the_batch(grid):
    layer = Layer("f32", 300, 4)

    def run(launched):
        run_now(replace(launched, grid=(grid, *launched.grid[1:])))

    Operations(run).one_hot_forward(layer.codes, layer.W, layer.a)
    layer.memory.check()
    assert ulps(layer.a, layer.x @ wide(layer.W).T, np.float32) <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_the_gradient_of_a_column_is_the_sum_of_its_rows_and_columns_of_no_group_stay(dtype, shape):
    layer = Layer(dtype, *shape)
    before = np.array(layer.W)
    Operations().one_hot_backward(layer.a, layer.codes, GROUPS, layer.W)
    layer.memory.check()
    wanted = wide(layer.a).astype(np.longdouble).T @ layer.x
    mine = np.zeros(INPUTS, np.bool_)
    for first, stop in GROUPS:
        mine[first:stop] = True
    assert ulps(layer.W[:, mine], wanted[:, mine], DTYPES[dtype]) <= 0.51
    assert np.array_equal(layer.W[:, ~mine], before[:, ~mine])


def test_what_additions_lose_of_many_rows_of_a_category_is_added():
    """1 beside 2^24 is lost in float32; 600 of them are not."""
    codes = np.zeros((601, 1), np.int32)
    delta, grad_W = np.ones((601, 1), np.float32), np.empty((1, 1), np.float32)
    delta[0] = 2.0**24
    Operations().one_hot_backward(delta, codes, ((0, 1),), grad_W)
    assert grad_W[0, 0] == 2.0**24 + 600
