"""Bias + activation, its backward pass with the bias gradient, column sums: the emulated
kernels against float64 formulas and against the NumPy backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import ACTIVATIONS
from tests import emulator, references
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.module import Module
from tests.emulator.operations import DTYPES, Operations
from tests.emulator.traffic import count_launch
from tests.tolerances import assert_same_pattern

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FLOATS = ("f64", "f32", "f16", "bf16")
# Units of the type. 16 bits: one rounding of a float32 result. Others: the host's libm and a few
# operations; the sums of float64 also lose digits to the oracle's own rounding.
UNITS = {"f64": 4.0, "f32": 4.0, "f16": 0.51, "bf16": 0.51}
SHAPES = [(0, 5), (1, 1), (7, 3), (3, 700), (65, 33), (300, 2), (40, 128), (33, 257), (130, 16)]


def oracle(name: str, a: np.ndarray, k: float) -> tuple[np.ndarray, np.ndarray]:
    return references.activation_oracle(name, wide(a), k)


def parameter(name: str) -> float:
    return 0.3 if ACTIVATIONS[name].parameter_name else 0.0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_epilogue_entry_matches_the_float64_oracle(name, dtype):
    memory, k = Guarded(1), parameter(name)
    product = memory.normal((37, 21), DTYPES[dtype], scale=3)
    bias = memory.normal((21,), DTYPES[dtype])
    a = memory.empty((37, 21), DTYPES[dtype])
    h = memory.empty((37, 21), DTYPES[dtype])
    Operations().affine_epilogue(product, bias, a, h, name, k)
    memory.check()
    total = product.astype(compute_dtype(product.dtype)) + bias.astype(compute_dtype(bias.dtype))
    assert np.array_equal(a, total.astype(a.dtype))
    assert ulps(h, oracle(name, total, k)[0], h.dtype) <= UNITS[dtype]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_epilogue_entry_of_a_float32_product_rounds_once_with_the_bias(name, dtype):
    """product + bias cancel to about their last bit in 16 bits: rounded before, nothing is left."""
    memory, k, kind = Guarded(3), parameter(name), DTYPES[dtype]
    bias = memory.normal((21,), kind, scale=20)
    product = memory.normal((67, 21), np.float32)
    product -= bias.astype(np.float32)
    a, h = memory.empty(product.shape, kind), memory.empty(product.shape, kind)
    Operations().affine_epilogue(product, bias, a, h, name, k)
    memory.check()
    total = product + bias.astype(np.float32)
    assert np.array_equal(a, total.astype(kind))
    assert ulps(h, oracle(name, total, k)[0], kind) <= UNITS[dtype]
    only = memory.empty(product.shape, kind, shift=3, gap=2)
    Operations().affine_epilogue(product, bias, None, only, name, k)
    memory.check()
    assert np.array_equal(only, h)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_backward_entry_matches_the_float64_oracle(name, dtype):
    memory, k = Guarded(2), parameter(name)
    a = memory.normal((150, 21), DTYPES[dtype], scale=3)
    h = oracle(name, a, k)[0].astype(a.dtype)
    saved = a if ACTIVATIONS[name].saved == "a" else memory.put(h)
    grad_h = memory.normal(a.shape, a.dtype)
    delta, grad_b = memory.empty(a.shape, a.dtype), memory.empty((21,), a.dtype)
    Operations().activation_backward(grad_h, saved, delta, name, k, grad_b)
    memory.check()
    exact = wide(grad_h) * slope_in_float64(name, saved, k)
    assert ulps(delta, exact, delta.dtype) <= UNITS[dtype]
    assert ulps(grad_b, exact.sum(0), grad_b.dtype) <= UNITS[dtype]


def slope_in_float64(name: str, saved: np.ndarray, k: float) -> np.ndarray:
    """The NumPy formula's slope (held to PyTorch elsewhere) at what the kernel really read."""
    at = wide(saved)
    out, work = np.empty_like(at), tuple(np.empty_like(at) for _ in range(3))
    with np.errstate(all="ignore"):
        ACTIVATIONS[name].slope(at, out, work, k)
    return out


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_special_values_follow_the_numpy_backend(name, dtype):
    """NaN and infinities in the same places, subnormal numbers kept."""
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 88.8, -88.8, -104.0, 1e-40, 5.0]
    a = np.array([special], DTYPES[dtype])
    k, entry = parameter(name), ACTIVATIONS[name]
    h, wanted = np.empty_like(a), np.empty_like(a)
    Operations().affine_epilogue(a, None, None, h, name, k)
    configured = replace(entry, parameter=k)
    NumpyBackend().activation_forward(a, configured, wanted)
    assert_same_pattern(h, wanted)
    assert ulps(h, wanted, h.dtype, scale="elements") <= 4
    saved = a if entry.saved == "a" else wanted
    ones, delta = np.ones_like(a), np.empty_like(a)
    Operations().activation_backward(ones, saved, delta, name, k)
    NumpyBackend().activation_backward(ones, saved, configured, wanted_delta := np.empty_like(a))
    assert_same_pattern(delta, wanted_delta)
    assert ulps(delta, wanted_delta, delta.dtype) <= 4


