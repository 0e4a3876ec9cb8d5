"""MLP.gradients: the lecture's gradients against autograd, hand-worked numbers, counts."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import NumpyBackend
from gpubackprop.formulas import ACTIVATIONS, activation
from gpubackprop.losses import (
    LOSSES,
    BinaryCrossEntropy,
    Poisson,
    SoftmaxCrossEntropy,
    SquaredError,
)
from tests import references
from tests.tolerances import Draws, assert_equal_in_float64
from tests.ways import MLP, host, put

pytestmark = pytest.mark.usefixtures("way")

OUTPUTS = ("softmax", "linear", "logistic", "exp")


def targets_for(output, rows, units, rng):
    return {
        "softmax": lambda: rng.integers(0, units, rows),
        "linear": lambda: rng.normal(size=(rows, units)),
        "logistic": lambda: rng.integers(0, 2, (rows, units)),
        "exp": lambda: rng.poisson(2, (rows, units)),
    }[output]()


def problem(widths, act="tanh", output="softmax", rows=19, dtype="float64", seed=0):
    """A network with biases that are not 0, inputs and targets."""
    rng = np.random.default_rng(seed)
    network = MLP(widths, act, output=output, seed=seed, initializer="torch", dtype=dtype)
    x = rng.normal(size=(rows, widths[0])).astype(dtype)
    return network, x, targets_for(output, rows, widths[-1], rng)


def assert_gradients_match(network, x, targets, relative, weight=None):
    got = host(network.gradients(x, targets, sample_weight=weight))
    wanted = references.network_gradients(network, x, targets, weight=weight)
    assert_equal_in_float64(got.loss, wanted["loss"], relative)
    assert_equal_in_float64(got.output, wanted["output"], relative)
    assert_equal_in_float64(got.yhat, wanted["yhat"], relative)
    np.testing.assert_array_equal(got.x, x)
    for name in ("hidden", "pre_activation", "W", "b", "a", "h"):
        ours, theirs = getattr(got, name), wanted[name]
        assert len(ours) == len(theirs)
        for layer, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert mine.shape == other.shape, (name, layer)
            assert_equal_in_float64(mine, other, relative)
    return got


def test_forward_has_the_values_of_every_layer_that_gradients_has():
    network, x, targets = problem((7, 11, 5, 4), ["relu", "gelu"])
    values, gradients = host(network.forward(x)), host(network.gradients(x, targets))
    for name in ("x", "a", "h", "yhat"):
        for one, other in zip(getattr(values, name), getattr(gradients, name), strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(values.yhat, host(network.predict(x)))
    assert repr(values).startswith("Forward pass of 19 rows through 3 layers")


@pytest.mark.parametrize("name", [*ACTIVATIONS, "leaky_relu(0.2)", "elu(0.5)"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_all_gradients_match_pytorch_for_every_activation_and_output(name, output):
    network, x, targets = problem((7, 11, 5, 4), name, output)
    assert_gradients_match(network, x, targets, 1e-13)


@pytest.mark.parametrize(
    ("widths", "rows"),
    [((3, 2), 5), ((400, 1), 9), ((1, 400, 2), 9), ((5, 400, 1, 3), 7), ((5, 4, 3), 1),
     ((5, 4, 3), 7), ((1, 1, 1), 4), ((20, *[13] * 8, 6), 11), ((784, 100, 10), 64),
     ((6, 5, 1), 3)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("output", OUTPUTS)
def test_all_gradients_match_pytorch_for_every_shape(widths, rows, output):
    network, x, targets = problem(widths, "gelu", output, rows)
    assert_gradients_match(network, x, targets, 1e-12)


def test_all_gradients_match_pytorch_with_another_activation_in_each_layer_and_sample_weights():
    network, x, targets = problem((6, 9, 8, 7, 5, 4), ["relu", "silu", "logistic", "elu(0.5)"])
    weight = np.random.default_rng(1).uniform(0, 2, len(x))
    assert_gradients_match(network, x, targets, 1e-13, weight)
    probabilities = np.random.default_rng(2).dirichlet(np.ones(4), len(x))
    assert_gradients_match(network, x, probabilities, 1e-13)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_gradients_keep_the_tolerance_in_float32(name, output):
    """Through a network the mean of six draws scatters by a tenth, and NumPy's exp and tanh and the
    BLAS add a tenth (the known shortfalls of test_activations and test_layers): hence 1.25."""
    draws = {}
    for seed in range(6):
        network, x, targets = problem((30, 40, 20, 5), name, output, 64, "float32", seed)
        got = host(network.gradients(x, targets))
        oracle = references.network_gradients(network, x, targets)
        torchs = references.network_gradients(network, x, targets, dtype="float32")
        draws.setdefault("loss", Draws()).add(got.loss, torchs["loss"], oracle["loss"])
        draws.setdefault("output", Draws()).add(got.output, torchs["output"], oracle["output"])
        for key in ("hidden", "pre_activation", "W", "b"):
            for layer, *results in zip(
                range(3), getattr(got, key), torchs[key], oracle[key], strict=False
            ):
                draws.setdefault((key, layer), Draws()).add(*results)
    worse = {}
    for key, draw in draws.items():
        ours, theirs = np.mean(draw.ours), np.mean(draw.theirs)
        if ours > max(1.0, 1.25 * theirs):
            worse[key] = (round(ours, 2), round(theirs, 2))
    assert not worse, worse


def test_the_hand_worked_network_of_two_two_two_units():
    """x = (1, 2); W_1 = (1 0; -1 1), b_1 = (0, -2): a_1 = (1, -1), relu: h_1 = (1, 0).
    W_2 = (1 2; 3 4), b_2 = (log 3 - 1, -3): a_2 = (log 3, 0), softmax (3/4, 1/4), label 1."""
    network = MLP([2, 2, 2], "relu", initializer="zeros", dtype="float64")
    put(network.W[0], [[1, 0], [-1, 1]])
    put(network.b[0], [0, -2])
    put(network.W[1], [[1, 2], [3, 4]])
    put(network.b[1], [np.log(3) - 1, -3])
    x = np.array([[1.0, 2.0]])
    np.testing.assert_allclose(host(network.logits(x)), [[np.log(3), 0]], rtol=1e-15)
    np.testing.assert_allclose(host(network.predict(x)), [[0.75, 0.25]], rtol=1e-15)
    got = host(network.gradients(x, np.array([1])))
    near = {"rtol": 1e-15, "atol": 1e-15}
    np.testing.assert_allclose(got.loss, np.log(4), **near)
    np.testing.assert_allclose(got.output, [[0.75, -0.75]], **near)
    np.testing.assert_allclose(got.W[1], [[0.75, 0], [-0.75, 0]], **near)
    np.testing.assert_allclose(got.b[1], [0.75, -0.75], **near)
    # W_2^T delta_2 = (1 * 0.75 - 3 * 0.75, 2 * 0.75 - 4 * 0.75)
    np.testing.assert_allclose(got.hidden[0], [[-1.5, -1.5]], **near)
    np.testing.assert_allclose(got.pre_activation[0], [[-1.5, 0]], **near)
    np.testing.assert_allclose(got.W[0], [[-1.5, -3], [0, 0]], **near)
    np.testing.assert_allclose(got.b[0], [-1.5, 0], **near)


@pytest.mark.parametrize("name", ["tanh", "logistic", "gelu", "softplus"])
def test_the_deep_and_thin_network_equals_the_product_of_scalar_derivatives(name):
    """30 layers of one unit: dL/dw_l = h_{l-1} (a_L - t) prod_{m > l} w_m g'(a_{m-1}). The chain is
    worked in Python floats; g and g' are PyTorch's."""
    layers = 30
    network = MLP([1] * (layers + 1), name, output="linear", initializer="zeros", dtype="float64")
    rng = np.random.default_rng(0)
    w, b = rng.uniform(0.4, 0.9, layers), rng.uniform(-0.3, 0.3, layers)
    for layer in range(layers):
        put(network.W[layer], w[layer])
        put(network.b[layer], b[layer])
    x, t = 0.7, -0.4
    h, slopes = [x], []
    for layer in range(layers):
        a = w[layer] * h[-1] + b[layer]
        value, slope = references.activation_oracle(name, np.array([a]), 0.0)
        h.append(float(value[0]))
        slopes.append(float(slope[0]))
    delta = a - t
    got = host(network.gradients(np.array([[x]]), np.array([[t]])))
    assert abs(got.loss - 0.5 * delta**2) <= 1e-13 * got.loss
    for layer in reversed(range(layers)):
        for ours, chain in ((got.W[layer], delta * h[layer]), (got.b[layer], delta)):
            np.testing.assert_allclose(ours.item(), chain, rtol=1e-12, atol=0)
        np.testing.assert_allclose(got.pre_activation[layer].item(), delta, rtol=1e-12, atol=0)
        if layer:
            np.testing.assert_allclose(
                got.hidden[layer - 1].item(), delta * w[layer], rtol=1e-12, atol=0
            )
            delta *= w[layer] * slopes[layer - 1]
    assert abs(delta) < 1e-2, "the gradient vanishes on its way down; relative accuracy is kept"


@pytest.mark.ways("numpy", reason="counts the products of NumPy; test_cupy_training the others")
@pytest.mark.parametrize("layers", [1, 2, 3, 7])
def test_each_matrix_product_is_computed_once_3l_minus_1_in_all(layers, monkeypatch):
    calls, products = [], []
    verb, matmul = NumpyBackend.matmul, np.matmul
    monkeypatch.setattr(NumpyBackend, "matmul", lambda *a, **k: (calls.append(1), verb(*a, **k))[1])
    monkeypatch.setattr(
        np, "matmul", lambda *a, **k: (products.append(a[0].shape), matmul(*a, **k))[1]
    )
    network, x, targets = problem((6, *[5] * (layers - 1), 4))
    host(network.gradients(x, targets))
    assert len(calls) == len(products) == 3 * layers - 1


@pytest.mark.ways("numpy", reason="writes single parameters; test_gradient_check runs all ways")
def test_gradients_are_central_differences_of_the_loss():
    network, x, targets = problem((3, 4, 3), "gelu_tanh", rows=5)
    got = host(network.gradients(x, targets))
    for parameters, gradients in ((network.W, got.W), (network.b, got.b)):
        for p, g in zip(parameters, gradients, strict=True):
            for place in np.ndindex(*p.shape):
                kept = p[place]
                p[place] = kept + 1e-5
                above = host(network.gradients(x, targets)).loss
                p[place] = kept - 1e-5
                below = host(network.gradients(x, targets)).loss
                p[place] = kept
                assert abs((above - below) / 2e-5 - g[place]) < 1e-10


@pytest.mark.ways("numpy", reason="memory of the host")
def test_gradients_own_their_memory_and_leave_inputs_and_parameters_alone():
    network, x, targets = problem((5, 6, 7, 4), ["identity", "relu"])
    before = x.copy(), host(network.parameters).copy()
    first = host(network.gradients(x, targets))
    arrays = [first.output, *first.hidden, *first.pre_activation[:-1], *first.W, *first.b]
    kept = [array.copy() for array in arrays]
    host(network.gradients(2 * x, targets))
    for array, old in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, old)
    for i, array in enumerate(arrays):
        for other in arrays[i + 1 :]:
            assert not np.shares_memory(array, other)
        assert not np.shares_memory(array, x)
        assert not np.shares_memory(array, host(network.parameters))
    assert first.pre_activation[-1] is first.output
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(host(network.parameters), before[1])


def test_gradients_of_the_same_inputs_are_the_same_bit_for_bit():
    network, x, targets = problem((20, 30, 10), "gelu", rows=300, dtype="float32")
    first, second = (host(network.gradients(x, targets)) for _ in range(2))
    for one, other in zip(
        [first.loss, *first.W, *first.b], [second.loss, *second.W, *second.b], strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_rows_give_zero_gradients_for_the_sum_and_a_mean_of_nan(output):
    network, x, targets = problem((4, 3, 2), "relu", output, rows=0)
    kind = LOSSES[network.default_loss().name]
    got = host(network.gradients(x, targets, kind(reduction="sum")))
    assert got.loss == 0
    assert all((g == 0).all() for g in (*got.W, *got.b))
    assert got.hidden[0].shape == (0, 3)
    assert np.isnan(host(network.gradients(x, targets)).loss)
    assert host(network.predict(x)).shape == (0, 2)


def test_reductions_and_options_of_a_loss_reach_the_gradients():
    network, x, targets = problem((5, 4, 3))
    row = host(network.gradients(x, targets, SoftmaxCrossEntropy(reduction="none")))
    total = host(network.gradients(x, targets, SoftmaxCrossEntropy(reduction="sum")))
    mean = host(network.gradients(x, targets))
    assert row.loss.shape == (19,)
    np.testing.assert_allclose(row.loss.sum(), total.loss, rtol=1e-14)
    np.testing.assert_allclose(total.W[0], 19 * mean.W[0], rtol=1e-12, atol=1e-16)
    options = {"class_weight": [1, 2, 0.5], "label_smoothing": 0.1, "z_loss": 0.01}
    chosen = host(network.gradients(x, targets, SoftmaxCrossEntropy(**options)))
    options["class_weight"] = np.array(options["class_weight"])
    loss, delta = references.cross_entropy(host(network.logits(x)), targets, **options)
    np.testing.assert_allclose(chosen.loss, loss, rtol=1e-13)
    assert_equal_in_float64(chosen.output, delta, 1e-13)
    for kind, output in (
        (SquaredError, "linear"),
        (BinaryCrossEntropy, "logistic"),
        (Poisson, "exp"),
    ):
        network, x, targets = problem((5, 4, 3), output=output)
        mean = host(network.gradients(x, targets))
        elements = host(network.gradients(x, targets, kind(reduction="elementwise_mean")))
        np.testing.assert_allclose(3 * elements.loss, mean.loss, rtol=1e-14)
        np.testing.assert_allclose(3 * elements.W[0], mean.W[0], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("output", OUTPUTS)
def test_predict_applies_the_output_function_batch_by_batch(output):
    network, x, _ = problem((5, 8, 3), "tanh", output, rows=50)
    logits = references.tensor(references.network_gradients(network, x, targets_for(
        output, 50, 3, np.random.default_rng(0)))["logits"])  # fmt: skip
    wanted = {
        "softmax": lambda a: a.softmax(1), "linear": lambda a: a, "logistic": lambda a: a.sigmoid(),
        "exp": lambda a: a.exp(),
    }[output](logits).numpy()  # fmt: skip
    assert_equal_in_float64(host(network.logits(x)), logits.numpy(), 1e-14)
    for batch in (4096, 50, 7, 1):
        assert_equal_in_float64(host(network.predict(x, batch_rows=batch)), wanted, 1e-14)


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int64, np.float16, np.float32, np.float64, ">f8"]
)
def test_inputs_of_any_real_dtype_and_layout_are_converted(dtype):
    network = problem((6, 5, 3))[0]
    values = np.random.default_rng(3).integers(0, 2, (10, 6)).astype(dtype)
    wanted = host(network.gradients(values.astype(np.float64), np.zeros(10, int)))
    for x in (values, np.asfortranarray(values), np.repeat(values, 2, 0)[::2], values.tolist()):
        got = host(network.gradients(x, np.zeros(10, int)))
        for ours, exact in zip(got.W, wanted.W, strict=True):
            assert_equal_in_float64(ours, exact, 1e-14)
        assert_equal_in_float64(
            host(network.predict(x)), host(network.predict(values.astype(float))), 1e-14
        )


def test_activations_may_be_given_as_entries_with_their_parameters():
    by_name, x, targets = problem((4, 5, 3), "leaky_relu(0.3)")
    by_entry = problem((4, 5, 3), activation("leaky_relu(0.3)"))[0]
    np.testing.assert_array_equal(
        host(by_name.gradients(x, targets)).W[0], host(by_entry.gradients(x, targets)).W[0]
    )
