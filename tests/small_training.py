"""A small training that the tests of trainer and checkpoints share."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.optimizers import Adam
from gpubackprop.training import Trainer
from tests.ways import MLP

Array = np.ndarray


def some_data(rows: int = 120, noise: float = 0.5) -> tuple[Array, Array]:
    """Return three overlapping classes in four columns."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, rows)
    return rng.normal(size=(rows, 4)) * noise + np.eye(3, 4)[labels], labels


def make_trainer(seed: int = 0, **options: Any) -> Trainer:
    network = MLP([4, 8, 3], "tanh", seed=1, dtype="float64")
    return Trainer(network, seed=seed, **{"batch_size": 32, "optimizer": Adam(0.01), **options})
