"""The evaluation step: loss and accuracy over all rows of a set."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, Total
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.passes import emit_loss
from gpubackprop.training.batch_step import BatchStep
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import StepBatch


class EvaluationStep(BatchStep):
    """Forward pass and loss of a batch. Losses are summed, so any batches give the same."""

    def __init__(self, network: MLP, loss: Loss, data: Batches, batch_size: int) -> None:
        super().__init__(network, loss, data, batch_size)
        self._summed = copy.copy(loss)
        self._summed.options = replace(loss.options, reduction="sum")
        self._weight = _total_weight(loss, data, network.widths[-1])

    def measure(self) -> dict[str, float]:
        """Return the loss (without penalty) over all rows, and accuracy or rmse if there is one."""
        self.reset_totals()
        self.parameters = self.network.working_parameters()  # always in the same memory
        order = self.place(self._own(self.data.order(None)))
        for start in range(0, len(order), self.batch_size):
            self.run(order[start : start + self.batch_size])
        totals = self._totals()
        if self._weight:
            return self.running.figures(totals, totals[Total.LOSS] / self._weight)
        nothing = 0.0 if self.loss.options.empty == "zero" else math.nan
        return self.running.figures(totals, nothing)

    def _own(self, order: np.ndarray) -> np.ndarray:
        """Return the rows of this order that are computed here."""
        return order

    def _totals(self) -> np.ndarray:
        return self.read_totals()

    def _emit(self, backend: Backend, batch: StepBatch) -> None:
        self.source.emit(backend, batch)
        emit_loss(backend, self._summed, batch, self.parameters)
        self.running.emit(backend, batch, summed=True)


def custom_metrics(network: MLP, metrics: Mapping[str, Any], data: Batches) -> dict[str, float]:
    """Compute the caller's metrics over all rows of `data`.

    Parameters
    ----------
    network : MLP
        The network that predicts.
    metrics : mapping
        From a name to ``function(yhat, targets)``.
    data : Batches
        The rows.

    Returns
    -------
    dict
        The figures by the metrics' names.
    """
    if not metrics:
        return {}
    order = data.order(None)
    return of_predictions(metrics, predictions(network, data, order), data.targets[order])


def predictions(network: MLP, data: Batches, order: np.ndarray) -> np.ndarray:
    """Return yhat (N, K) of these rows, on the host."""
    parts = [np.empty((0, network.widths[-1]), network.dtype)]
    for start in range(0, len(order), 4096):
        yhat = network.predict(data.batch(network, order[start : start + 4096]))
        parts.append(network.backend.to_host(yhat))
    return np.concatenate(parts[1:] or parts)


def of_predictions(
    metrics: Mapping[str, Any], yhat: np.ndarray, targets: np.ndarray
) -> dict[str, float]:
    """Return the metrics of these predictions, by their names."""
    return {name: float(metric(yhat, targets)) for name, metric in metrics.items()}


def _total_weight(loss: Loss, data: Batches, units: int) -> float:
    """Return the divisor of the sum of all rows' losses."""
    if loss.options.reduction == "sum":
        return float(len(data))  # no mean is wanted, but per row the figure compares with training
    total = data.row_weights(loss).sum(dtype=np.float64)
    return float(total * (units if loss.options.reduction == "elementwise_mean" else 1))
