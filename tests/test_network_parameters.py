"""A network's parameters: layout, seeds, initialisers, and what its constructor refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPClassifier

from gpubackprop.errors import (
    DtypeError,
    GpubackpropError,
    OptionError,
    ShapeError,
    TargetRangeError,
)
from gpubackprop.formulas import ACTIVATIONS, activation
from gpubackprop.initializers import INITIALIZERS, gain_of
from gpubackprop.losses import LOSSES, SoftmaxCrossEntropy, SquaredError, loss
from gpubackprop.network import MLP
from gpubackprop.ops import activation_backward, activation_forward

NAMES = pytest.mark.parametrize("name", INITIALIZERS)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


# -- layout ---------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("widths", [(1, 1), (3, 5, 2), (784, 512, 10), (7, 1, 1, 33, 4)], ids=str)
def test_weights_and_biases_are_aligned_views_into_one_buffer_and_do_not_overlap(widths, dtype):
    network = MLP(widths, "relu", dtype=dtype, initializer="torch")
    flat = network.parameters
    assert flat.shape == (network.layout.size,)
    assert flat.ctypes.data % 128 == 0
    touched = np.zeros(flat.size, int)
    start, itemsize = flat.ctypes.data, flat.itemsize
    for layer, (W, b) in enumerate(zip(network.W, network.b, strict=True)):
        assert W.shape == (widths[layer + 1], widths[layer])
        assert b.shape == (widths[layer + 1],)
        for array in (W, b):
            assert array.dtype == np.dtype(dtype)
            assert array.flags.c_contiguous
            assert array.ctypes.data % 128 == 0
            first = (array.ctypes.data - start) // itemsize
            touched[first : first + array.size] += 1
    assert touched.max() == 1
    assert (
        touched.sum()
        == network.layout.count
        == sum(m * n + n for m, n in itertools.pairwise(widths))
    )
    assert not flat[touched == 0].any(), "the gaps hold zeros"
    weights_end = network.layout.weights_end
    assert all(W.ctypes.data < start + weights_end * itemsize for W in network.W)
    assert all(b.ctypes.data >= start + weights_end * itemsize for b in network.b)


def test_writing_into_a_view_changes_the_flat_buffer_and_the_prediction():
    network = MLP([2, 2], initializer="zeros", dtype="float64")
    network.W[0][...] = [[1.0, 2.0], [3.0, 4.0]]
    network.b[0][1] = 5.0
    assert network.parameters.sum() == 15.0
    np.testing.assert_array_equal(network.logits(np.ones((1, 2))), [[3.0, 12.0]])


def test_a_copy_has_its_own_parameters_and_config_builds_the_same_architecture():
    network = MLP([4, 8, 6, 3], ["leaky_relu(0.2)", "gelu"], output="logistic", seed=3)
    twin = network.copy()
    np.testing.assert_array_equal(twin.parameters, network.parameters)
    twin.W[0][...] = 0
    assert network.W[0].any()
    again = MLP(**network.config(), seed=3)
    assert again.config() == twin.config() == network.config()
    np.testing.assert_array_equal(again.parameters, network.parameters)
    assert repr(again) == repr(network)


# -- seeds ----------------------------------------------------------------------------------------


@NAMES
def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(name):
    widths = [20, 30, 10]
    first, second = (MLP(widths, initializer=name, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.parameters, second.parameters)
    generator = MLP(widths, initializer=name, seed=np.random.default_rng(7))
    np.testing.assert_array_equal(first.parameters, generator.parameters)
    if name != "zeros":
        assert (first.parameters != MLP(widths, initializer=name, seed=8).parameters).any()
        assert (MLP(widths, initializer=name, seed=None).parameters != first.parameters).any()


def test_float32_parameters_are_the_float64_ones_rounded():
    wide, narrow = (MLP([20, 30, 10], seed=5, dtype=dtype) for dtype in ("float64", "float32"))
    for one, other in zip(wide.W, narrow.W, strict=True):
        np.testing.assert_array_equal(one.astype(np.float32), other)


# -- initialisers ---------------------------------------------------------------------------------


def deviation(name, fan_in, fan_out, activation="relu"):
    """Standard deviation of the weights: Glorot & Bengio 2010, He et al. 2015, torch.nn.Linear."""
    gain = {"relu": 2.0, "tanh": 1.0, "leaky_relu(0.5)": 2 / 1.25}[activation]
    return math.sqrt(
        {"glorot": 2 / (fan_in + fan_out), "he": gain / fan_in, "torch": 1 / (3 * fan_in),
         "sklearn": 2 / (fan_in + fan_out), "zeros": 0.0}[name.split("_")[0]]
    )  # fmt: skip


@NAMES
@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu(0.5)"])
def test_initial_weights_have_the_published_deviation_and_shape(name, activation):
    network = MLP([400, 300, 200], activation, initializer=name, seed=1, dtype="float64")
    W, b = network.W[0], network.b[0]
    sigma = deviation(name, 400, 300, activation)
    if not sigma:
        assert not network.parameters.any()
        return
    # 120,000 draws: the mean is known to 1/350 of sigma, sigma to 1/500 of itself; five times that
    assert abs(W.mean()) < 5 * sigma / 346
    assert abs(W.std() / sigma - 1) < 5 / 490
    normal = name.endswith("normal")
    bound = math.sqrt(3) * sigma
    assert abs(W).max() > 3.5 * sigma if normal else 0.999 * bound < abs(W).max() <= bound
    fourth = np.mean(W**4) / sigma**4
    assert abs(fourth - (3.0 if normal else 1.8)) < 0.1
    if name in ("torch", "sklearn"):
        limit = 1 / math.sqrt(400) if name == "torch" else bound
        assert 0.9 * limit < abs(b).max() <= limit
    else:
        assert not b.any()


@pytest.mark.parametrize("spec", [*ACTIVATIONS, "leaky_relu(0.3)", "elu(0.5)"])
def test_the_gain_is_that_of_a_rectifier_where_the_slopes_far_out_are_those_of_one(spec):
    """He et al. 2015: a unit of slope 1 far above 0 and k far below it keeps (1 + k^2) / 2 of the
    variance. Bounded units, and one that normalises itself, have 1."""
    act, a = activation(spec), np.array([[-700.0, 700.0]])
    saved = a if act.saved == "a" else activation_forward(a, act)
    below, above = activation_backward(np.ones((1, 2)), saved, act)[0]
    wanted = math.sqrt(2 / (1 + below**2)) if above == 1 else 1.0
    assert gain_of(act, "he_normal") == gain_of(act, "he_uniform") == pytest.approx(wanted)
    assert gain_of(act, "glorot_normal") == 1.0


def test_the_output_layer_has_the_gain_of_a_linear_unit():
    network = MLP([300, 400, 200], "relu", initializer="he_normal", dtype="float64")
    assert abs(network.W[1].std() * math.sqrt(400) - 1) < 0.02
    assert abs(network.W[0].std() * math.sqrt(300 / 2) - 1) < 0.02


def test_torch_initialiser_has_the_bounds_of_torch_nn_linear():
    torch.manual_seed(0)
    linear = torch.nn.Linear(400, 3000)
    network = MLP([400, 3000], initializer="torch")
    for ours, theirs in ((network.W[0], linear.weight), (network.b[0], linear.bias)):
        theirs = theirs.detach().numpy()
        assert abs(abs(ours).max() / abs(theirs).max() - 1) < 2e-3
        assert abs(ours.std() / theirs.std() - 1) < 0.03


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic"])
def test_sklearn_initialiser_has_the_bounds_of_mlpclassifier_in_every_layer(activation):
    """Not the same numbers: scikit-learn draws from a RandomState, this from a Generator."""
    model = MLPClassifier((200, 300), activation=activation, max_iter=1, random_state=0)
    model._random_state = np.random.RandomState(0)
    model.out_activation_ = "softmax"
    fans = [(150, 200), (200, 300), (300, 100)]
    network = MLP([150, 200, 300, 100], activation, initializer="sklearn", dtype="float64")
    for layer, (fan_in, fan_out) in enumerate(fans):
        coefficients, intercepts = model._init_coef(fan_in, fan_out, np.float64)
        for ours, theirs in ((network.W[layer], coefficients), (network.b[layer], intercepts)):
            assert abs(abs(ours).max() / abs(theirs).max() - 1) < 0.05
            assert abs(ours.std() / theirs.std() - 1) < 0.15


def test_sklearn_initialiser_draws_scikit_learns_very_numbers_from_its_generator():
    """RandomState and Generator share the method `uniform`: handed scikit-learn's RandomState, the
    initialiser reproduces MLPClassifier's initial weights bit for bit."""
    model = MLPClassifier((8,), activation="relu")
    model._random_state = np.random.RandomState(11)
    coefficients, intercepts = model._init_coef(5, 8, np.float64)
    W, b = np.empty((8, 5)), np.empty(8)
    INITIALIZERS["sklearn"](np.random.RandomState(11), W, b, 1.0)
    np.testing.assert_array_equal(W, coefficients.T)
    np.testing.assert_array_equal(b, intercepts)


