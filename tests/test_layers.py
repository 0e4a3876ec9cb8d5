"""Affine layers, activation pairs and the bias gradient's column sum against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpubackprop.backends import NumpyBackend
from gpubackprop.backends.numpy import get_num_threads, set_num_threads
from gpubackprop.errors import DtypeError, GpubackpropError, OptionError, ShapeError
from gpubackprop.formulas import ACTIVATIONS, activation
from tests import references, ways
from tests.tolerances import Draws, assert_equal_in_float64
from tests.ways import (
    activation_backward,
    activation_forward,
    affine_backward,
    affine_forward,
    column_sum,
    pointwise_loss,
)

pytestmark = pytest.mark.usefixtures("way")

# rows, D_in, D_out: one unit on either side, batch 1 and 7, a few units, no rows
SHAPES = [
    (64, 400, 1), (64, 1, 400), (1, 30, 20), (7, 5, 3), (1, 1, 1), (50, 1, 1), (3, 17, 15),
    (256, 784, 16), (0, 4, 3), (0, 1, 1),
]  # fmt: skip
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


def layer(shape, dtype=np.float64, seed=0):
    """x, W, b and the gradient with respect to h."""
    rows, d_in, d_out = shape
    rng = np.random.default_rng((seed, *shape))
    sizes = (rows, d_in), (d_out, d_in), (d_out,), (rows, d_out)
    return [rng.normal(0, 1, size).astype(dtype) for size in sizes]


def torch_layer(act, x, W, b, grad_h, dtype):
    """h, grad_W, grad_b, grad_x by torch.nn.functional.linear and autograd."""
    kind = references.TORCH_DTYPE[dtype]
    x, W, b = (references.tensor(array, kind).requires_grad_() for array in (x, W, b))
    h = references.ACTIVATIONS[act.name](torch.nn.functional.linear(x, W, b), act.parameter)
    h.backward(references.tensor(grad_h, kind))
    return [references.numpy(array) for array in (h, W.grad, b.grad, x.grad)]


def our_layer(act, x, W, b, grad_h):
    h, saved = affine_forward(x, W, b, act)
    return [h, *affine_backward(grad_h, saved, x, W, act)]


@SHAPE
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_affine_layer_and_its_gradients_match_pytorch_in_float64(shape, name):
    act = activation(name)
    arrays = layer(shape)
    for got, wanted in zip(
        our_layer(act, *arrays), torch_layer(act, *arrays, "float64"), strict=True
    ):
        assert_equal_in_float64(got, wanted, 1e-13)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0]], ids=str)
@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu"])
def test_affine_layer_and_its_gradients_keep_the_tolerance_in_float32(shape, name):
    """The activations with an inaccurate exp or tanh are held to it in test_activations.

    Known shortfall: products are the BLAS's, and OpenBLAS has up to 1.8 times the error of MKL
    (over 784 terms 4.8 units against 2.7; it also depends on the arrays' alignment). The bias
    gradient of the CUDA kernels has 1.89 units where PyTorch has 1.25.
    """
    act, draws = activation(name), [Draws() for _ in range(4)]
    for seed in range(8):
        arrays = layer(shape, np.float32, seed)
        got = our_layer(act, *arrays)
        theirs, exact = torch_layer(act, *arrays, "float32"), torch_layer(act, *arrays, "float64")
        for draw, *results in zip(draws, got, theirs, exact, strict=True):
            assert results[0].dtype == np.float32
            draw.add(*results)
    for draw in draws:
        draw.check(6.0 if shape[1] > 500 else 1.8)


def test_affine_layer_equals_the_hand_worked_example():
    x, W, b = np.array([[1.0, 2.0]]), np.array([[1.0, -1.0], [0.5, 0.25]]), np.array([0.5, -0.5])
    h, saved = affine_forward(x, W, b, "relu")
    np.testing.assert_array_equal(h, [[0.0, 0.5]])  # a = (-0.5, 0.5)
    grad_W, grad_b, grad_x = affine_backward(np.array([[3.0, 4.0]]), saved, x, W, "relu")
    np.testing.assert_array_equal(grad_W, [[0.0, 0.0], [4.0, 8.0]])
    np.testing.assert_array_equal(grad_b, [0.0, 4.0])
    np.testing.assert_array_equal(grad_x, [[2.0, 1.0]])


def test_affine_backward_leaves_its_inputs_alone_and_the_input_gradient_out_where_asked():
    x, W, b, grad_h = layer((9, 4, 3))
    saved = affine_forward(x, W, b, "tanh")[1]
    before = [array.copy() for array in (grad_h, saved, x, W)]
    with_input = affine_backward(grad_h, saved, x, W, "tanh")
    without = affine_backward(grad_h, saved, x, W, "tanh", input_gradient=False)
    assert without[2] is None
    for one, other in zip(with_input[:2], without[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    for array, old in zip((grad_h, saved, x, W), before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_affine_layer_of_strided_fortran_ordered_and_read_only_arrays_is_the_same(dtype):
    act, arrays = activation("gelu"), layer((33, 12, 7), dtype)
    wanted = our_layer(act, *arrays)

    def frozen(array):
        array = array.copy()
        array.flags.writeable = False
        return array

    def strided(array):
        wide = np.full([2 * n for n in array.shape], np.nan, dtype)
        view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view

    def backwards(array):
        return array[::-1].copy()[::-1]

    for change in (frozen, strided, backwards, np.asfortranarray):
        for got, exact in zip(our_layer(act, *map(change, arrays)), wanted, strict=True):
            np.testing.assert_allclose(
                got, exact, rtol=0, atol=np.finfo(dtype).eps * 8 * np.abs(exact).max()
            )


# -- column_sum -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(2**20, 16), (3, 100_000), (300_000, 2), (1, 5), (5, 1), (0, 4), (4, 0), (100, 0),
     (33, 1), (1000, 1000),
     *((rows, 3) for rows in (31, 32, 33, 63, 64, 65, 255, 256, 257, 2047, 2049)), (262_145, 1)],
    ids=str,
)  # fmt: skip
def test_column_sum_is_no_worse_than_torch_sum_for_any_shape(shape):
    """Biased numbers: with a mean of 1 a plain running sum would drift.

    Known shortfall of the CUDA kernel: 1.28 units over 255 rows, where PyTorch has 0.69.
    """
    ways.skip_if_large(*shape)
    draws = Draws()
    for seed in range(2 if shape[0] > 10**5 else 8):
        x = np.random.default_rng((seed, *shape)).normal(1, 0.5, shape)
        exact = x.sum(0, np.longdouble)
        assert_equal_in_float64(column_sum(x), exact, 5e-16)
        x = x.astype(np.float32)
        draws.add(column_sum(x), references.tensor(x).sum(0).numpy(), x.sum(0, np.float64))
    draws.check()


def test_column_sum_of_300000_rows_of_float16_is_accumulated_in_float32():
    """In float16 a running sum of ones stops at 2048."""
    x = np.full((300_000, 2), 0.125, np.float16)
    np.testing.assert_array_equal(column_sum(x), np.array([37_500.0] * 2, np.float16))
    x = np.random.default_rng(0).normal(0.01, 1, (300_000, 2)).astype(np.float16)
    exact = x.astype(np.float64).sum(0)
    np.testing.assert_allclose(column_sum(x), exact, rtol=2.0**-11)


def test_column_sum_of_bfloat16_is_accumulated_in_float32():
    bfloat16 = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 of its own").bfloat16
    x = np.random.default_rng(0).normal(1, 1, (5000, 3)).astype(bfloat16)
    got = column_sum(x)
    assert got.dtype == bfloat16
    np.testing.assert_allclose(got.astype(float), x.astype(np.float64).sum(0), rtol=2.0**-8)


@pytest.mark.ways("numpy", "native", reason="threads of the host")
@pytest.mark.parametrize("shape", [(2**18, 16), (3, 100_000), (300_000, 2)], ids=str)
def test_column_sum_is_bitwise_repeatable_for_any_number_of_threads(shape):
    before, seen = get_num_threads(), set()
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    try:
        for threads in (1, 2, 3, 2):
            set_num_threads(threads)
            seen.add(column_sum(x).tobytes())
    finally:
        set_num_threads(before)
    assert len(seen) == 1


def test_column_sum_of_any_memory_layout_is_the_same_bit_for_bit():
    x = np.random.default_rng(2).normal(size=(501, 7)).astype(np.float32)
    wide = np.zeros((1002, 21), np.float32)
    wide[::2, ::3] = x
    for view in (np.asfortranarray(x), wide[::2, ::3], x[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_array_equal(column_sum(view), column_sum(x))


def test_overflow_in_float16_is_infinity_and_no_warning():
    """pytest turns warnings into errors here."""
    big = np.full((3, 2), 60_000.0, np.float16)
    np.testing.assert_array_equal(column_sum(big), [np.inf, np.inf])
    np.testing.assert_array_equal(
        activation_forward(-big, "leaky_relu(2)"), np.full((3, 2), -np.inf)
    )
    np.testing.assert_array_equal(
        activation_backward(big, -big, "leaky_relu(2)"), np.full((3, 2), np.inf)
    )
    delta = pointwise_loss("poisson", np.full((1, 1), 20.0, np.float16), np.zeros((1, 1)))[1]
    np.testing.assert_array_equal(delta, [[np.inf]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_column_sum_keeps_nan_and_infinities_in_their_column(value):
    x = np.ones((1000, 5))
    x[637, 3] = value
    np.testing.assert_array_equal(column_sum(x), [1000, 1000, 1000, value, 1000])


# -- errors ---------------------------------------------------------------------------------------

x, W, b, grad_h = layer((6, 4, 3))
h = np.zeros((6, 3))
REFUSED = [
    (affine_forward, (x[:, :3], W, b), ShapeError, r"x has shape \(6, 3\) .* wants \(N, 4\)"),
    (affine_forward, (x, W, b[:2]), ShapeError, r"b has shape \(2,\) .* wants \(3,\) for W"),
    (affine_forward, (x, W[0], b), ShapeError, r"W has shape \(4,\)"),
    (affine_forward, (x[0], W, b), ShapeError, r"pass x\[None, :\]"),
    (affine_forward, (x.astype(np.float32), W, b), DtypeError, "but got x float32, W float64"),
    (affine_forward, (x.astype(int), W, b), DtypeError, "x has dtype int64"),
    (affine_forward, (x.astype(object), W, b), DtypeError, "x has dtype object"),
    (affine_forward, (*(a.astype(np.float16) for a in (x, W, b)), "gelu"), DtypeError, "float16"),
    (affine_forward, [a.astype(">f8") for a in (x, W, b)], DtypeError, "W has dtype >f8"),
    (affine_forward, (x, W, [[1.0], [2.0, 3.0]]), DtypeError, "b is no array"),
    (affine_forward, (x, W, b, "rleu"), OptionError, "did you mean 'relu'"),
    (affine_backward, (grad_h[:5], h[:5], x, W), ShapeError, r"has shape \(5, 3\) .* \(6, 3\)"),
    (affine_backward, (grad_h, h[:5], x, W), ShapeError, r"grad_h has shape \(6, 3\) .* \(5, 3\)"),
    (affine_backward, (grad_h, h, x[:, :2], W), ShapeError, r"x has shape \(6, 2\)"),
    (affine_backward, [a.astype(np.float16) for a in (grad_h, h, x, W)], DtypeError, "float16"),
    (column_sum, (b,), ShapeError, r"delta has shape \(3,\)"),
    (column_sum, (np.ones((2, 2), int),), DtypeError, "delta has dtype int64"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "arguments", "error", "text"), REFUSED)
def test_arguments_that_do_not_fit_are_refused_with_what_to_do(op, arguments, error, text):
    ways.skip_unless_moved(*arguments)
    with pytest.raises(error, match=text) as caught:
        op(*arguments)
    assert isinstance(caught.value, GpubackpropError)


def test_activation_pairs_of_no_rows_and_of_width_one_are_right():
    for shape in ((0, 5), (5, 0), (1, 1), (1, 1000), (100_000, 1)):
        a = np.random.default_rng(3).normal(size=shape)
        for act in ACTIVATIONS.values():
            value, slope = references.activation_oracle(act.name, a, act.parameter)
            got = activation_forward(a, act)
            assert_equal_in_float64(got, value, 1e-15)
            saved = a if act.saved == "a" else got
            assert_equal_in_float64(activation_backward(np.ones_like(a), saved, act), slope, 1e-14)


@pytest.mark.ways(
    "numpy", reason="the plan of the NumPy backend; test_cupy_backend_memory has the other"
)
def test_the_planned_layer_allocates_its_scratch_once_and_reads_its_inputs_each_time():
    x, W, b, _ = layer((20, 6, 5))
    a = np.empty((20, 5))
    run = NumpyBackend().plan(lambda verbs: verbs.affine_forward(x, W, b, activation("gelu"), a, a))
    for seed in (1, 2):
        x[...] = np.random.default_rng(seed).normal(size=x.shape)
        run()
        np.testing.assert_array_equal(a, affine_forward(x, W, b, "gelu")[0])
