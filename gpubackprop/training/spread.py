"""Steps whose batches are spread over a GPU: forward, loss and backward in one launch.

Where `gpubackprop.backends.spread_plan` says that it is quicker, a `TrainStep` does not gather its
batch, nor pass through the layers one by one: each block of one launch takes a share of the rows, a
second launch adds up their gradients. What comes after that (penalty, clipping, update, totals) is
that of every step. Not measured on a GPU.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.spread_plan import SPREAD, layout_of, shares_of
from gpubackprop.training.gather import StepBatch
from gpubackprop.training.resident import (
    VARIABLE,
    kernel_obstacle,
    layer_numbers,
    loss_numbers,
    spread_of,
)
from gpubackprop.training.step import TrainStep

if TYPE_CHECKING:
    from gpubackprop.backends.cupy import CupyBackend

Array = Any  # an array of the network's device


@dataclass(eq=False)
class SpreadBatch(StepBatch):
    """A batch of a step whose rows are spread: row numbers, weights and results, but no units.

    `x` and `targets` are the row numbers too, which is all that a batch has of them.

    Attributes
    ----------
    step : TrainStep
        The step.
    shared : dict of arrays
        What the shares of the largest batch leave.
    class_weight : (K,) array or None
        The loss's, on the device.
    """

    step: TrainStep = field(kw_only=True)
    shared: dict[str, Array] = field(kw_only=True)
    class_weight: Array | None = field(kw_only=True)

    def first_rows(self, rows: int, backend: Backend) -> SpreadBatch:
        cut = copy.copy(self)
        cut.index = cut.x = cut.raw = cut.targets = self.targets[:rows]
        cut.weights = None if self.weights is None else self.weights[:rows]
        cut.spread = cut.issue
        return cut

    def issue(self, backend: Backend) -> None:
        """Issue the launches that compute the batch's loss and the gradient."""
        step, layout, rows = self.step, self._layout(), len(self.targets)
        from gpubackprop.backends.cupy.resident import ResidentNetwork

        source, by_order = step.source, step.options.weighted
        arrays = {
            "parameters": step.network.parameters, "random": step.random, "x": source.inputs(),
            "targets": source.targets, "order": self.index,
            "sample_weight": self.weights if by_order else source.sample_weight,
            "class_weight": self.class_weight,
        }  # fmt: skip
        numbers = {
            "batch_rows": rows, "data_rows": source.x.shape[0], "weights_by_order": by_order,
            **loss_numbers(step),
        }  # fmt: skip
        network = ResidentNetwork(layout, arrays, numbers, layer_numbers(step))
        cast("CupyBackend", backend).spread_gradients(
            network,
            self.shared | {"gradient": step.gradient, "loss": self.result["loss"],
                           "correct_rows": self.result.get("correct_rows")},
            self._mean(arrays, rows),
        )  # fmt: skip

    def _layout(self) -> Any:
        """Return the layout of a block; a short last batch has its own."""
        plan, rows = spread_of(self.step), len(self.targets)
        if rows == plan.sizes.batch_size:
            return plan.layout
        return layout_of(replace(plan.sizes, batch_size=rows))

    def _mean(self, arrays: dict[str, Array | None], rows: int) -> dict[str, float]:
        """Return by what the sums over the rows are divided."""
        options = self.step.loss.options
        units = self.step.network.widths[-1] if options.reduction == "elementwise_mean" else 1
        by_label = self.step.source.targets.ndim == 1 and (
            options.ignore_index is not None or options.class_weight is not None
        )
        divisor = float(rows * units)
        if options.reduction == "sum":
            divisor = 1.0
        elif by_label or arrays["sample_weight"] is not None:
            divisor = 0.0
        return {
            "divisor": divisor, "units": float(units), "empty_is_zero": options.empty == "zero",
        }  # fmt: skip


def spread_batch(step: TrainStep) -> SpreadBatch | None:
    """Return the largest batch of a step whose rows are spread, without its plan, or None.

    Parameters
    ----------
    step : TrainStep
        A step on a GPU, which has no batch yet.

    Returns
    -------
    SpreadBatch or None
        None if the step goes another way. ``GPUBACKPROP_RESIDENT=0`` in the environment makes it
        None.
    """
    if os.environ.get(VARIABLE) == "0" or kernel_obstacle(step):
        return None
    if spread_of(step).way != SPREAD:
        return None
    network, rows = step.network, step.batch_size
    from gpubackprop.backends.cupy.spread import working_arrays

    backend, weights = network.backend, None
    step.source.cursor, index = None, backend.zeros(rows, np.int64)
    if step.options.weighted:
        weights = backend.empty(rows, network.dtype)
    result = {"loss": backend.zeros((), network.dtype)}
    if step.running.counts_correct:
        result["correct_rows"] = backend.zeros((), np.int64)
    shared = working_arrays(backend, shares_of(rows), network.layout.size)
    class_weight = cast("CupyBackend", backend).on_device(
        step.loss.options.class_weight, np.float32
    )
    batch = SpreadBatch(
        index, index, weights, None, result, raw=index, index=index, step=step, shared=shared,
        class_weight=class_weight,
    )  # fmt: skip
    batch.spread = batch.issue
    return batch


TrainStep._spread_batch = spread_batch  # type: ignore[method-assign, assignment]
