"""Hypothesis on the operations: a right result or one of the package's own errors, nothing else.

Shapes (0 rows, 1 column), memory layouts and values (NaN, infinities, subnormals, labels out of
range) are drawn; the right result is PyTorch's in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpubackprop.errors import GpubackpropError, TargetRangeError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, activation
from gpubackprop.network import MLP
from tests import references
from tests.tolerances import assert_same_pattern
from tests.ways import (
    activation_backward,
    activation_forward,
    affine_backward,
    affine_forward,
    column_sum,
    pointwise_loss,
    softmax_cross_entropy,
)

pytestmark = pytest.mark.usefixtures("way")

settings.register_profile(
    "gpubackprop", max_examples=100, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.load_profile("gpubackprop")

ROWS, COLUMNS = (
    st.sampled_from([0, 1, 2, 3, 7, 33, 70]),
    st.sampled_from([1, 2, 3, 16, 31, 32, 33, 40]),
)
DTYPES = st.sampled_from([np.float64, np.float32, np.float16])
MODERATE = [0.0, -0.0, 1.0, -1.0, 0.5, -3.25, 20.0, -20.0, 5e-324, -1e-310, 1e-45, 6e-8, 30.0]
WILD = [np.nan, np.inf, -np.inf]


def laid_out(array, layout):
    """The same values in another memory layout."""
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.full([2 * n + 1 for n in array.shape], 99, array.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if layout == "backwards":
        return array[::-1].copy()[::-1]
    array = array.copy()
    array.flags.writeable = layout != "read-only"
    return array


LAYOUTS = st.sampled_from(["plain", "fortran", "strided", "backwards", "read-only"])


@st.composite
def matrices(draw, rows=ROWS, columns=COLUMNS, dtype=DTYPES, wild=True):
    shape, kind = (draw(rows), draw(columns)), draw(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = rng.normal(0, 3, shape)
    picks = MODERATE + (WILD if wild and draw(st.booleans()) else [])
    if array.size:
        for place in draw(st.lists(st.integers(0, array.size - 1), max_size=4)):
            array.flat[place] = draw(st.sampled_from(picks))
    return laid_out(array.astype(kind), draw(LAYOUTS))


def assert_right(got, oracle, size=None):
    """Pattern as the oracle's, values to a few units of the dtype at the largest magnitude."""
    got, oracle = np.asarray(got), np.asarray(oracle, np.float64)
    eps = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}[got.dtype.itemsize]
    assert_same_pattern(got, oracle)
    finite = np.isfinite(oracle)
    scale = max(1.0, np.abs(oracle[finite]).max(initial=0.0)) if size is None else size
    np.testing.assert_allclose(
        got[finite].astype(np.float64), oracle[finite], rtol=0, atol=64 * eps * scale
    )


@given(
    logits=matrices(), seed=st.integers(0, 9), bad=st.sampled_from([None] * 3 + [-1, "K", 10**9]),
    ignore=st.sampled_from([None, -1, 0]), smoothing=st.sampled_from([0.0, 0.1]),
    reduction=st.sampled_from(["mean", "sum", "none"]), in_place=st.booleans(),
    integer=st.sampled_from([np.int64, np.int32, np.int16]), layout=LAYOUTS,
)  # fmt: skip
def test_softmax_cross_entropy_is_right_or_names_the_bad_label(
    logits, seed, bad, ignore, smoothing, reduction, in_place, integer, layout
):
    rows, classes = logits.shape
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    if ignore is not None:
        targets[rng.random(rows) < 0.4] = ignore
    label = classes if bad == "K" else bad
    integer = np.int64 if bad == 10**9 else integer
    if bad is not None and rows:
        targets[rng.integers(rows)] = label
    options = {"ignore_index": ignore, "label_smoothing": smoothing, "reduction": reduction}
    before, given_targets = logits.copy(), laid_out(targets.astype(integer), layout)
    out = logits if in_place and logits.flags.writeable else None
    if bad is not None and rows and label != ignore:
        with pytest.raises(TargetRangeError, match=rf"targets\[\d+\] is {label} "):
            softmax_cross_entropy(logits, given_targets, out=out, **options)
        np.testing.assert_array_equal(logits, before)
        return
    loss, delta = softmax_cross_entropy(logits, given_targets, out=out, **options)
    oracle = references.cross_entropy(before.astype(np.float64), targets, **options)
    assert_right(loss, oracle[0])
    assert_right(delta, oracle[1])
    assert delta is out or out is None
    if out is None:
        np.testing.assert_array_equal(logits, before)


@given(logits=matrices(), seed=st.integers(0, 9), weighted=st.booleans(), layout=LAYOUTS)
def test_softmax_cross_entropy_of_probabilities_is_right(logits, seed, weighted, layout):
    rng = np.random.default_rng(seed)
    targets = laid_out(rng.uniform(0, 1, logits.shape), layout)
    weight = rng.uniform(0, 2, logits.shape[1]) if weighted else None
    loss, delta = softmax_cross_entropy(logits, targets, class_weight=weight, reduction="sum")
    oracle = references.cross_entropy(
        logits.astype(np.float64), targets, class_weight=weight, reduction="sum"
    )
    assert_right(loss, oracle[0])
    assert_right(delta, oracle[1], max(1.0, logits.shape[1]))


