"""Softmax cross entropy at the edges of the number range: infinities, NaN, offsets, 16 bits."""

from __future__ import annotations

import numpy as np
import pytest

from tests import references, ways
from tests.emulator.arrays import ulps
from tests.test_softmax_cross_entropy import PRIMITIVE_DELTA, PRIMITIVE_ROW_LOSS
from tests.tolerances import assert_by_the_rule, assert_same_pattern
from tests.ways import softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("way")

LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in (np.float16, np.float32, np.float64)}
DTYPES = pytest.mark.parametrize("dtype", LARGEST, ids=lambda dtype: dtype.__name__)
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"class_weight": np.array([1.0, 2.0, 0.5, 1.0, 3.0])},
    {"class_weight": np.array([1.0, 2.0, 0.5, 1.0, 3.0]), "label_smoothing": 0.1},
]


def row_loss_shortfall():
    return ways.by_way(PRIMITIVE_ROW_LOSS, 1.0)


def special_rows(dtype):
    """One row of five logits for each special case."""
    inf, nan, big = np.inf, np.nan, LARGEST[dtype]
    rows = [
        [0, inf, 1, 2, 3], [0, -inf, 1, 2, 3], [0, nan, 1, 2, 3], [-inf] * 5, [inf] * 5, [nan] * 5,
        [inf, -inf, 0, nan, 1], [inf, inf, 0, 1, 2], [inf, -inf, 0, 1, 2], [big, 0, 1, 2, 3],
        [-big, 0, 1, 2, 3], [big, -big, 0, 1, big], [big] * 5, [-big] * 5, [big, inf, 0, 0, 0],
        [-big, -inf, -big, -inf, -big], [0.0, -0.0, 0.0, -0.0, 0.0], [1e-7, -1e-7, 6e-8, 0, 0],
    ]  # fmt: skip
    for position in range(5):
        one_finite = [-inf] * 5
        one_finite[position] = 1.5
        rows.append(one_finite)
    return np.array(rows, dtype)


@DTYPES
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_special_logits_have_pytorchs_pattern_of_nan_and_infinities(dtype, options):
    """16-bit logits are computed in float32 here and compared with PyTorch's float32. The z-loss is
    no function of PyTorch's; where lse^2 overflows, autograd of the expression gives inf * 0."""
    z = special_rows(dtype)
    if "label_smoothing" in options and not ways.on_host():
        z = z[~(z == LARGEST[dtype]).any(1)]  # a finite loss, where PyTorch's sum overflows to inf
    if "z_loss" in options:
        z = z[~(np.abs(z) == LARGEST[dtype]).any(1)]
    reference_dtype = "float64" if dtype == np.float64 else "float32"
    for label in range(5):
        t = np.full(len(z), label)
        wanted = references.cross_entropy(z, t, dtype=reference_dtype, reduction="none", **options)
        loss, delta = softmax_cross_entropy(z, t, reduction="none", **options)
        assert_same_pattern(loss, wanted[0])
        assert_same_pattern(delta, wanted[1])
        finite = np.isfinite(wanted[0])
        np.testing.assert_allclose(loss[finite], wanted[0][finite], rtol=1e-6)
        finite = np.isfinite(wanted[1])
        rounding = 2.0**-11 if dtype == np.float16 else 2.0**-23
        np.testing.assert_allclose(
            delta[finite], wanted[1][finite], rtol=2 * rounding, atol=2 * rounding
        )


@DTYPES
def test_special_logits_with_probability_targets_have_pytorchs_pattern(dtype):
    z = special_rows(dtype)
    p = np.random.default_rng(0).dirichlet(np.ones(5), len(z)).astype(dtype)
    p[::3, 1] = 0.0  # 0 * -inf is NaN, in PyTorch too
    reference_dtype = "float64" if dtype == np.float64 else "float32"
    wanted = references.cross_entropy(z, p, dtype=reference_dtype, reduction="none")
    loss, delta = softmax_cross_entropy(z, p, reduction="none")
    assert_same_pattern(loss, wanted[0])
    assert_same_pattern(delta, wanted[1])


