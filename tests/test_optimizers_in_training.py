"""Optimizers inside the planned step: alignment gaps, L2 on weights alone, clipping."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpubackprop.losses import loss
from gpubackprop.optimizers import OPTIMIZERS, GradientDescent, optimizer
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep
from tests import references
from tests.tolerances import assert_equal_in_float64
from tests.ways import MLP, host

pytestmark = pytest.mark.usefixtures("way")

WIDTHS = (7, 5, 3)


def make_step(chosen, dtype="float64", scale=1.0, **regularization):
    network = MLP(WIDTHS, "tanh", initializer="torch", dtype=dtype, seed=1)
    rng = np.random.default_rng(2)
    x, targets = scale * rng.normal(size=(30, WIDTHS[0])), rng.integers(0, WIDTHS[-1], 30)
    criterion = loss("softmax_cross_entropy")
    data = Batches.check(network, criterion, x, targets)
    return (
        TrainStep(network, criterion, data, 30, chosen, Regularization(**regularization)),
        x,
        targets,
    )


def gaps(network):
    """True where the flat buffer belongs to no weight and no bias."""
    marker = np.ones(network.layout.size, bool)
    for views in network.layout.views(marker):
        for view in views:
            view[...] = False
    return marker


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alignment_gaps_of_parameters_gradient_and_slots_stay_zero(name, dtype):
    options = {} if name == "gradient_descent" else {"weight_decay": 0.1}
    step = make_step(optimizer(name, **options), dtype, l2=0.1, clip_norm=0.5)[0]
    for _ in range(5):
        step.update(np.arange(30), 0.1)
    empty = gaps(step.network)
    assert empty.sum() > 20
    for flat in host([step.network.parameters, step.gradient]):
        assert (flat[empty] == 0).all()
    assert np.isfinite(host(step.network.parameters)).all()
    for slot in host(step.slots):
        assert np.isfinite(slot).all()


@pytest.mark.parametrize("clip_norm", [1e-3, 0.1, 1e3])
@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_clipping_takes_the_norm_of_the_whole_gradient_as_clip_grad_norm_does(clip_norm, l2):
    step, x, targets = make_step(GradientDescent(), l2=l2, clip_norm=clip_norm)
    before = references.network_gradients(step.network, x, targets)
    tensors = []
    for value, gradient in zip(
        host([*step.network.W, *step.network.b]), [*before["W"], *before["b"]], strict=True
    ):
        parameter = torch.nn.Parameter(references.tensor(value))
        penalty = l2 * value if value.ndim == 2 else 0.0  # biases have none
        parameter.grad = references.tensor(gradient + penalty)
        tensors.append(parameter)
    norm = torch.nn.utils.clip_grad_norm_(tensors, clip_norm).item()
    torch.optim.SGD(tensors, lr=0.3).step()
    assert (norm > clip_norm) == (clip_norm < 1)
    step.update(np.arange(30), 0.3)
    for ours, theirs in zip(host([*step.network.W, *step.network.b]), tensors, strict=True):
        assert_equal_in_float64(ours, theirs.detach().numpy(), 1e-13)


def test_clipping_a_gradient_of_zero_divides_by_nothing():
    """Squared error of a network of zeros on targets of zeros: every gradient is 0."""
    network = MLP(WIDTHS, "tanh", output="linear", initializer="zeros", dtype="float64")
    criterion = loss("squared_error")
    data = Batches.check(network, criterion, np.ones((4, 7)), np.zeros((4, 3)))
    step = TrainStep(network, criterion, data, 4, GradientDescent(), Regularization(clip_norm=0.1))
    for _ in range(3):
        step.update(np.arange(4), 0.1)
    np.testing.assert_array_equal(host(step.gradient), 0.0)
    np.testing.assert_array_equal(host(network.parameters), 0.0)


def test_l2_adds_its_penalty_to_the_weights_gradient_and_leaves_the_biases():
    plain = make_step(GradientDescent())[0]
    decayed = make_step(GradientDescent(), l2=0.25)[0]
    W = [array.copy() for array in host(plain.network.W)]
    for step in (plain, decayed):
        step.update(np.arange(30), 0.1)
    for one, other, before in zip(host(plain.network.W), host(decayed.network.W), W, strict=True):
        np.testing.assert_allclose(one - other, 0.1 * 0.25 * before, rtol=1e-9, atol=1e-16)
    for one, other in zip(host(plain.network.b), host(decayed.network.b), strict=True):
        np.testing.assert_array_equal(one, other)
    penalty = 0.25 / 2 * sum((before**2).sum() for before in W)
    difference = decayed.summary()["loss"] - plain.summary()["loss"]
    np.testing.assert_allclose(difference, penalty, rtol=1e-12)
