"""Scores on held-out rows, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.metrics import r2_score

from gpubackprop.backends import Backend
from gpubackprop.network import MLP, PassBuffers, emit_forward
from gpubackprop.sklearn.host import SparseBatch
from gpubackprop.sklearn.objective import Objective
from gpubackprop.sklearn.passes import Rows

Array = np.ndarray


@dataclass
class Scores:
    """`score`: accuracy or R^2 as scikit-learn has it, NaN where predictions are not finite.
    `loss`: the mean over the rows, without the L2 penalty."""

    score: float
    loss: float


class HeldOut:
    """Rows that are not learned from, and the plan that evaluates them.

    Parameters
    ----------
    rows : x, and the targets of a softmax output.
    y : (N, K) as the estimator's targets were before `Objective.targets`. weights : (N,) or None.
    classes : number of classes; 0 for regression.
    """

    def __init__(
        self,
        network: MLP,
        objective: Objective,
        rows: Rows,
        y: Array,
        weights: Array | None,
        classes: int,
    ) -> None:
        self.network, self.objective, self.rows = network, objective, rows
        self.y, self.weights, self.classes = y, weights, classes
        backend, dtype, count = network.backend, network.dtype, len(rows)
        self.loss = objective.loss(weighted=False)
        self._result = self.loss.buffers(backend, count, dtype)
        self._record = self._result["row_loss"].reshape(count, 1)
        self._yhat = backend.empty((count, objective.units), dtype)
        self._passes = PassBuffers(network, count, separate=False)
        self._logits = objective.out_activation != "softmax"
        if self._logits:
            self._record = self._passes.a[-1]
        self._replay = backend.plan(self._emit)

    def _emit(self, backend: Backend) -> None:
        x = self.rows.x
        if sparse.issparse(x):
            x = SparseBatch()
            x.matrix = self.rows.x
        emit_forward(backend, self.network, x, self._passes, self.network.W, self.network.b)
        logits = self._passes.a[-1]
        backend.output(logits, self.objective.output, self._yhat)
        if not self._logits:
            self.loss.emit(backend, logits, self.rows.targets, self._result, None)

    def evaluate(self) -> Scores:
        """Scores of the network's present parameters. Waits for the device."""
        self._replay()
        to_host = self.network.backend.to_host
        values_of = self.objective.values_of_logits if self._logits else self.objective.row_values
        values = values_of(to_host(self._record), self.y)
        return Scores(self._score(to_host(self._yhat)), self._mean(values))

    def _mean(self, values: Array) -> float:
        return float(np.average(values, weights=self.weights))

    def _score(self, yhat: Array) -> float:
        if not self.classes:
            if not np.isfinite(yhat).all():
                return float("nan")
            return float(r2_score(self.y, yhat, sample_weight=self.weights))
        if self.objective.out_activation == "softmax":
            right = yhat.argmax(1) == self.y.argmax(1)
        elif self.classes == 1:
            return 1.0
        else:
            right = ((yhat > 0.5) == self.y).all(1)
        return self._mean(right)
