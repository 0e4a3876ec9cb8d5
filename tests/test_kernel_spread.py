"""Batches whose rows are spread over the card, emulated: each step as the NumPy path does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import optimizers
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.training.step import TrainStep
from tests import emulator
from tests.resident_jobs import (
    LOSS_CASES,
    OPTIMIZERS,
    SHAPES,
    assert_same_training,
    by_batches,
    emulated,
    numbers,
    orders,
    rates,
    spread,
    step_of,
)

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with emulated():
        yield


def both(epochs: int = 2, share_rows: int = 4, **options: Any) -> TrainStep:
    """Train the same network on the CPU and with its rows spread; they must be alike."""
    cpu = step_of("cpu:numpy", **options)
    order, lr = orders(cpu, epochs), rates(cpu, epochs)
    by_batches(cpu, order, lr)
    with spread(share_rows):
        card = step_of("cuda", **options)
        assert card._batch.spread is not None
        by_batches(card, order, lr)
        assert_same_training(numbers(card), numbers(cpu))
    return card


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_with_every_activation_is_that_of_the_cpu(activation, dropout):
    both(activation=activation, dropout=dropout)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LOSS_CASES)
def test_a_step_with_every_loss_is_that_of_the_cpu(case, weighted):
    weights = np.random.default_rng(0).random(40) + 0.1 if weighted else None
    both(loss=LOSS_CASES[case], weights=weights, optimizer=optimizers.SGD(0.01, momentum=0.9))


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_step_with_optimizers_and_regularization_is_that_of_the_cpu(case):
    optimizer, options = OPTIMIZERS[case]
    both(optimizer=optimizer, epochs=3, **options)


@pytest.mark.parametrize("share_rows", [1, 8, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_any_shape_is_that_of_the_cpu(shape, share_rows):
    optimizer = optimizers.SGD(0.05, momentum=0.9)
    both(epochs=1, share_rows=share_rows, optimizer=optimizer, **SHAPES[shape])
