"""The training step: planned once for a batch size, then run without allocation.

A step gathers its batch, runs forward, loss and backward pass, and updates all parameters. Every
array is made when the step is; each batch size that occurs (the full one, the short last one) has
its own plan over the first rows of the same arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends import Total
from gpubackprop.losses import Loss
from gpubackprop.network import MLP, PassBuffers, emit_backward, emit_forward
from gpubackprop.optimizers import Optimizer
from gpubackprop.training.batches import Batches, Standardize

Array = np.ndarray
NORM_FLOOR = 1e-6  # added to the norm when clipping, as PyTorch does


@dataclass(frozen=True)
class Regularization:
    """l2: penalty l2 / 2 * sum of squared weights (biases excepted); clip_norm: largest global
    norm of the gradient, or None."""

    l2: float = 0.0
    clip_norm: float | None = None


class BatchBuffers:
    """One batch and everything that a pass over it needs."""

    def __init__(self, network: MLP, loss: Loss, data: Batches, rows: int) -> None:
        backend = network.backend
        self.index = np.zeros(rows, np.intp)
        self.x = backend.empty((rows, network.widths[0]), network.dtype)
        self.raw = self.x  # where the batch is gathered; apart if it must be converted
        if data.standardizer is not None or data.x.dtype != network.dtype:
            self.raw = backend.empty((rows, network.widths[0]), data.x.dtype)
        self.targets = backend.empty((rows, *data.targets.shape[1:]), data.targets.dtype)
        self.weights = None
        if data.sample_weight is not None:
            self.weights = backend.empty(rows, network.dtype)
        self.passes = PassBuffers(network, rows, separate=False)
        self.result = loss.buffers(backend, rows, network.dtype)
        if loss.output in ("softmax", "logistic") and not (
            loss.output == "softmax" and data.targets.ndim == 2
        ):
            self.result["correct"] = backend.empty(rows, np.bool_)

    def first_rows(self, rows: int) -> BatchBuffers:
        """The same memory, seen as a smaller batch."""
        cut = object.__new__(BatchBuffers)
        for name in ("index", "x", "targets", "weights"):
            array = getattr(self, name)
            setattr(cut, name, None if array is None else array[:rows])
        cut.raw = cut.x if self.raw is self.x else self.raw[:rows]
        cut.passes = self.passes.first_rows(rows)
        cut.result = {
            name: array if array.ndim == 0 else array[:rows] for name, array in self.result.items()
        }
        # Not shared: where it is the same for every batch, 1 / rows, a plan fills it only once.
        cut.result["scale"] = np.empty_like(cut.result["scale"])
        return cut


class BatchStep:
    """What a training step and an evaluation step share: a batch, its loss, running totals.

    Attributes
    ----------
    totals : (Total.SIZE,) float64, see `gpubackprop.backends.Total`; the loss there is per row.
    """

    def __init__(self, network: MLP, loss: Loss, data: Batches, batch_size: int) -> None:
        self.network, self.loss, self.data = network, loss, data
        self.batch_size = max(1, min(batch_size, len(data)))
        self.buffers = BatchBuffers(network, loss, data, self.batch_size)
        self.totals = np.zeros(Total.SIZE)
        self.reset_totals()
        self._plans: dict[int, tuple[Array, Callable[[], None]]] = {}
        self._counted = 1.0 - data.ignored(loss).mean()

    def reset_totals(self) -> None:
        self.totals[:] = 0
        self.totals[Total.BAD_STEP] = -1

    def run(self, rows: Array) -> None:
        """Process the batch of these row numbers (at most batch_size, at least 1)."""
        plan = self._plans.get(len(rows))
        if plan is None:
            plan = self._plans[len(rows)] = self._make_plan(len(rows))
        index, replay = plan
        np.copyto(index, rows)
        replay()

    def figures(self, loss: float, penalty: float = 0.0) -> dict[str, float]:
        """The loss, and accuracy or rmse where there is one; accuracy is of the rows so far."""
        values = {"loss": float(loss + penalty)}
        if "correct" in self.buffers.result:
            counted = self.totals[Total.ROWS] * self._counted
            correct = self.totals[Total.CORRECT]
            values["accuracy"] = float(correct / counted) if counted else math.nan
        if self.loss.name == "squared_error":
            by_unit = self.loss.options.reduction == "elementwise_mean"
            values["rmse"] = math.sqrt(2.0 * loss / (1 if by_unit else self.network.widths[-1]))
        return values

    def _make_plan(self, rows: int) -> tuple[Array, Callable[[], None]]:
        buffers = self.buffers if rows == self.batch_size else self.buffers.first_rows(rows)
        return buffers.index, self.network.backend.plan(lambda verbs: self._emit(verbs, buffers))

    def _emit(self, verbs: Any, buffers: BatchBuffers) -> None:
        raise NotImplementedError

    def _emit_batch(self, verbs: Any, buffers: BatchBuffers) -> None:
        data = self.data
        verbs.gather_rows(data.x, buffers.index, buffers.raw)
        if data.standardizer is not None:
            verbs.call(Standardize(data.standardizer, buffers.raw, buffers.x))
        elif buffers.raw is not buffers.x:
            verbs.call(np.copyto, buffers.x, buffers.raw, "unsafe")
        verbs.gather_rows(data.targets, buffers.index, buffers.targets)
        if buffers.weights is not None:
            verbs.gather_rows(data.sample_weight, buffers.index, buffers.weights)
        emit_forward(verbs, self.network, buffers.x, buffers.passes)

    def _emit_loss(
        self, verbs: Any, buffers: BatchBuffers, loss: Loss, result: dict[str, Array]
    ) -> Array:
        """Issue the loss; returns the 0-d array of the loss per row."""
        loss.emit(verbs, buffers.passes.a[-1], buffers.targets, result, buffers.weights)
        if loss.options.reduction != "sum":
            return result["loss"]
        per_row = np.zeros((), self.network.dtype)
        verbs.call(np.divide, result["loss"], float(len(buffers.index)), per_row)
        return per_row


class TrainStep(BatchStep):
    """One update of all parameters from a batch.

    Parameters
    ----------
    network, loss, data, batch_size : what to train, on what.
    optimizer : formula and hyperparameters.
    regularization : L2 penalty and gradient clipping.

    Attributes
    ----------
    gradient : (layout.size,) flat buffer of the last step's gradient, without L2 and clipping
        (with L2 where both are on). slots : the optimizer's state, same layout.
    steps : updates done.
    """

    def __init__(
        self,
        network: MLP,
        loss: Loss,
        data: Batches,
        batch_size: int,
        optimizer: Optimizer,
        regularization: Regularization,
    ) -> None:
        super().__init__(network, loss, data, batch_size)
        backend, dtype, size = network.backend, network.dtype, network.layout.size
        self.optimizer, self.regularization = optimizer, regularization
        self.gradient = backend.zeros(size, dtype)
        self.grad_W, self.grad_b = network.layout.views(self.gradient)
        formula = optimizer.formula
        self.slots = tuple(backend.zeros(size, dtype) for _ in formula.slots)
        for slot in self.slots:
            slot.fill(optimizer.hyperparameters[formula.initial] if formula.initial else 0.0)
        self.steps = 0
        # What changes from step to step lives in arrays, so that a recorded plan reads it.
        self._coefficients = np.zeros(len(optimizer.coefficients(optimizer.lr, 1)), dtype)
        self._decay, self._clip, self._l2 = (np.ones((), dtype) for _ in range(3))
        self._l2[...] = regularization.l2
        self._norm2, self._weights2 = np.zeros(()), np.zeros(())

    def update(self, rows: Array, lr: float) -> None:
        """Train on the batch of these row numbers with learning rate `lr`."""
        self._coefficients[:] = self.optimizer.coefficients(lr, self.steps + 1)
        decay = self.optimizer.decay_coefficient(lr)
        if decay is not None:
            self._decay[...] = decay
        self.run(rows)
        self.steps += 1

    def summary(self) -> dict[str, float]:
        """`figures` over the rows so far, the loss with penalty.

        With a mean over weighted or ignored rows the loss is the mean of the batches' means.
        """
        rows = max(1.0, self.totals[Total.ROWS])
        return self.figures(self.totals[Total.LOSS] / rows, self.totals[Total.PENALTY] / rows)

    def _emit(self, verbs: Any, buffers: BatchBuffers) -> None:
        network, passes, rows = self.network, buffers.passes, len(buffers.index)
        result = buffers.result | {"delta": passes.delta[-1]}
        self._emit_batch(verbs, buffers)
        loss = self._emit_loss(verbs, buffers, self.loss, result)
        penalty = None
        if self.regularization.l2:
            weights = network.parameters[: network.layout.weights_end]
            verbs.sum_of_squares(weights, self._weights2)
            summed = self.loss.options.reduction == "sum"
            penalty = (self._weights2, self._l2 / rows if summed else self._l2)
        verbs.accumulate(loss, rows, result.get("correct"), penalty, self.totals)
        emit_backward(verbs, network, buffers.x, passes, self.grad_W, self.grad_b)
        self._emit_update(verbs)

    def _emit_update(self, verbs: Any) -> None:
        network, optimizer, clip_norm = self.network, self.optimizer, self.regularization.clip_norm
        end = network.layout.weights_end
        coefficients: dict[str, Any] = {
            "c": tuple(
                self._coefficients[i : i + 1].reshape(()) for i in range(len(self._coefficients))
            )
        }
        if optimizer.weight_decay:
            coefficients["decay"] = self._decay
        if self.regularization.l2 and clip_norm is None:
            coefficients["l2"] = (end, self._l2)
        if clip_norm is not None:
            if self.regularization.l2:  # the norm is that of the whole gradient, penalty included
                verbs.add_scaled(network.parameters[:end], self._l2, self.gradient[:end])
            verbs.sum_of_squares(self.gradient, self._norm2)
            verbs.call(_clip_factor, self._norm2, clip_norm, self._clip)
            coefficients["clip"] = self._clip
        verbs.update(network.parameters, self.gradient, self.slots, optimizer.formula, coefficients)


def _clip_factor(norm2: Array, clip_norm: float, clip: Array) -> None:
    clip[...] = min(1.0, clip_norm / (math.sqrt(norm2) + NORM_FLOOR))