def test_relu_has_no_negative_zero_as_on_numpy():
    a = np.full((1, 5), -0.0, np.float32)
    wanted, h = np.empty_like(a), np.empty_like(a)
    NumpyBackend().activation_forward(a, ACTIVATIONS["relu"], wanted)
    Operations().affine_epilogue(a, a[0].copy(), None, h, "relu")  # -0 + -0 is -0
    assert h.tobytes() == wanted.tobytes() == np.zeros_like(a).tobytes()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("shifts", "gap"),
    [((0, 0, 0), 0), ((1, 1, 1), 0), ((1, 0, 0), 0), ((0, 1, 0), 0), ((0, 0, 1), 0), ((0, 0, 0), 3),
     ((1, 1, 1), 8)],
    ids=str,
)  # fmt: skip
def test_awkward_shapes_and_pointers_change_nothing(shape, dtype, shifts, gap):
    """Silu: it saves a, so three matrices move each way. Heads, tails, gaps, joined rows."""
    memory, kind = Guarded(3), DTYPES[dtype]
    product = memory.normal(shape, kind, shift=shifts[0], gap=gap)
    a = memory.empty(shape, kind, shift=shifts[1], gap=gap)
    h = memory.empty(shape, kind, shift=shifts[2], gap=gap)
    bias = memory.normal(shape[1:], kind, shift=1)
    Operations().affine_epilogue(product, bias, a, h, "silu")
    total = wide(product) + wide(bias)
    assert ulps(a, total, kind) <= 0.51
    assert ulps(h, oracle("silu", total, 0.0)[0], kind) <= UNITS[dtype]

    grad_b = memory.empty(shape[1:], kind, shift=1)
    Operations().activation_backward(product, a, h, "silu", 0.0, grad_b)
    exact = wide(product) * slope_in_float64("silu", a, 0.0)
    assert ulps(h, exact, kind) <= UNITS[dtype]
    assert ulps(grad_b, exact.sum(0), kind) <= UNITS[dtype]
    Operations().column_sum(product, grad_b)
    assert ulps(grad_b, wide(product).sum(0), kind) <= UNITS[dtype]
    memory.check()


@pytest.mark.parametrize("dtype", FLOATS)
def test_in_place_gives_the_same_bits(dtype):
    memory, kind = Guarded(4), DTYPES[dtype]
    product, bias = memory.normal((50, 37), kind), memory.normal((37,), kind)
    h, in_place = memory.empty(product.shape, kind), memory.put(product)
    Operations().affine_epilogue(product, bias, None, h, "tanh")
    Operations().affine_epilogue(in_place, bias, None, in_place, "tanh")
    assert np.array_equal(h, in_place)
    delta, grad = memory.empty(h.shape, kind), memory.put(product)
    Operations().activation_backward(product, h, delta, "tanh")
    Operations().activation_backward(grad, h, grad, "tanh")
    assert np.array_equal(delta, grad)


@pytest.mark.parametrize("multiprocessors", [1, 2, 132])
def test_values_do_not_depend_on_the_launch_shape(multiprocessors):
    memory = Guarded(5)
    grad, a = memory.normal((500, 12), np.float32), memory.normal((500, 12), np.float32)
    delta, grad_b = np.empty_like(grad), np.empty(12, np.float32)
    verbs = Operations(device=DeviceProperties(multiprocessors))
    verbs.activation_backward(grad, a, delta, "gelu", 0.0, grad_b)
    other, same = np.empty_like(delta), np.empty_like(grad_b)
    Operations().activation_backward(grad, a, other, "gelu", 0.0, same)
    assert np.array_equal(delta, other)
    assert ulps(grad_b, wide(delta).sum(0), np.float32) <= 1
    verbs.activation_backward(grad, a, delta, "gelu", 0.0, same)
    assert np.array_equal(grad_b, same), "two runs on one machine must agree bitwise"


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1 << 16, 16), "f32"), ((3, 20_000), "f32"), ((30_000, 2), "f16")],
    ids=str,
)
def test_column_sums_of_extreme_shapes_keep_their_digits(shape, dtype):
    """All positive, so that nothing cancels and a sequential float32 sum would show its error."""
    x = Guarded(6).rng.random(shape).astype(DTYPES[dtype])
    out = np.empty(shape[1], np.float32)
    Operations(device=DeviceProperties(8)).column_sum(x, out)
    assert ulps(out, wide(x).sum(0), np.float32) <= 1


def test_identity_reads_no_saved_tensor_and_zero_rows_give_a_zero_bias_gradient():
    grad, saved = Guarded(7).normal((9, 4), np.float32), np.full((9, 4), np.nan, np.float32)
    delta, grad_b, read = np.empty_like(grad), np.empty(4, np.float32), []

    def run(launched):
        only = Module(launched.source, "traffic", dict(launched.defines))
        counts = count_launch(only, launched)
        read.extend(one.read for array, one in counts if array is saved)

    Operations(run).activation_backward(grad, saved, delta, "identity", 0.0, grad_b)
    assert read == [0]
    assert np.array_equal(delta, grad)
    Operations().column_sum(np.empty((0, 4), np.float32), grad_b)
    assert np.array_equal(grad_b, np.zeros(4))