def test_initialize_draws_anew():
    network = MLP([5, 4, 3], seed=1)
    network.initialize("he_uniform", 9)
    np.testing.assert_array_equal(
        network.parameters, MLP([5, 4, 3], initializer="he_uniform", seed=9).parameters
    )


# -- errors ---------------------------------------------------------------------------------------

REFUSED = [
    (([5],), {}, ShapeError, r"widths is \[5\] but must be at least two whole numbers"),
    (([],), {}, ShapeError, "widths is"),
    (([5, 0, 3],), {}, ShapeError, "of at least 1"),
    (([5, -2],), {}, ShapeError, "of at least 1"),
    (([5, 2.5],), {}, ShapeError, "whole numbers"),
    (([5, float("inf")],), {}, ShapeError, "whole numbers"),
    (([5, float("nan")],), {}, ShapeError, "whole numbers"),
    (("5x2",), {}, ShapeError, "widths is '5x2'"),
    ((7,), {}, ShapeError, "widths is 7"),
    (([5, 4, 3], ["relu", "tanh"]), {}, ShapeError, "activation has 2 entries .* 1 hidden layers"),
    (([5, 4, 4, 3], ["relu"]), {}, ShapeError, "activation has 1 entries .* 2 hidden layers"),
    (([5, 4, 3], "rleu"), {}, OptionError, "did you mean 'relu'"),
    (([5, 4, 3], None), {}, OptionError, "activation is None"),
    (([5, 4, 3], [3]), {}, OptionError, "activation is 3"),
    (
        ([5, 3],),
        {"output": "sigmoid"},
        OptionError,
        "output is 'sigmoid' but must be one of exp, linear",
    ),
    (([5, 3],), {"initializer": "he"}, OptionError, "initializer is 'he'.*he_normal"),
    (([5, 3],), {"dtype": "float16"}, DtypeError, "dtype is 'float16'"),
    (([5, 3],), {"dtype": "float99"}, DtypeError, "dtype is 'float99'"),
    (([5, 3],), {"seed": -1}, OptionError, "seed is -1"),
    (([5, 3],), {"seed": "x"}, OptionError, "seed is 'x'"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "text"), REFUSED)
