"""Rows below a pack of 16 bytes, wherever they start and whatever lies between them: the head may
then begin further before the row than the row is long. Each kernel that cuts rows into packs, emulated,
against NumPy in float64, with random columns, shifts and gaps."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cupy.updates import COEFFICIENTS, PROCEED, UNSCALE
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import Dropout
from gpubackprop.formulas.dropout import random_state
from tests import emulator, philox, references, tolerances
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FLOATS = ("f64", "f32", "f16", "bf16")
UNITS = {"f64": 4.0, "f32": 4.0, "f16": 0.51, "bf16": 0.51}
DRAWS, SEED, STEP, LAYER, P = 24, 5, 6, 7, 0.4


class Case:
    """A random layout below a pack: columns, rows, and a shift and a gap for each array."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.memory, self.kind = Guarded(seed), DTYPES[dtype]
        self.rng = np.random.default_rng((seed, 1))
        self.pack = 16 // self.kind.itemsize
        self.shape = int(self.rng.integers(1, 40)), int(self.rng.integers(1, self.pack + 1))

    def layout(self, dtype: np.dtype | None = None) -> dict[str, int]:
        pack = 16 // (dtype or self.kind).itemsize
        gap = int(self.rng.integers(0, pack + 1)) if self.rng.random() < 0.7 else 0
        return {"shift": int(self.rng.integers(0, pack)), "gap": gap}

    def matrix(self) -> np.ndarray:
        return self.memory.normal(self.shape, self.kind, **self.layout())

    def out(self) -> np.ndarray:
        return self.memory.empty(self.shape, self.kind, **self.layout())

    def row(self) -> np.ndarray:
        shift = int(self.rng.integers(0, self.pack))
        return self.memory.normal(self.shape[1:], self.kind, shift=shift)

    def dropout(self) -> tuple[Dropout | None, np.ndarray]:
        """With every second draw; and what it multiplies."""
        if self.rng.random() < 0.5:
            return None, np.ones(self.shape)
        kept = philox.keep(self.shape, P, SEED, STEP, LAYER)
        return Dropout(P, LAYER, random_state(SEED, STEP)), kept / (1 - P)


def assert_sums(sums: np.ndarray, terms: np.ndarray) -> None:
    """Within two units of the largest column's magnitudes: the sums themselves may cancel."""
    size = np.abs(terms).sum(0).max()
    epsilon = tolerances.UNITS[sums.dtype.name][0]
    assert np.abs(wide(sums) - terms.sum(0)).max() <= 2 * epsilon * size


@pytest.mark.parametrize("seed", range(DRAWS))
@pytest.mark.parametrize("dtype", FLOATS)
def test_bias_and_activation_forward_and_back_below_a_pack(dtype, seed):
    case = Case(seed, dtype)
    product, bias, a, h = case.matrix(), case.row(), case.out(), case.out()
    dropout, factor = case.dropout()
    compute = compute_dtype(case.kind)
    if case.rng.random() < 0.5:  # a product in float32 where that is not the type already
        product = case.memory.normal(case.shape, compute, **case.layout(compute))
    Operations().affine_epilogue(product, bias, a, h, "silu", 0.0, dropout)
    total = product.astype(compute) + bias.astype(compute)
    assert np.array_equal(a, total.astype(case.kind)), "the bias of its column is in each element"
    value = references.activation_oracle("silu", wide(total), 0.0)[0] * factor
    assert ulps(h, value, case.kind) <= UNITS[dtype]

    grad_h, delta, grad_b = case.matrix(), case.out(), case.row()
    Operations().activation_backward(grad_h, a, delta, "silu", 0.0, grad_b, dropout)
    slope = references.activation_oracle("silu", wide(a), 0.0)[1]
    exact = wide(grad_h) * slope * factor
    assert ulps(delta, exact, case.kind) <= UNITS[dtype]
    assert_sums(grad_b, exact)
    Operations().column_sum(grad_h, grad_b)
    assert_sums(grad_b, wide(grad_h))
    case.memory.check()


def test_the_bias_of_two_columns_within_eight_is_added():
    """The case that was found: float32, two columns, rows eight apart, 8 bytes off 16."""
    table = Guarded(0).put(np.zeros((64, 8), np.float32))
    a = table[:, 2:4]
    bias = np.array([1.0, 2.0], np.float32)
    Operations().affine_epilogue(a, bias, None, a, "identity")
    assert np.array_equal(a, np.tile(bias, (64, 1)))
    assert not table[:, :2].any()
    assert not table[:, 4:].any()


@pytest.mark.parametrize("seed", range(DRAWS // 2))
@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_below_a_pack(dtype, seed):
    case = Case(seed, dtype)
    rows, cols = case.shape
    compute = compute_dtype(case.kind)
    a, delta = case.matrix(), case.out()
    targets = case.memory.normal(case.shape, compute, **case.layout(compute))
    loss = case.memory.empty((rows,), compute)
    Operations().pointwise_loss(a, targets, "squared_error", {"row_loss": loss, "delta": delta})
    difference = wide(a) - wide(targets)
    assert ulps(delta, difference, case.kind) <= UNITS[dtype]
    assert ulps(loss, (difference**2).sum(1) / 2, compute) <= 4

    labels = case.rng.integers(0, cols, rows)
    general = bool(seed % 2)
    Operations().softmax_cross_entropy(
        a, labels, {"row_loss": loss, "delta": delta}, label_smoothing=0.1, general=general
    )
    wanted, gradient = references.cross_entropy(
        wide(a), labels, label_smoothing=0.1, reduction="none"
    )
    assert ulps(delta, gradient, case.kind) <= max(2.0, UNITS[dtype])
    assert ulps(loss, wanted, compute) <= 4
    case.memory.check()


@pytest.mark.parametrize("seed", range(DRAWS // 2))
@pytest.mark.parametrize("dtype", FLOATS)
def test_gathers_and_flat_buffers_below_a_pack(dtype, seed):
    case = Case(seed, dtype)
    table, out = case.matrix(), case.out()
    rows = case.rng.integers(0, len(table), len(table))
    Operations().gather_rows(table, rows, out)
    assert np.array_equal(out, table[rows])

    compute = compute_dtype(case.kind)
    x, p = case.row(), case.memory.normal(case.shape[1:], compute, shift=seed % 2)
    norm = case.memory.empty((2,), compute)
    penalized = int(case.rng.integers(0, len(x) + 1))
    l2 = np.array(0.5, compute)
    Operations().sum_of_squares(x, norm, p, 1.0, l2, penalized)
    y = wide(x) + np.where(np.arange(len(x)) < penalized, 0.5 * wide(p), 0.0)
    assert ulps(norm, np.array([(y**2).sum(), 0.0]), compute) <= 4

    c = np.zeros(COEFFICIENTS, compute)
    c[[PROCEED, UNSCALE]] = 1
    weights, gradient = case.row(), case.row()
    before = weights.copy()
    Operations().update("gradient_descent", weights, gradient, (), c)
    assert np.array_equal(weights, before), "a learning rate of 0 changes nothing"
    case.memory.check()
