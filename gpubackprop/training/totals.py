"""The running totals of an epoch, from which its loss, accuracy and rmse are read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, Total
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.passes import Batch
from gpubackprop.training.batches import Batches

Array = Any  # an array of the network's device


class RunningTotals:
    """Sums over the batches of an epoch, on the network's device: nothing is read back in a step.

    Attributes
    ----------
    array : (Total.SIZE,) float64 array
        See `gpubackprop.backends.Total`; the loss there is per row.
    counts_correct : bool
        Whether correct rows are counted, which only labels have.
    """

    def __init__(self, network: MLP, loss: Loss, data: Batches) -> None:
        self.network, self.loss = network, loss
        fresh = np.zeros(Total.SIZE)
        fresh[Total.BAD_STEP] = -1
        self._fresh = network.backend.asarray(fresh)
        self.array = network.backend.zeros(Total.SIZE, np.float64)
        self.reset()
        self.counts_correct = loss.output == "logistic" or (
            loss.output == "softmax" and data.targets.ndim == 1
        )
        self._counted = 1.0 - data.ignored(loss).mean()

    def reset(self) -> None:
        self.network.backend.copy(self._fresh, self.array)

    def read(self) -> np.ndarray:
        """Return the totals on the host; wait for the device."""
        totals: np.ndarray = self.network.backend.to_host(self.array)
        return totals

    def emit(
        self,
        backend: Backend,
        batch: Batch,
        *,
        summed: bool,
        penalty: tuple[Array, Array] | None = None,
    ) -> None:
        """Issue the addition of a batch.

        Parameters
        ----------
        backend : Backend
            The backend that computes or records.
        batch : Batch
            A batch after its loss.
        summed : bool
            Whether its loss is the sum over its rows, else it is their mean.
        penalty : pair of 0-d arrays, or None
            See `Backend.accumulate`.
        """
        loss, rows = batch.result["loss"], len(batch.targets)
        if summed:
            per_row = backend.zeros((), self.network.dtype)
            backend.divide(loss, float(rows), per_row)
            loss = per_row
        correct = batch.result.get("correct_rows", batch.result.get("correct"))
        backend.accumulate(loss, rows, correct, penalty, self.array)

    def figures(self, totals: np.ndarray, loss: float, penalty: float = 0.0) -> dict[str, float]:
        """Return the loss, and accuracy or rmse if there is one; accuracy is of the rows so far."""
        values = {"loss": float(loss + penalty)}
        if self.counts_correct:
            counted = totals[Total.ROWS] * self._counted
            correct = totals[Total.CORRECT]
            values["accuracy"] = float(correct / counted) if counted else math.nan
        if self.loss.name == "squared_error":
            by_unit = self.loss.options.reduction == "elementwise_mean"
            values["rmse"] = math.sqrt(2.0 * loss / (1 if by_unit else self.network.widths[-1]))
        return values