def test_a_network_that_cannot_be_is_refused_with_what_to_do(arguments, options, error, text):
    with pytest.raises(error, match=text) as caught:
        MLP(*arguments, **options)
    assert isinstance(caught.value, GpubackpropError)


X, T = np.zeros((6, 5)), np.zeros(6, int)
CALLS = [
    ((X[:, :4], T), {}, ShapeError, r"x has shape \(6, 4\) but the network wants \(N, 5\)"),
    ((X[0], T), {}, ShapeError, r"for one sample pass x\[None, :\]"),
    ((X.astype(complex), T), {}, DtypeError, "x has dtype complex128 .* real numbers"),
    (([["a"] * 5], [0]), {}, DtypeError, "x has dtype <U1"),
    (([[1.0], [1.0, 2.0]], [0, 0]), {}, DtypeError, "x is not an array of numbers|x is no array"),
    ((X, T[:5]), {}, ShapeError, r"targets has shape \(5,\)"),
    ((X, T + 3), {}, TargetRangeError, r"targets\[0\] is 3 but labels must be in \[0, 3\)"),
    ((X, np.eye(3, dtype=int)[T]), {}, ShapeError, r"for one-hot rows pass targets.argmax\(1\)"),
    ((X, T), {"loss": "squared_error"}, OptionError, "belongs to output 'linear' but this network "
     "has output 'softmax'; build it with"),
    ((X, T), {"loss": "hinge"}, OptionError, "loss is 'hinge' but must be one of"),
    ((X, T), {"loss": SquaredError()}, OptionError, "belongs to output 'linear'"),
    ((X, T), {"loss": SoftmaxCrossEntropy(class_weight=[1, 2])}, OptionError,
     "class_weight has 2 entries but the network has 3 output units"),
    ((X, T), {"sample_weight": np.ones(5)}, ShapeError, r"sample_weight has shape \(5,\)"),
    ((X, T), {"sample_weight": -np.ones(6)}, OptionError, r"sample_weight\[0\] is -1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "text"), CALLS)
def test_gradients_of_what_does_not_fit_are_refused_with_what_to_do(
    arguments, options, error, text
):
    with pytest.raises(error, match=text) as caught:
        MLP([5, 4, 3]).gradients(*arguments, **options)
    assert isinstance(caught.value, GpubackpropError)


def test_losses_by_name_take_options_and_refuse_those_that_they_have_not():
    assert loss("softmax_cross_entropy", label_smoothing=0.1).options.label_smoothing == 0.1
    for name in LOSSES:
        assert loss(name).config()["name"] == name
        with pytest.raises(OptionError, match="sharpness"):
            loss(name, sharpness=2)
    with pytest.raises(OptionError, match="reduction is 'avg'"):
        SquaredError(reduction="avg")
    with pytest.raises(GpubackpropError):
        SoftmaxCrossEntropy(class_weight=3.0)
