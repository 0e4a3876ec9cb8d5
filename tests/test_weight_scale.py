"""Under a mean only the ratios of weights count: none is too large or too small for the type that the
network computes in. Targets are numbers of their own: those beyond the type are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)

from gpubackprop import MLP, Trainer, ops
from gpubackprop.errors import OptionError
from gpubackprop.losses import SoftmaxCrossEntropy

RNG = np.random.default_rng(0)
X, LABELS, WEIGHTS = RNG.normal(size=(30, 4)), np.arange(30) % 3, RNG.uniform(0.1, 2, 30)
LOGITS = RNG.normal(size=(30, 3)).astype(np.float32)
FACTORS = (2.0**-1000, 1e-60, 1e-20, 1.0, 1e20, 1e39, 1e300)
pytestmark = pytest.mark.filterwarnings("error")


def pytorch(
    weights: np.ndarray, class_weight: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Weighted mean of the cross entropy and its gradient, in float64 and with weights near 1."""
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    target, classes = torch.tensor(LABELS), torch.ones(3).double()
    if class_weight is not None:
        classes = torch.tensor(class_weight)
    shares = torch.tensor(weights)
    rows = F.cross_entropy(z, target, classes, reduction="none") * shares
    loss = rows.sum() / (shares * classes[target]).sum()
    loss.backward()
    assert z.grad is not None
    return float(loss.detach()), z.grad.numpy()


@pytest.mark.parametrize("factor", FACTORS)
def test_the_weighted_mean_of_a_loss_is_that_of_pytorch_at_any_size_of_the_weights(
    factor: float,
) -> None:
    classes = np.array([1.0, 3.0, 0.5])
    for options, wanted in (
        ({"sample_weight": WEIGHTS * factor}, pytorch(WEIGHTS)),
        ({"class_weight": classes * factor}, pytorch(np.ones(30), classes)),
        ({"sample_weight": WEIGHTS * factor, "class_weight": classes * factor},
         pytorch(WEIGHTS, classes)),
    ):  # fmt: skip
        loss, delta = ops.softmax_cross_entropy(LOGITS, LABELS, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(loss, wanted[0], rtol=2e-6)
        np.testing.assert_allclose(delta, wanted[1], atol=1e-7)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", ["softmax", "linear", "logistic", "exp"])
def test_training_is_the_same_at_any_size_of_the_weights(kind: str, factor: float) -> None:
    targets: Any = {
        "softmax": LABELS, "linear": X[:, :2], "logistic": X[:, :2] > 0, "exp": LABELS[:, None],
    }[kind]  # fmt: skip
    units = {"softmax": 3, "exp": 1}.get(kind, 2)
    nets = [MLP([4, 5, units], output=kind, seed=1) for _ in range(2)]
    found = []
    for network, weights in zip(nets, (WEIGHTS, WEIGHTS * factor), strict=True):
        trainer = Trainer(network, optimizer="sgd", batch_size=7)
        trainer.fit(X, targets, epochs=2, sample_weight=weights, validation=(X, targets, weights))
        found.append(trainer.evaluate(X, targets, weights)["loss"])
        found.append(network.gradients(X, targets, sample_weight=weights).loss)
        found.append(trainer.history["val_loss"][-1])
    np.testing.assert_allclose(nets[1].parameters, nets[0].parameters, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[3:], found[:3], rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-46, 1e39])
def test_a_network_is_trained_with_class_weights_of_any_size(factor: float) -> None:
    nets = [MLP([4, 3], seed=1) for _ in range(2)]
    for network, scale in zip(nets, (1.0, factor), strict=True):
        loss = SoftmaxCrossEntropy(class_weight=np.array([1.0, 2.0, 0.5]) * scale)
        Trainer(network, loss, optimizer="sgd").fit(X, LABELS, epochs=2)
    np.testing.assert_allclose(nets[1].parameters, nets[0].parameters, rtol=1e-5, atol=1e-7)


def test_targets_beyond_the_type_of_the_network_are_refused_by_place_and_fit_a_wider_one() -> None:
    targets = X[:, :1].copy()
    targets[4] = -1e39
    network = MLP([4, 1], output="linear")
    before = network.parameters.copy()
    for call in (Trainer(network).fit, network.gradients):
        with pytest.raises(
            OptionError, match=r"targets\[4, 0\] is -1e\+39, beyond float32;.*float64"
        ):
            call(X, targets)
    assert np.array_equal(network.parameters, before)
    Trainer(MLP([4, 1], output="linear", dtype="float64")).fit(X, targets, epochs=1)
