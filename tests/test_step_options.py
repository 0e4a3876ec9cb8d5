"""What a step does beside the formulas: recorded rows, weights and penalty of each batch, new data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gpubackprop.losses import loss
from gpubackprop.optimizers import GradientDescent
from gpubackprop.training.batch_step import GradientStep, StepOptions
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep
from tests.small_training import some_data
from tests.ways import MLP, host

pytestmark = pytest.mark.usefixtures("way")

LR = 0.3
WIDTHS = [4, 6, 3]


def checked(network: Any, x: np.ndarray, labels: np.ndarray) -> Batches:
    return Batches.check(network, network.check_loss(loss("softmax_cross_entropy")), x, labels)


def step_of_pytorch(
    parameters: list[np.ndarray], x: Any, labels: Any, weights: Any, l2: float
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Row losses times their weights, logits, and the parameters after the step."""
    W1, W2, b1, b2 = (torch.tensor(p, requires_grad=True) for p in parameters)
    logits = torch.tanh(torch.tensor(x) @ W1.T + b1) @ W2.T + b2
    rows = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
    rows = rows * torch.tensor(weights)
    (rows.sum() + l2 / 2 * ((W1**2).sum() + (W2**2).sum())).backward()
    after = [(p - LR * p.grad).detach().numpy() for p in (W1, W2, b1, b2)]
    return rows.detach().numpy(), logits.detach().numpy(), after


@pytest.mark.parametrize("record", ["row_loss", "logits"])
@pytest.mark.parametrize("weighted", [False, True])
def test_recorded_rows_weights_and_penalty_of_a_batch_are_pytorchs_for_new_data_too(
    record: str, weighted: bool
) -> None:
    x, labels = some_data(60)
    network = MLP(WIDTHS, "tanh", dtype="float64", seed=1)
    backend, rng = network.backend, np.random.default_rng(2)
    step = TrainStep(
        network, loss("softmax_cross_entropy", reduction="none"),
        checked(network, x[:40], labels[:40]), 16, GradientDescent(LR), Regularization(l2=1.0),
        StepOptions(record=record, weighted=weighted),
    )  # fmt: skip
    for start, l2 in ((0, 0.5), (20, 0.1)):
        if start:
            step.load(checked(network, x[20:], labels[20:]))
        for count in (16, 5, 16):
            rows = rng.permutation(40)[:count]
            weights = rng.random(count) if weighted else np.full(count, 1 / count)
            before = [host(array).copy() for array in (*network.W, *network.b)]
            squares = sum(float((W**2).sum()) for W in before[:2])
            placed = backend.asarray(weights) if weighted else None
            batch = step.update(step.place(rows), LR, placed, l2)
            losses, logits, after = step_of_pytorch(
                before, x[start + rows], labels[start + rows], weights, l2
            )
            wanted = logits if record == "logits" else losses[:, None]
            if record == "row_loss" and not weighted:
                wanted = wanted * count  # the mean is learned, the loss of each row is recorded
            np.testing.assert_allclose(host(batch.record), wanted, rtol=1e-11, atol=1e-13)
            assert float(host(step.squares).reshape(-1)[0]) == pytest.approx(squares, rel=1e-12)
            for mine, theirs in zip(host([*network.W, *network.b]), after, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-13)


def test_a_step_of_all_rows_in_place_has_the_gradient_of_their_mean() -> None:
    x, labels = some_data(30)
    network = MLP(WIDTHS, "tanh", dtype="float64", seed=1)
    options = StepOptions(record="row_loss", whole=True)
    data = checked(network, x, labels)
    step = GradientStep(network, loss("softmax_cross_entropy", reduction="none"), data, 30, options)
    for scale in (1.0, 0.5):
        network.parameters = host(network.parameters) * scale
        batch, wanted = step.run(), network.gradients(x, labels)
        for mine, theirs in zip([*step.grad_W, *step.grad_b], [*wanted.W, *wanted.b], strict=True):
            np.testing.assert_allclose(host(mine), host(theirs), rtol=1e-12, atol=1e-15)
        mean = float(host(batch.record).mean())
        assert mean == pytest.approx(float(host(wanted.loss)), rel=1e-12)


def test_the_plans_of_the_sizes_used_last_are_kept() -> None:
    x, labels = some_data(40)
    network = MLP(WIDTHS, "tanh", dtype="float64")
    data = checked(network, x, labels)
    optimizer, options = GradientDescent(LR), StepOptions(record="row_loss")
    row_loss = loss("softmax_cross_entropy", reduction="none")
    step = TrainStep(network, row_loss, data, 40, optimizer, Regularization(), options)
    for count in (*range(1, 20), 4):
        step.update(step.place(np.arange(count)), LR)
    assert list(step._plans) == [*range(5, 20), 4]
