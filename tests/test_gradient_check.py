"""The gradient check passes on right gradients and fails on wrong ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from gpubackprop import losses
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.gradient_check import TOLERANCE, all_labels, check_all, gradient_check
from tests.ways import MLP, host, put

pytestmark = pytest.mark.usefixtures("way")


def problem(widths=(4, 6, 3), rows=7):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, widths[0])), rng.integers(0, widths[-1], rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_gradients_agree_to_1e_7(dtype):
    x, y = problem()
    result = gradient_check(MLP([4, 6, 3], "tanh", dtype=dtype), x, y)
    assert result.passed
    assert result.worst < 1e-9
    # all of W, b, hidden units and pre-activations, in float64 whatever the network's dtype
    assert set(result.errors) == {
        "W[0]", "b[0]", "pre_activation[0]", "W[1]", "b[1]", "pre_activation[1]", "hidden[0]",
    }  # fmt: skip
    assert result.skipped == 0


@pytest.mark.ways("numpy", reason="the wrong slope is a Python function")
@pytest.mark.parametrize("factor", [1.00001, 0.9, -1.0])
def test_a_slope_that_is_off_by_a_factor_is_found(factor):
    tanh = ACTIVATIONS["tanh"]

    def wrong_slope(h, out, work, k):
        tanh.slope(h, out, work, k)
        np.multiply(out, factor, out)

    network = MLP([4, 6, 3], "tanh", dtype="float64")
    network.activations = (replace(tanh, slope=wrong_slope),)
    x, y = problem()
    healthy = MLP([4, 6, 3], "tanh", dtype="float64")
    assert gradient_check(healthy, x, y).passed
    result = gradient_check(network, x, y)
    assert not result.passed
    assert result.errors["W[0]"] > 0.5 * abs(factor - 1)
    assert result.errors["W[1]"] < TOLERANCE  # above the wrong slope all is right


def test_coordinates_on_a_kink_are_counted_and_left_out():
    network = MLP([2, 3, 2], "relu", dtype="float64", initializer="zeros")
    put(network.W[1], (1.0, 2.0, 3.0))
    x, y = np.zeros((2, 2)), np.array([0, 1])  # every hidden unit sits at a = 0
    result = gradient_check(network, x, y)
    assert result.skipped > 0
    assert result.checked > 0


def test_kinks_near_a_point_do_not_spoil_the_check():
    rng = np.random.default_rng(3)
    network = MLP([3, 40, 40, 2], "relu", dtype="float64", seed=1)
    x, y = rng.normal(size=(30, 3)), rng.integers(0, 2, 30)  # of 2400 units some are near 0
    assert gradient_check(network, x, y).passed


def test_the_network_is_left_as_it_was():
    network = MLP([4, 6, 3], "gelu")
    before = host(network.parameters).copy()
    gradient_check(network, *problem())
    np.testing.assert_array_equal(host(network.parameters), before)


def test_reduction_none_is_refused():
    with pytest.raises(OptionError, match='"mean" or "sum"'):
        gradient_check(MLP([4, 3]), *problem(), losses.SoftmaxCrossEntropy(reduction="none"))


@pytest.mark.slow
def test_every_activation_loss_and_option_and_the_deep_thin_network_pass_at_1e_7(way, sweep):
    taken = sweep.cases(all_labels(), keep=15)
    rows = list(check_all(seed=1, device=way.device, labels=taken))
    assert [label for label, _, _ in rows] == taken
    assert {label: error for label, error, passed in rows if not passed} == {}
    assert max(error for _, error, _ in rows) <= TOLERANCE


@pytest.mark.ways("numpy", reason="it is about names")
def test_all_that_is_checked_are_every_activation_and_loss_and_the_deep_thin_network():
    labels = all_labels()
    assert len(set(labels)) == len(labels)
    for name in ACTIVATIONS:
        assert f"activation {name}" in labels
        assert f"30 layers of one unit, {name}" in labels
    for name in losses.LOSSES:
        assert any(label.startswith(f"loss {name}") for label in labels)


@pytest.mark.ways("numpy", reason="it is about an import")
@pytest.mark.parametrize(
    "how",
    ["from gpubackprop import gradient_check",
     "import gpubackprop; gpubackprop.gradient_check; gradient_check = gpubackprop.gradient_check",
     "import gpubackprop.gradient_check; from gpubackprop import gradient_check",
     "import gpubackprop.gradient_check as gradient_check"],
)  # fmt: skip
def test_gradient_check_can_be_called_however_it_was_imported(how):
    program = (
        f"{how}\nfrom gpubackprop import MLP\nprint(gradient_check(MLP([2, 2]), [[0, 1]], [1]))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.startswith("GradientCheck(passed, worst"), found.stderr
