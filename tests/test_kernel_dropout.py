"""Dropout fused into bias + activation and into the backward pass: the emulated kernels against the
generator in Python's integers, PyTorch with the same mask, and the NumPy backend."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend
from gpubackprop.backends.cupy.updates import COEFFICIENTS
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import ACTIVATIONS, Dropout
from gpubackprop.formulas.dropout import random_state
from tests import emulator, philox
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations
from tests.test_kernel_updates import settings

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FLOATS = ("f64", "f32", "f16", "bf16")
SEED, STEP, LAYER, P = 0x123456789ABCDEF0, 0xDCBA98765432, 0x1234, 0.3


def dropout(p: float = P) -> Dropout:
    return Dropout(p, LAYER, random_state(SEED, STEP))


def mask(shape: tuple[int, int], p: float = P) -> np.ndarray:
    return philox.keep(shape, p, SEED, STEP, LAYER)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shift", "gap"), [(0, 0), (1, 0), (0, 3), (3, 8)])
@pytest.mark.parametrize("shape", [(23, 13), (70, 2), (40, 64)], ids=str)
def test_the_mask_is_what_philox_says_under_any_layout_forward_and_back(shape, shift, gap, dtype):
    memory, kind, kept = Guarded(8), DTYPES[dtype], mask(shape)
    x = memory.normal(shape, kind, shift=shift, gap=gap)
    out = memory.empty(shape, kind, shift=(shift * 2) % 4, gap=gap)
    Operations().affine_epilogue(x, None, None, out, "identity", 0.0, dropout())
    scale = compute_dtype(kind).type(1 / (1 - P))
    wanted = np.where(kept, x.astype(compute_dtype(kind)) * scale, 0).astype(kind)
    assert np.array_equal(out, wanted)
    delta = memory.empty(shape, kind, shift=(shift * 3) % 4, gap=gap)
    sums = np.empty(shape[1], compute_dtype(kind))
    Operations().activation_backward(x, x, delta, "identity", 0.0, sums, dropout())
    memory.check()
    assert np.array_equal(delta, wanted), "the backward pass has another mask"
    exact = np.where(kept, wide(x), 0).sum(0) / (1 - P)
    assert ulps(sums, exact, sums.dtype) <= 8, "the bias gradient is the sum of what was kept"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("cols", "shift"), [(13, 0), (13, 1), (64, 0)])
def test_a_part_of_the_rows_draws_what_all_rows_draw_there(cols, shift, dtype):
    memory, kind, row = Guarded(8), DTYPES[dtype], 7
    wanted = mask((row + 20, cols))[row:]
    x = memory.empty((20, cols), kind, shift=shift)
    x[...] = 1
    out, delta = (memory.empty((20, cols), kind, shift=shift) for _ in range(2))
    part = Dropout(P, LAYER, random_state(SEED, STEP), row)
    Operations().affine_epilogue(x, None, None, out, "identity", 0.0, part)
    sums = np.empty(cols, compute_dtype(kind))
    Operations().activation_backward(x, x, delta, "identity", 0.0, sums, part)
    memory.check()
    assert np.array_equal(out != 0, wanted)
    assert np.array_equal(delta != 0, wanted)


@pytest.mark.parametrize("multiprocessors", [1, 3, 64])
def test_the_mask_does_not_depend_on_the_launch_shape(multiprocessors):
    x = np.ones((700, 37), np.float32)
    Operations(device=DeviceProperties(multiprocessors)).affine_epilogue(
        x, None, None, x, "identity", 0.0, dropout()
    )
    assert np.array_equal(x != 0, mask((700, 37)))


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_with_dropout_is_that_of_the_numpy_backend(name, dtype):
    act, kind, rng = ACTIVATIONS[name], DTYPES[dtype], np.random.default_rng(0)
    product, bias, upstream = (rng.normal(size=s).astype(kind) for s in ((19, 7), (7,), (19, 7)))
    grad_b, mine_b = np.empty(7, kind), np.empty(7, kind)
    apart = not (act.saved == "h" and act.homogeneous)
    a, h = product + bias, np.empty_like(product)
    NumpyBackend().activation_forward(a, act, h, dropout())
    saved = a if apart else h
    NumpyBackend().activation_backward(
        upstream, saved, act, (d := upstream.copy()), grad_b, dropout()
    )
    mine_a, mine_h = product.copy(), np.empty_like(product)
    Operations().affine_epilogue(
        mine_a, bias, mine_a if apart else None, mine_h, name, act.parameter, dropout()
    )
    mine_saved = mine_a if apart else mine_h
    Operations().activation_backward(
        upstream, mine_saved, (mine := upstream.copy()), name, act.parameter, mine_b, dropout()
    )
    for got, wanted in ((mine_h, h), (mine_saved, saved), (mine, d), (mine_b, grad_b)):
        assert ulps(got, wanted, kind) <= 8
    kept = mask((19, 7))
    assert not mine_h[~kept].any()
    assert not mine[~kept].any()


def test_a_word_equal_to_the_threshold_is_kept():
    word = int(philox.philox_words(0, 6, STEP << 16 | LAYER, SEED)[5])
    x = np.ones((1, 6), np.float32)
    Operations().affine_epilogue(x, None, None, x, "identity", 0.0, dropout(word / 2**32))
    assert x[0, 5] != 0


def test_what_is_dropped_is_zero_even_where_it_was_nan_or_infinite():
    x = np.full((8, 8), np.nan, np.float32)
    x[::2] = np.inf
    kept = mask(x.shape)
    h = np.empty_like(x)
    Operations().affine_epilogue(x, None, None, h, "identity", 0.0, dropout())
    assert np.array_equal(h[~kept], np.zeros((~kept).sum()))
    assert not np.isfinite(h[kept]).any()
    NumpyBackend().activation_forward(x, ACTIVATIONS["identity"], h, dropout())
    assert np.array_equal(h[~kept], np.zeros((~kept).sum()))
    assert not np.isfinite(h[kept]).any()


def test_the_update_counts_the_step_of_the_masks_where_the_step_is_done():
    c, scaling = np.empty(COEFFICIENTS, np.float32), np.empty(2, np.float32)
    state, random = np.array([0.0, 0.0, 1024.0, 0.0]), random_state(3, 7)
    chosen = settings("adam", interval=5.0)
    for bad, wanted in ((0.0, 8), (1.0, 8), (0.0, 9)):
        norm = np.array([1.0, bad], np.float32)
        Operations().prepare_update("adam", chosen, state, norm, c, scaling, random)
        assert random.tolist() == [3, wanted]