@pytest.mark.parametrize("classes", [5, 33, 257])
def test_one_finite_logit_among_minus_infinities_has_all_the_probability(classes):
    z = np.full((classes, classes), -np.inf, np.float32)
    np.fill_diagonal(z, np.linspace(-50, 50, classes))
    t = np.arange(classes)
    loss, delta = softmax_cross_entropy(z, t, reduction="none")
    np.testing.assert_array_equal(loss, 0.0)
    np.testing.assert_array_equal(delta, 0.0)
    loss, delta = softmax_cross_entropy(z, np.roll(t, 1), reduction="none")
    np.testing.assert_array_equal(loss, np.inf)
    np.testing.assert_array_equal(delta, np.eye(classes) - np.eye(classes)[np.roll(t, 1)])


@pytest.mark.parametrize("place", [0, 3, 31, 32, 63, 299])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_logit_spoils_its_own_row_and_no_other(place, value):
    z = np.random.default_rng(1).normal(size=(90, 300)).astype(np.float32)
    t = np.random.default_rng(2).integers(0, 300, 90)
    wanted = softmax_cross_entropy(z, t, reduction="none")
    z[41, place] = value
    loss, delta = softmax_cross_entropy(z, t, reduction="none")
    others = np.arange(90) != 41
    assert np.isnan(loss[41])
    assert np.isnan(delta[41]).all()
    np.testing.assert_array_equal(loss[others], wanted[0][others])
    np.testing.assert_array_equal(delta[others], wanted[1][others])


@DTYPES
@pytest.mark.parametrize("ignore", [-100, 2])
def test_all_labels_ignored_give_a_gradient_of_exactly_zero_and_a_mean_of_nan(dtype, ignore):
    z = np.vstack([special_rows(dtype), np.ones((3, 5), dtype)])
    t = np.full(len(z), ignore)
    for options in OPTIONS:
        torchs = references.cross_entropy(
            np.ones(z.shape),
            t,
            ignore_index=ignore,
            **{k: v for k, v in options.items() if k != "z_loss"},
        )
        loss, delta = softmax_cross_entropy(z, t, ignore_index=ignore, **options)
        assert np.isnan(loss)
        assert np.isnan(torchs[0])
        np.testing.assert_array_equal(delta, 0.0)
        np.testing.assert_array_equal(torchs[1], 0.0)
        assert softmax_cross_entropy(z, t, ignore_index=ignore, empty="zero", **options)[0] == 0.0
        assert (
            softmax_cross_entropy(z, t, ignore_index=ignore, reduction="sum", **options)[0] == 0.0
        )


def test_weights_of_nothing_but_zeros_give_a_zero_gradient_where_that_mean_is_zero():
    z, t = np.random.default_rng(0).normal(size=(4, 6)), np.array([0, 1, 2, 5])
    for weights in ({"class_weight": np.zeros(6)}, {"sample_weight": np.zeros(4)}):
        loss, delta = softmax_cross_entropy(z, t, empty="zero", **weights)
        assert loss == 0.0
        np.testing.assert_array_equal(delta, 0.0)
        loss, delta = softmax_cross_entropy(z, t, **weights)  # as in PyTorch
        assert np.isnan(loss)
        assert np.isnan(delta).all()


@pytest.mark.parametrize("offset", [1e4, -1e4, 1e6])
def test_a_common_offset_costs_no_digit_beyond_those_of_the_logits(offset):
    """lse - z_y would keep three decimals at 1e4 in float32. The oracle has the same logits."""
    z = (np.random.default_rng(3).normal(size=(200, 50)) + offset).astype(np.float32)
    t = np.random.default_rng(4).integers(0, 50, 200)
    for options in ({}, {"label_smoothing": 0.1}):
        oracle = references.cross_entropy(z, t, reduction="none", **options)
        torchs = references.cross_entropy(z, t, dtype="float32", reduction="none", **options)
        loss, delta = softmax_cross_entropy(z, t, reduction="none", **options)
        assert_by_the_rule(loss, torchs[0], oracle[0], primitive=row_loss_shortfall())
        assert_by_the_rule(delta, torchs[1], oracle[1], primitive=ways.by_way(PRIMITIVE_DELTA, 1.0))
        assert ulps(loss, oracle[0], np.float32, "elements") < 8


