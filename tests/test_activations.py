"""Every activation against PyTorch, central differences and IEEE's special values."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend
from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.formulas import ACTIVATIONS, activation
from tests import references, ways
from tests.emulator.arrays import ulps
from tests.tolerances import assert_by_the_rule, assert_equal_in_float64, assert_same_pattern
from tests.ways import activation_backward, activation_forward

pytestmark = pytest.mark.usefixtures("way")

SPECS = (*ACTIVATIONS, "leaky_relu(0.2)", "leaky_relu(0.3)", "elu(0.5)", "elu(1.7)")
GRID = np.concatenate([np.linspace(-30.0, 30.0, 4001), np.linspace(-2.0, 2.0, 2001)])


@pytest.fixture(params=SPECS)
def entry(request):
    return activation(request.param)


def value_and_slope(entry, a):
    """(g(a), g'(a)) by the package, for a of any shape; the slope is taken from what is saved."""
    a = a.reshape(1, -1)
    h = activation_forward(a, entry)
    slope = activation_backward(np.ones_like(a), a if entry.saved == "a" else h, entry)
    return h[0], slope[0]


@pytest.mark.ways("numpy", reason="computes nothing on an array")
def test_the_references_know_every_activation():
    assert set(references.ACTIVATIONS) == set(ACTIVATIONS)


def test_activation_value_and_slope_match_pytorch_in_float64(entry):
    h, slope = value_and_slope(entry, GRID)
    wanted_h, wanted_slope = references.activation_oracle(entry.name, GRID, entry.parameter)
    assert_equal_in_float64(h, wanted_h, 1e-15)
    assert_equal_in_float64(slope, wanted_slope, 2e-15)


# The small reach shows errors near 0, which the largest magnitude of GRID would hide.
@pytest.mark.parametrize("reach", [1e-3, 1.0, 6.0, 30.0, 1e4])
def test_activation_value_and_slope_keep_the_tolerance_in_float32(entry, reach):
    a = np.random.default_rng(1).uniform(-reach, reach, 20_000).astype(np.float32)
    h, slope = value_and_slope(entry, a)
    oracle_h, oracle_slope = references.activation_oracle(entry.name, a, entry.parameter)
    torch_h, torch_slope = references.activation(entry.name, a, entry.parameter)
    short = references.SHORTFALLS.get(entry.name, references.Shortfall())
    of_value, of_slope = short.numpy_draw if ways.on_host() else short.emulated_draw
    assert_by_the_rule(h, torch_h, oracle_h, primitive=of_value)
    assert_by_the_rule(slope, torch_slope, oracle_slope, primitive=of_slope)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activation_of_16_bit_numbers_is_the_float32_result_rounded_once(entry, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16").bfloat16
    a = np.random.default_rng(2).normal(0, 3, 5000).astype(dtype)
    h, slope = value_and_slope(entry, a)
    wide = a.astype(np.float32)
    saved = wide if entry.saved == "a" else h.astype(np.float32)
    assert h.dtype == slope.dtype == a.dtype
    np.testing.assert_array_equal(
        h.astype(np.float32), value_and_slope(entry, wide)[0].astype(dtype).astype(np.float32)
    )
    rounded = activation_backward(np.ones((1, 5000), np.float32), saved.reshape(1, -1), entry)
    np.testing.assert_array_equal(
        slope.astype(np.float32), rounded[0].astype(dtype).astype(np.float32)
    )
    oracle = references.activation_oracle(entry.name, wide, entry.parameter)[0]
    assert ulps(h.astype(np.float64), oracle, a.dtype, "elements") <= 0.51


def test_activation_slope_matches_central_difference_in_float64(entry):
    a = np.linspace(-8.0, 8.0, 1601) + 3e-3  # no point within a step of a kink at 0
    step = 1e-5
    above, below = value_and_slope(entry, a + step)[0], value_and_slope(entry, a - step)[0]
    difference = (above - below) / (2 * step)
    np.testing.assert_allclose(value_and_slope(entry, a)[1], difference, rtol=0, atol=2e-10)


def test_kinks_are_marked_where_a_derivative_jumps_at_zero(entry):
    """The second difference at 0 settles as the step shrinks, unless the first derivative or the
    second one jumps there."""

    def slope(at):
        return value_and_slope(entry, np.array([at]))[1][0]

    def second(at):
        return (slope(at + 1e-6) - slope(at - 1e-6)) / 2e-6

    jumps = abs(slope(1e-9) - slope(-1e-9)) > 1e-3 or abs(second(1e-4) - second(-1e-4)) > 1e-2
    assert entry.kinks == jumps


SPECIAL = {
    np.float32: [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40, -1e-40, 3.4028235e38,
                 -3.4028235e38, 1.1754944e-38, -88.7, 88.8, -104.0, 20.0, -20.0],
    np.float64: [0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 1e-310, -1e-310,
                 1.7e308, -1.7e308, 2.3e-308, -709.0, 710.0, -745.0],
}  # fmt: skip


@pytest.mark.parametrize("dtype", SPECIAL, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("repeats", [1, 16], ids=["scalar tail", "vector body"])
def test_activation_of_special_values_has_pytorchs_pattern(entry, dtype, repeats):
    """Deliberate deviations. The slope at NaN is NaN here, but for relu's, which is PyTorch's 1;
    PyTorch's leaky_relu and (in the scalar tail) elu compare and give a number too. gelu(inf) is
    inf and gelu of the largest number that number, as in PyTorch's float64; its float32 gives NaN
    and inf."""
    a = np.repeat(np.array(SPECIAL[dtype], dtype), repeats)
    h, slope = value_and_slope(entry, a)
    torch_h, torch_slope = references.activation(entry.name, a, entry.parameter)
    if entry.name == "gelu":
        torch_h = np.where(a > 1e38, a, torch_h)
    assert_same_pattern(h, torch_h)
    nan = np.isnan(a)
    assert_same_pattern(slope[~nan], torch_slope[~nan])
    assert (np.isnan(slope[nan]) == (entry.name not in ("identity", "relu"))).all()


def test_activation_of_subnormals_keeps_them(entry):
    """No flush to zero: g(a) ~ g(0) + g'(0) a holds to half a unit down to the smallest number."""
    a = np.array([1e-45, -1e-45, 1e-42, -1e-42, 1e-39, -1e-39], np.float32)
    oracle = references.activation_oracle(entry.name, a, entry.parameter)[0]
    assert ulps(value_and_slope(entry, a)[0], oracle, np.float32, "elements") <= 0.51


def test_activation_in_place_equals_out_of_place(entry):
    rng = np.random.default_rng(3)
    for dtype in (np.float32, np.float64):
        a, grad = (rng.normal(0, 3, (700, 33)).astype(dtype) for _ in range(2))
        h = activation_forward(a, entry)
        in_place = a.copy()
        assert activation_forward(in_place, entry, out=in_place) is in_place
        np.testing.assert_array_equal(in_place, h)
        saved = a if entry.saved == "a" else h
        delta = activation_backward(grad, saved, entry)
        for target in (grad.copy(), None):
            given = grad if target is None else target
            result = activation_backward(given, saved, entry, out=target)
            np.testing.assert_array_equal(result, delta)
        over_saved = saved.copy()
        activation_backward(grad, over_saved, entry, out=over_saved)
        np.testing.assert_array_equal(over_saved, delta)


def test_activation_backward_multiplies_the_incoming_gradient(entry):
    rng = np.random.default_rng(4)
    a, grad = rng.normal(0, 2, (5, 7)), rng.normal(0, 2, (5, 7))
    saved = a if entry.saved == "a" else activation_forward(a, entry)
    slope = references.activation(entry.name, a, entry.parameter)[1]
    assert_equal_in_float64(activation_backward(grad, saved, entry), grad * slope, 1e-15)


def test_activation_backward_refuses_an_out_that_overlaps_saved_shifted():
    memory = np.random.default_rng(5).normal(size=(9, 4))
    with pytest.raises(OptionError, match="out overlaps saved"):
        activation_backward(np.ones((8, 4)), memory[:-1], "tanh", out=memory[1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_gelu_keeps_relative_accuracy_in_the_left_tail(dtype):
    """Against mpmath. 1 + erf cancels there: PyTorch's float32 has no right digit at -6. Here the
    error is that of exp and of rounding its argument, about a^2 / 2."""
    mpmath.mp.dps = 40
    a = np.arange(-13.0 if dtype == np.float32 else -37.0, 0.0, 0.037).astype(dtype)
    exact = np.array([float(mpmath.mpf(float(x)) * mpmath.ncdf(float(x))) for x in a])
    relative = np.abs(activation_forward(a[None], "gelu")[0] / exact - 1) / np.finfo(dtype).eps
    assert (relative <= 4 + a.astype(np.float64) ** 2 / 2).all(), relative.max()
    if dtype == np.float32:
        torchs = references.activation("gelu", a, 0.0)[0]
        assert np.abs(torchs / exact - 1)[a < -6].min() > 0.01


def test_gelu_slope_matches_mpmath_to_the_last_digits_in_float64():
    mpmath.mp.dps = 40
    a = np.linspace(-8, 8, 81)
    exact = [float(mpmath.ncdf(x) + x * mpmath.npdf(x)) for x in map(mpmath.mpf, a)]
    np.testing.assert_allclose(value_and_slope(activation("gelu"), a)[1], exact, rtol=0, atol=3e-16)


HAND_WORKED = [  # g(a), g'(a) at a = -1 and a = 2, with a calculator
    ("identity", (-1.0, 1.0), (2.0, 1.0)),
    (
        "logistic",
        (0.2689414213699951, 0.19661193324148185),
        (0.8807970779778823, 0.10499358540350662),
    ),
    ("tanh", (-0.7615941559557649, 0.4199743416140261), (0.9640275800758169, 0.07065082485316443)),
    ("relu", (0.0, 0.0), (2.0, 1.0)),
    ("leaky_relu", (-0.01, 0.01), (2.0, 1.0)),
    ("leaky_relu(0.2)", (-0.2, 0.2), (2.0, 1.0)),
    ("elu", (-0.6321205588285577, 0.36787944117144233), (2.0, 1.0)),
    ("elu(0.5)", (-0.31606027941427883, 0.18393972058572117), (2.0, 1.0)),
    (
        "gelu",
        (-0.15865525393145707, -0.08331547058768628),
        (1.9544997361036416, 1.0852318010781969),
    ),
    ("silu", (-0.2689414213699951, 0.07232948812851325), (1.7615941559557649, 1.0907842487848955)),
    (
        "softplus",
        (0.31326168751822286, 0.2689414213699951),
        (2.1269280110429727, 0.8807970779778823),
    ),
]


@pytest.mark.parametrize(("spec", "at_minus_one", "at_two"), HAND_WORKED, ids=lambda x: str(x)[:16])
def test_activation_has_the_hand_worked_values(spec, at_minus_one, at_two):
    h, slope = value_and_slope(activation(spec), np.array([-1.0, 2.0]))
    np.testing.assert_allclose(h, [at_minus_one[0], at_two[0]], rtol=1e-14)
    np.testing.assert_allclose(slope, [at_minus_one[1], at_two[1]], rtol=1e-13)


def test_relu_slope_at_zero_is_zero_as_in_pytorch():
    assert value_and_slope(activation("relu"), np.zeros(3))[1].tolist() == [0.0, 0.0, 0.0]
    assert references.activation("relu", np.zeros(3), 0.0)[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.ways("numpy", reason="computes nothing on an array")
def test_activation_names_are_found_with_and_without_a_parameter():
    assert activation("leaky_relu(0.2)").parameter == 0.2
    assert str(activation("elu(0.5)")) == "elu(0.5)"
    assert str(activation("leaky_relu")) == "leaky_relu"
    assert activation(ACTIVATIONS["tanh"]) is ACTIVATIONS["tanh"]
    for entry in map(activation, SPECS):
        assert activation(str(entry)) == entry


@pytest.mark.ways("numpy", reason="computes nothing on an array")
@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("rleu", "activation is 'rleu' but must be one of elu, gelu, .*did you mean 'relu'"),
        ("ReLU", "activation is 'ReLU' but .*did you mean 'relu'"),
        ("sigmoid", "did you mean 'logistic'"),
        ("LeakyReLU", "did you mean 'leaky_relu'"),
        ("Leaky-ReLU", "did you mean 'leaky_relu'"),
        ("Swish", "did you mean 'silu'"),
        ("linear", "did you mean 'identity'"),
        (7, "activation is 7 but must be one of"),
        ("relu(0.2)", "relu has no parameter; write 'relu'"),
        ("leaky_relu(-0.1)", "negative_slope must be a finite number of at least 0"),
        ("leaky_relu(nan)", "negative_slope must be a finite number"),
        ("elu(inf)", "alpha must be a finite number"),
        ("elu(x)", "alpha must be a finite number"),
        ("swish(1)", "activation is 'swish' but must be one of"),
    ],
)
def test_an_unknown_activation_names_what_there_is(spec, text):
    with pytest.raises(OptionError, match=text):
        activation(spec)


def test_activation_of_wrong_shapes_and_dtypes_says_what_is_wanted():
    with pytest.raises(ShapeError, match=r"a has shape \(3,\) .* pass x\[None, :\]"):
        activation_forward(np.zeros(3), "relu")
    with pytest.raises(DtypeError, match="a has dtype int64"):
        activation_forward(np.zeros((2, 3), int), "relu")
    with pytest.raises(ShapeError, match=r"grad_h has shape \(2, 3\)"):
        activation_backward(np.zeros((2, 3)), np.zeros((3, 2)), "relu")
    with pytest.raises(DtypeError, match="one dtype but got grad_h float32, saved float64"):
        activation_backward(np.zeros((2, 3), np.float32), np.zeros((2, 3)), "relu")


@pytest.mark.ways("numpy", reason="plans and threads of the NumPy backend")
def test_activation_planned_and_run_at_once_agree_bitwise(entry):
    """Blocks, threads and the recorded plan leave no trace."""
    a = np.random.default_rng(6).normal(0, 3, (301, 257)).astype(np.float32)
    planned = np.empty_like(a)
    run = NumpyBackend().plan(lambda verbs: verbs.activation_forward(a, entry, planned))
    run()
    np.testing.assert_array_equal(planned, activation_forward(a, entry))
    one_by_one = np.vstack([activation_forward(row[None], entry) for row in a])
    assert ulps(planned, one_by_one, np.float32, "elements") <= 1 or math.isinf(a.max())
