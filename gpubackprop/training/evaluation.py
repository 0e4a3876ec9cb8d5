"""The evaluation step: loss and accuracy over all rows of a set."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np

from gpubackprop.backends import Backend, Total
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import BatchBuffers, BatchStep


class EvaluationStep(BatchStep):
    """Forward pass and loss of a batch. Losses are summed, so that the batches do not matter."""

    def __init__(self, network: MLP, loss: Loss, data: Batches, batch_size: int) -> None:
        super().__init__(network, loss, data, batch_size)
        self._summed = copy.copy(loss)
        self._summed.options = replace(loss.options, reduction="sum")
        self._weight = _total_weight(loss, data, network.widths[-1])

    def measure(self) -> dict[str, float]:
        """The loss (without penalty) over all rows, and accuracy or rmse where there is one."""
        self.reset_totals()
        self.W, self.b = self.network.working_parameters()  # the same memory each time
        order = self.place(self.data.order(None))
        for start in range(0, len(order), self.batch_size):
            self.run(order[start : start + self.batch_size])
        totals = self.read_totals()
        if self._weight:
            return self.figures(totals, totals[Total.LOSS] / self._weight)
        return self.figures(totals, 0.0 if self.loss.options.empty == "zero" else math.nan)

    def _emit(self, backend: Backend, buffers: BatchBuffers) -> None:
        self._emit_batch(backend, buffers)
        loss = self._emit_loss(backend, buffers, self._summed, buffers.result)
        rows = len(buffers.index)
        backend.accumulate(loss, rows, buffers.result.get("correct"), None, self.totals)


def _total_weight(loss: Loss, data: Batches, units: int) -> float:
    """What the sum of the losses of all rows is divided by."""
    if loss.options.reduction == "sum":
        return float(len(data))  # no mean is wanted; per row, as in training, to be comparable
    total = data.row_weights(loss).sum(dtype=np.float64)
    return float(total * (units if loss.options.reduction == "elementwise_mean" else 1))
