"""Whole epochs of small networks on a GPU: in one launch, which other fits may share."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np

from gpubackprop.training.resident import (
    VARIABLE,
    ResidentJob,
    obstacle,
    plan_of,
    train_together,
)
from gpubackprop.training.rounds import SHARED, Launch
from gpubackprop.training.step import TrainStep

Array = Any  # an array of the network's device


def is_resident(step: TrainStep) -> bool:
    """Return whether an epoch of this step, whose network is on a GPU, is one launch.

    ``GPUBACKPROP_RESIDENT=0`` in the environment makes it False.
    """
    return not _reason_against(step)


def way_of_epochs(step: TrainStep) -> str:
    """Say what the plan of whole epochs of this step is, whose network is on a GPU, or why none is.

    It is a sentence without a full stop.
    """
    return _reason_against(step) or str(plan_of(step))


def _reason_against(step: TrainStep) -> str:
    if os.environ.get(VARIABLE) == "0":
        return f"no resident training: {VARIABLE}=0"
    return obstacle(step)


def train_epoch(
    step: TrainStep,
    order: Array,
    rates: np.ndarray,
    start: int = 0,
    l2: np.ndarray | None = None,
    weights: Array | None = None,
    eps: float = 0.0,
) -> None:
    """Train the batches of an epoch, together with the other fits that train now.

    Parameters
    ----------
    step : TrainStep
        A step that is resident.
    order : (M,) int array
        Row numbers of the epoch.
    rates : (S,) float64 array
        Learning rate of each batch.
    start : int
        Number of the first batch to do.
    l2 : (S,) float64 array or None
        Penalty of each batch, or the regularization's.
    weights : (M,) array or None
        Weights of the rows in the order of `order`.
    eps : float
        The bound of probabilities in the reported losses, see `ResidentJob`; 0 is none.
    """
    job, rounds = ResidentJob(step, order, rates, start, l2, weights, eps), SHARED.rounds
    if rounds is None:
        train_together([job])
    else:
        rounds.train(job, _launch_on(step.network.backend.device))


@cache
def _launch_on(device: str) -> Launch:
    """Return the function that launches jobs of one device: those of others have a launch apart."""
    return lambda jobs: train_together(jobs)
