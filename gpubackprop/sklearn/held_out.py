"""Scores on held-out rows, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import r2_score

from gpubackprop.backends import Backend
from gpubackprop.network import MLP
from gpubackprop.passes import emit_forward, emit_loss
from gpubackprop.sklearn.host import source_of
from gpubackprop.sklearn.objective import Objective
from gpubackprop.training.batch_step import BatchStep, StepOptions
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import StepBatch

Array = np.ndarray


@dataclass
class Scores:
    """The figures of held-out rows.

    Attributes
    ----------
    score : float
        Accuracy or R^2 as scikit-learn computes it; NaN if predictions are not finite.
    loss : float
        The mean over the rows, without the L2 penalty.
    """

    score: float
    loss: float


class HeldOut(BatchStep):
    """Rows that are not learned from, and the step that evaluates them, all at once.

    Parameters
    ----------
    network : MLP
        The network.
    objective : Objective
        Its loss.
    x : (N, D_0) array
        Inputs, on the network's device and in its dtype.
    y : (N, K) array
        The estimator's targets before `Objective.targets`.
    weights : (N,) array or None
        Factor of each row.
    classes : int
        Number of classes; 0 for regression.
    dtype : dtype
        Dtype in which `predict` would return the predictions; the network's may be wider.
    """

    def __init__(
        self,
        network: MLP,
        objective: Objective,
        x: Any,
        y: Array,
        weights: Array | None,
        classes: int,
        dtype: np.dtype,
    ) -> None:
        self.dtype = dtype
        self.objective, self.y, self.weights, self.classes = objective, y, weights, classes
        # Other outputs are evaluated from their logits: y may be beyond the network's dtype.
        self._by_loss = objective.out_activation == "softmax"
        targets = y.argmax(1) if self._by_loss else np.zeros(len(y), np.int64)
        source = source_of(network, Batches(x, targets))
        options = StepOptions(record="row_loss", whole=True)
        super().__init__(network, objective.loss(), source, len(y), options)
        self._yhat = network.backend.empty((len(y), objective.units), network.dtype)

    def _emit(self, backend: Backend, batch: StepBatch) -> None:
        if self._by_loss:
            emit_loss(backend, self.loss, batch, self.parameters)
        else:
            emit_forward(backend, batch.x, self.parameters, batch.units)
        backend.output(batch.units.a[-1], self.objective.output, self._yhat)

    def evaluate(self) -> Scores:
        """Return the scores of the network's present parameters. This waits for the device."""
        batch, to_host = self.run(), self.network.backend.to_host
        if self._by_loss:
            values = self.objective.row_values(to_host(batch.record), self.y)
        else:
            values = self.objective.values_of_logits(to_host(batch.units.a[-1]), self.y)
        return Scores(self._score(to_host(self._yhat)), self._mean(values))

    def _mean(self, values: Array) -> float:
        return float(np.average(values, weights=self.weights))

    def _score(self, yhat: Array) -> float:
        if not self.classes:
            with np.errstate(over="ignore"):
                yhat = yhat.astype(self.dtype, copy=False)
            if not np.isfinite(yhat).all():
                return float("nan")
            return float(r2_score(self.y, yhat, sample_weight=self.weights))
        if self.weights is not None and not self.weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        if self.objective.out_activation == "softmax":
            right = yhat.argmax(1) == self.y.argmax(1)
        elif self.classes == self.objective.units == 1:
            return 1.0
        else:
            right = ((yhat > 0.5) == self.y).all(1)
        return self._mean(right)