@given(
    name=st.sampled_from([*POINTWISE_LOSSES]), a=matrices(), seed=st.integers(0, 9), layout=LAYOUTS,
    reduction=st.sampled_from(["mean", "elementwise_mean", "sum", "none"]),
)  # fmt: skip
def test_pointwise_loss_is_right(name, a, seed, layout, reduction):
    targets = np.random.default_rng(seed).integers(0, 2, a.shape) * 1.0
    loss, delta = pointwise_loss(name, a, laid_out(targets, layout), reduction=reduction)
    oracle = references.pointwise(name, a.astype(np.float64), targets, reduction=reduction)
    if a.dtype == np.float16 and name == "poisson":
        delta = np.where(np.abs(oracle[1]) > 6e4, oracle[1], delta.astype(float))  # overflows
    assert_right(loss, oracle[0])
    if delta.dtype == np.float16 or a.dtype != np.float16:
        assert_right(delta, oracle[1])


@given(
    name=st.sampled_from([*ACTIVATIONS, "leaky_relu(0.3)", "elu(0.5)"]),
    a=matrices(),
    in_place=st.booleans(),
)
def test_activation_pair_is_right(name, a, in_place):
    """NaN slopes are NaN here (see test_activations), infinities have PyTorch's pattern."""
    act, before = activation(name), a.copy()
    h = activation_forward(a, act, out=a if in_place and a.flags.writeable else None)
    value, slope = references.activation(act.name, before.astype(np.float64), act.parameter)
    assert_right(h, value)
    saved = before if act.saved == "a" else h
    grad = np.ones_like(before)
    delta = activation_backward(grad, saved, act)
    nan = np.isnan(before.astype(float))
    assert_right(np.where(nan, 0, delta).astype(a.dtype), np.where(nan, 0, slope))
    assert act.name in ("identity", "relu") or np.isnan(delta[nan].astype(float)).all()


@given(
    rows=ROWS, d_in=COLUMNS, d_out=COLUMNS, seed=st.integers(0, 9),
    layouts=st.tuples(*[LAYOUTS] * 4),
    dtype=st.sampled_from([np.float64, np.float32]),
    name=st.sampled_from(["identity", "relu", "gelu"]),
)  # fmt: skip
def test_affine_layer_is_right_for_any_shape_and_layout(
    rows, d_in, d_out, seed, layouts, dtype, name
):
    rng = np.random.default_rng(seed)
    shapes = (rows, d_in), (d_out, d_in), (d_out,), (rows, d_out)
    x, W, b, grad = (
        laid_out(rng.normal(size=shape).astype(dtype), layout)
        for shape, layout in zip(shapes, layouts, strict=True)
    )
    h, saved = affine_forward(x, W, b, name)
    got = h, *affine_backward(grad, saved, x, W, name)
    wide = [array.astype(np.float64) for array in (x, W, b, grad)]
    a = wide[0] @ wide[1].T + wide[2]
    value, slope = references.activation_oracle(name, a, 0.0)
    delta = wide[3] * slope
    for ours, exact in zip(
        got, (value, delta.T @ wide[0], delta.sum(0), delta @ wide[1]), strict=True
    ):
        assert_right(ours, exact)


@given(delta=matrices(rows=st.sampled_from([0, 1, 4, 5, 8, 31, 64, 65, 129, 500])))
def test_column_sum_is_right(delta):
    with np.errstate(invalid="ignore"):
        exact = delta.astype(np.float64).sum(0)
    assert_right(
        column_sum(delta),
        exact,
        max(1.0, np.nansum(np.abs(delta[np.isfinite(delta)].astype(float)))),
    )


ANYTHING = st.one_of(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, bool, "U1", "c8", ">f4", "M8[s]"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        fill=st.nothing(), elements=None,
    ),
    st.sampled_from([None, "text", 3, 2.5, [], [[]], [[1.0], [1.0, 2.0]], {}, np.array([[{}]])]),
)  # fmt: skip


@settings(max_examples=150)
@given(
    first=ANYTHING, second=ANYTHING,
    op=st.sampled_from(
        ["cross_entropy", "pointwise", "column_sum", "forward", "backward", "affine", "gradients",
         "predict"]),
)  # fmt: skip
def test_anything_at_all_gives_a_result_or_one_of_the_packages_own_errors(first, second, op):
    network = MLP([3, 2], dtype="float64")
    calls = {
        "cross_entropy": lambda: softmax_cross_entropy(first, second),
        "pointwise": lambda: pointwise_loss("squared_error", first, second),
        "column_sum": lambda: column_sum(first),
        "forward": lambda: activation_forward(first, "gelu"),
        "backward": lambda: activation_backward(first, second, "gelu"),
        "affine": lambda: affine_forward(first, second, np.zeros(2)),
        "gradients": lambda: network.gradients(first, second),
        "predict": lambda: network.predict(first),
    }
    with np.errstate(all="ignore"):
        try:
            calls[op]()
        except GpubackpropError as error:
            assert len(str(error)) > 30, "what, got, wanted"  # noqa: PT017
