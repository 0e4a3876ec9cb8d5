"""Squared error, binary cross entropy and Poisson against PyTorch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpubackprop import losses
from gpubackprop.backends import LossOptions, NumpyBackend
from gpubackprop.backends.numpy import get_num_threads, set_num_threads
from gpubackprop.errors import DtypeError, GpubackpropError, OptionError, ShapeError
from gpubackprop.formulas import OUTPUTS, POINTWISE_LOSSES
from tests import references, ways
from tests.tolerances import Draws, assert_equal_in_float64, assert_same_pattern
from tests.ways import pointwise_loss

pytestmark = pytest.mark.usefixtures("way")

LOSSES = pytest.mark.parametrize("name", references.POINTWISE_SPECS)
REDUCTIONS = ("mean", "elementwise_mean", "sum", "none")


def problem(name, rows=37, units=6, scale=2.0, seed=0):
    rng = np.random.default_rng((seed, rows, units))
    a = rng.normal(0, scale, (rows, units))
    return a, references.targets(name, rng, a.shape)


@pytest.mark.ways("numpy", reason="computes nothing on an array")
def test_the_references_know_every_pointwise_loss():
    assert set(references.POINTWISE) == set(POINTWISE_LOSSES)


@LOSSES
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample_weight"])
def test_loss_and_delta_match_pytorch_in_float64(name, reduction, weighted):
    for rows, units in itertools.product((1, 7, 300), (1, 2, 10, 33, 1000)):
        a, t = problem(name, rows, units)
        weight = np.random.default_rng(1).uniform(0, 2, rows) if weighted else None
        options = {"reduction": reduction, "sample_weight": weight}
        got = pointwise_loss(name, a, t, **options)
        for ours, exact in zip(got, references.pointwise(name, a, t, **options), strict=True):
            assert_equal_in_float64(ours, exact, 1e-13)


@LOSSES
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(7, 1), (300, 2), (300, 10), (100, 33), (64, 1000)], ids=str)
def test_loss_and_delta_keep_the_tolerance_in_float32(name, reduction, shape):
    """Known shortfall of the CUDA kernels, which add rows in float32: 2.40 units, PyTorch 0.58."""
    ways.skip_if_large(*shape)
    draws = Draws(), Draws()
    for seed in range(8):
        a, t = (array.astype(np.float32) for array in problem(name, *shape, seed=seed))
        options = {
            "reduction": reduction,
            "sample_weight": np.random.default_rng(seed).uniform(0, 2, len(a))
            if seed % 2
            else None,
        }
        got = pointwise_loss(name, a, t, **options)
        oracle = references.pointwise(name, a, t, **options)
        torchs = references.pointwise(name, a, t, dtype="float32", **options)
        for draw, ours, theirs, exact in zip(draws, got, torchs, oracle, strict=True):
            assert ours.dtype == np.float32
            draw.add(ours, theirs, exact)
    for draw in draws:
        draw.check()


@LOSSES
def test_delta_is_the_central_difference_of_the_loss(name):
    a, t = problem(name, 4, 3, 1.0)
    weight = np.array([1.0, 0.0, 2.0, 0.5])
    for reduction in ("mean", "elementwise_mean", "sum"):
        options = {"reduction": reduction, "sample_weight": weight}
        delta = pointwise_loss(name, a, t, **options)[1]
        for place in np.ndindex(*a.shape):
            shift = np.zeros_like(a)
            shift[place] = 1e-5
            above, below = (pointwise_loss(name, a + s, t, **options)[0] for s in (shift, -shift))
            assert abs((above - below) / 2e-5 - delta[place]) < 1e-9


def test_the_hand_worked_examples():
    a, t = np.array([[0.0, 2.0]]), np.array([[1.0, 0.0]])
    loss, delta = pointwise_loss("squared_error", a, t)
    assert loss == (1 + 4) / 2
    np.testing.assert_array_equal(delta, [[-1.0, 2.0]])
    loss, delta = pointwise_loss("binary_cross_entropy", a, t)
    np.testing.assert_allclose(loss, np.log(2) + np.log(1 + np.exp(2)), rtol=1e-15)
    np.testing.assert_allclose(delta, [[-0.5, 1 / (1 + np.exp(-2))]], rtol=1e-15)
    loss, delta = pointwise_loss("poisson", a, np.array([[1.0, 3.0]]))
    np.testing.assert_allclose(loss, (1 - 0) + (np.exp(2) - 6), rtol=1e-15)
    np.testing.assert_allclose(delta, [[0.0, np.exp(2) - 3]], rtol=1e-15)
    a = np.array([[1.0, 2.0], [3.0, 5.0]])
    weight = [1.0, 3.0]
    for reduction, wanted in (
        ("none", [2.5, 51.0]), ("sum", 53.5), ("mean", 53.5 / 4), ("elementwise_mean", 53.5 / 8)
    ):  # fmt: skip
        loss, _ = pointwise_loss(
            "squared_error", a, np.zeros((2, 2)), sample_weight=weight, reduction=reduction
        )
        np.testing.assert_array_equal(loss, wanted)


@LOSSES
def test_in_place_out_of_place_and_twice_in_a_row_agree_bitwise(name):
    for dtype in (np.float64, np.float32, np.float16):
        a, t = problem(name, 500, 21)
        a = a.astype(dtype)
        untouched = a.copy()
        loss, delta = pointwise_loss(name, a, t)
        np.testing.assert_array_equal(a, untouched)
        out = np.full_like(a, 7)
        for target in (None, out, a):
            other_loss, other_delta = pointwise_loss(name, a, t, out=target)
            assert other_loss == loss
            np.testing.assert_array_equal(other_delta, delta)
            assert target is None or other_delta is target


SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1.5e38,
    -1.5e38,
    1e-45,
    88.0,
    89.0,
    -104.0,
    745.0,
    -746.0,
]


@LOSSES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("repeats", [1, 16], ids=["scalar tail", "vector body"])
def test_special_values_have_pytorchs_pattern_of_nan_and_infinities(name, dtype, repeats):
    a = np.repeat(np.array(SPECIAL, dtype), repeats)[:, None]
    for target in (0.0, 1.0):
        t = np.full_like(a, target)
        loss, delta = pointwise_loss(name, a, t, reduction="none")
        wanted = references.pointwise(name, a, t, dtype=dtype, reduction="none")
        assert_same_pattern(loss, wanted[0])
        assert_same_pattern(delta, wanted[1])


def test_binary_cross_entropy_of_extreme_logits_is_finite_and_exact():
    a = np.array([[1e4, -1e4, 800.0, -800.0]], np.float32)
    loss, delta = pointwise_loss("binary_cross_entropy", a, np.array([[0.0, 1.0, 1.0, 0.0]]))
    assert loss == 2e4
    np.testing.assert_array_equal(delta, [[1.0, -1.0, 0.0, 0.0]])


@LOSSES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_rows_give_nan_for_the_mean_and_zero_for_the_sum(name, dtype):
    a = np.zeros((0, 3), dtype)
    for reduction, wanted in (("mean", np.nan), ("elementwise_mean", np.nan), ("sum", 0.0)):
        loss, delta = pointwise_loss(name, a, a, reduction=reduction)
        np.testing.assert_array_equal(loss, wanted)
        assert delta.shape == (0, 3)
    assert pointwise_loss(name, a, a, reduction="none")[0].shape == (0,)


@LOSSES
def test_strided_fortran_ordered_and_read_only_inputs_give_the_same_result(name):
    a, t = problem(name, 40, 9)
    loss, delta = pointwise_loss(name, a, t)
    frozen = a.copy()
    frozen.flags.writeable = False
    wide = np.full((80, 20), np.nan)
    wide[::2, 1:19:2] = a
    for view in (np.asfortranarray(a), frozen, wide[::2, 1:19:2], a[::-1].copy()[::-1]):
        for other in (t, np.asfortranarray(t), t[:, ::-1].copy()[:, ::-1]):
            got = pointwise_loss(name, view, other)
            np.testing.assert_allclose(got[0], loss, rtol=1e-15)
            np.testing.assert_allclose(got[1], delta, rtol=1e-15)
    pointwise_loss(name, wide[::2, 1:19:2], t, out=wide[::2, 1:19:2])
    np.testing.assert_array_equal(wide[::2, 1:19:2], delta)
    assert np.isnan(wide[1::2]).all()


def test_targets_of_one_unit_may_be_a_vector_and_of_any_number_type():
    a, t = problem("binary_cross_entropy", 20, 1)
    wanted = pointwise_loss("binary_cross_entropy", a, t)
    for dtype in (bool, np.int8, np.uint8, np.float16, np.float32, np.int64):
        got = pointwise_loss("binary_cross_entropy", a, t[:, 0].astype(dtype))
        assert got[0] == wanted[0]
        np.testing.assert_array_equal(got[1], wanted[1])


@pytest.mark.ways("numpy", "native", reason="threads of the host")
def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit():
    before, seen = get_num_threads(), set()
    a, t = problem("poisson", 30_000, 10)
    a = a.astype(np.float32)
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            loss, delta = pointwise_loss("poisson", a, t)
            seen.add((loss.tobytes(), delta.tobytes()))
    finally:
        set_num_threads(before)
    assert len(seen) == 1


@pytest.mark.ways("numpy", reason="a verb of the NumPy backend; test_cupy_backend has the other")
def test_the_verb_counts_a_row_as_correct_where_every_unit_is_on_its_targets_side():
    a = np.array([[1.0, -1.0], [1.0, 1.0], [-0.5, 2.0], [0.0, 0.0]])
    t = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    result = {"loss": np.zeros(()), "row_loss": np.empty(4), "scale": np.empty(4)}
    result["correct"] = np.empty(4, bool)
    NumpyBackend().pointwise_loss(
        a, t, POINTWISE_LOSSES["binary_cross_entropy"], LossOptions(), result
    )
    assert result["correct"].tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "name", [name for name in POINTWISE_LOSSES if POINTWISE_LOSSES[name].default]
)
def test_delta_is_the_output_minus_the_target_as_the_canonical_link_gives(name):
    a, t = problem(name)
    yhat = np.empty_like(a)
    OUTPUTS[POINTWISE_LOSSES[name].output](a, yhat)
    torchs = {"linear": lambda x: x, "logistic": lambda x: x.sigmoid(), "exp": lambda x: x.exp()}
    assert_equal_in_float64(
        yhat, torchs[POINTWISE_LOSSES[name].output](references.tensor(a)).numpy(), 1e-15
    )
    np.testing.assert_allclose(pointwise_loss(name, a, t, reduction="sum")[1], yhat - t, atol=1e-13)


@pytest.mark.ways("numpy", reason="computes nothing on an array")
def test_every_output_function_and_every_task_has_one_loss_of_its_own():
    """The founding case: a second loss of the linear output must not become that of regressions."""
    for what in ("output", "task"):
        wanted = {getattr(kind, what) for kind in losses.LOSSES.values()}
        own = [getattr(kind, what) for kind in losses.LOSSES.values() if kind.default]
        assert sorted(own) == sorted(wanted)
    assert {kind.output for kind in losses.LOSSES.values()} == set(OUTPUTS)
    names = {"softmax": "softmax_cross_entropy", "linear": "squared_error",
             "logistic": "binary_cross_entropy", "exp": "poisson"}  # fmt: skip
    assert {output: losses.default_loss(output=output).name for output in OUTPUTS} == names
    assert losses.default_loss(task="regression").name == "squared_error"
    with pytest.raises(OptionError, match="no loss belongs to output 'cubic'"):
        losses.default_loss(output="cubic")


A = np.zeros((6, 4))
REFUSED = [
    (("squared_eror", A, A), {}, OptionError, "must be one of .*did you mean 'squared_error'"),
    (("squared_error", A, A[:5]), {}, ShapeError, r"targets has shape \(5, 4\) .* wants \(6, 4\)"),
    (("squared_error", A, A[:, 0]), {}, ShapeError, r"targets has shape \(6,\)"),
    (("squared_error", A[0], A[0]), {}, ShapeError, r"a has shape \(4,\)"),
    (("squared_error", A, [["x"] * 4] * 6), {}, DtypeError, "encode text labels first"),
    (("squared_error", A, [[1.0], [1.0, 2.0]]), {}, DtypeError, "targets is no array of numbers"),
    (("squared_error", A.astype(int), A), {}, DtypeError, "a has dtype int64"),
    (
        ("binary_cross_entropy", A, A + 1.5),
        {},
        OptionError,
        r"targets\[0, 0\] is 1.5 .* in \[0, 1\]",
    ),
    (("binary_cross_entropy", A, A - 0.1), {}, OptionError, r"targets\[0, 0\] is -0.1"),
    (("poisson", A, A - 1), {}, OptionError, r"targets\[0, 0\] is -1.0 .* at least 0"),
    (("squared_error", A, A), {"reduction": "avg"}, OptionError, "reduction is 'avg'"),
    (
        ("squared_error", A, A),
        {"sample_weight": -np.ones(6)},
        OptionError,
        r"sample_weight\[0\] is -1",
    ),
    (("squared_error", A, A), {"sample_weight": np.ones(4)}, ShapeError, r"wants \(6,\)"),
    (("squared_error", A, A), {"out": np.zeros((6, 3))}, ShapeError, "pass np.empty_like"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "text"), REFUSED)
def test_arguments_that_do_not_fit_are_refused_with_what_to_do(arguments, options, error, text):
    ways.skip_unless_moved(*arguments[1:])
    with pytest.raises(error, match=text) as caught:
        pointwise_loss(*arguments, **options)
    assert isinstance(caught.value, GpubackpropError)


def test_an_out_that_overlaps_targets_or_weights_is_refused():
    memory = np.zeros((7, 4))
    with pytest.raises(OptionError, match="out overlaps targets"):
        pointwise_loss("squared_error", A, memory[1:], out=memory[1:])
    with pytest.raises(OptionError, match="out overlaps a"):
        pointwise_loss("squared_error", memory[1:], A, out=memory[:-1])
    with pytest.raises(OptionError, match="out overlaps sample_weight"):
        pointwise_loss("squared_error", A, A, sample_weight=memory.ravel()[:6], out=memory[:-1])