@pytest.mark.parametrize("margin", [8.0, 12.0, 15.0, 20.0, 40.0, 90.0, 110.0])
def test_a_confident_right_prediction_has_an_accurate_small_loss(margin):
    """loss = log1p(9 exp(-margin)), in closed form. S is a sum of 1 and nine small numbers, so the
    loss has an absolute error of up to ten roundings at 1; PyTorch's has the same."""
    z = np.zeros((4, 10))
    z[:, 3] = margin
    exact = np.log1p(9 * np.exp(-margin))
    loss, delta = softmax_cross_entropy(z, np.full(4, 3), reduction="none")
    np.testing.assert_allclose(loss, exact, rtol=0, atol=10 * 2.0**-53)
    p_minus_1 = -9 * np.exp(-margin) / (1 + 9 * np.exp(-margin))
    np.testing.assert_allclose(delta[:, 3], p_minus_1, rtol=0, atol=10 * 2.0**-53)
    loss32 = softmax_cross_entropy(z.astype(np.float32), np.full(4, 3), reduction="none")[0]
    np.testing.assert_allclose(loss32, exact, rtol=0, atol=10 * 2.0**-24)
    wrong = softmax_cross_entropy(z, np.full(4, 0), reduction="none")[0]
    np.testing.assert_allclose(wrong, margin + exact, rtol=1e-15)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_16_bit_confident_predictions_form_p_minus_1_in_float32_before_rounding(name):
    """p is within 1e-6 of 1: rounded to 16 bits first it would be 1, and the gradient 0."""
    dtype = np.dtype(bfloat16() if name == "bfloat16" else np.float16)
    gap = 13.8125  # exact in float16, 13.8125 in bfloat16: 1 - p = 1.0e-6
    z = np.array([[0.0, -gap]], dtype)
    assert float(z[0, 1]) == -gap
    exact = 1 / (1 + np.exp(gap))
    assert exact < 1.01e-6
    _, delta = softmax_cross_entropy(z, np.array([0]), reduction="sum")
    # the 1e-6 itself is known to float32's epsilon; float16 holds it to 2^-24
    np.testing.assert_allclose(
        delta.astype(np.float64),
        [[-exact, exact]],
        rtol=2**-8 if name == "bfloat16" else 0,
        atol=2.0**-23,
    )
    assert delta[0, 0] < 0 < delta[0, 1]


def bfloat16():
    return pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 of its own").bfloat16


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("classes", [3, 10, 33, 1000])
def test_16_bit_logits_give_a_float32_loss_and_a_delta_rounded_once(name, classes):
    dtype = np.dtype(bfloat16() if name == "bfloat16" else np.float16)
    rng = np.random.default_rng(classes)
    z, t = rng.normal(0, 3, (60, classes)).astype(dtype), rng.integers(0, classes, 60)
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}):
        oracle = references.cross_entropy(z.astype(np.float64), t, reduction="none", **options)
        torchs = references.cross_entropy(z, t, dtype=name, reduction="none", **options)
        torchs32 = references.cross_entropy(z, t, dtype="float32", reduction="none", **options)
        loss, delta = softmax_cross_entropy(z, t, reduction="none", **options)
        assert loss.dtype == np.float32
        assert delta.dtype == dtype
        assert_by_the_rule(loss, torchs32[0], oracle[0], primitive=row_loss_shortfall())
        assert_by_the_rule(delta, torchs[1], oracle[1])
        # one rounding (1/2) after an error of a few float32 epsilons of the row's terms of size 1
        by_row = ulps(delta.astype(np.float64), oracle[1], dtype, "elements")
        assert by_row <= 0.51 or np.abs(delta.astype(np.float64) - oracle[1]).max() < 2.0**-11
        if not ways.on_host():  # 16 bits have an exponential of their own there
            continue
        wide = softmax_cross_entropy(z.astype(np.float32), t, reduction="none", **options)
        np.testing.assert_array_equal(loss, wide[0])
        np.testing.assert_array_equal(
            delta.astype(np.float32), wide[1].astype(dtype).astype(np.float32)
        )


def test_float32_error_over_many_draws_is_no_worse_than_pytorchs():
    """Of the mean loss in every draw; of delta by the root mean square over all draws."""
    squares = np.zeros(2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z, t = rng.normal(0, 3, (128, 100)).astype(np.float32), rng.integers(0, 100, 128)
        oracle = references.cross_entropy(z, t)
        torchs = references.cross_entropy(z, t, dtype="float32")
        loss, delta = softmax_cross_entropy(z, t)
        assert_by_the_rule(loss, torchs[0], oracle[0], primitive=1.0)
        squares += [np.square(x - oracle[1]).sum() for x in (delta, torchs[1])]
    # 1.2: NumPy's exp has 1.2 times the root mean square error of PyTorch's (see PRIMITIVE_DELTA)
    assert squares[0] <= 1.2**2 * squares[1], np.sqrt(squares[0] / squares[1])
