"""The training step: a batch's gradients and the update of all parameters that they make.

A step gathers its batch and issues what `gpubackprop.passes` says: forward pass, loss, backward
pass, update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, Total, UpdateRule
from gpubackprop.backends.resident_cost import ResidentPlan
from gpubackprop.backends.spread_plan import SpreadPlan
from gpubackprop.formulas.dropout import random_state
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.optimizers import Optimizer
from gpubackprop.passes import emit_step
from gpubackprop.training.batch_step import GradientStep, StepOptions
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import Source, StepBatch

Array = Any  # an array of the network's device
__all__ = ["Regularization", "StepOptions", "StepState", "TrainStep"]


@dataclass(frozen=True)
class Regularization:
    """The penalty and the clipping of a training.

    Attributes
    ----------
    l2 : float
        Factor of the penalty l2 / 2 * sum of squared weights (without biases).
    clip_norm : float or None
        The largest global norm of the gradient.
    """

    l2: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True)
class StepState:
    """The state that `TrainStep.go_on_from` takes over, without plans and data, on the host.

    Attributes
    ----------
    formula : str
        Name of the optimizer's formula.
    arrays : dict of arrays
        As `TrainStep.state` returns them.
    steps : int
        Batches done.
    """

    formula: str
    arrays: dict[str, np.ndarray] = field(repr=False)
    steps: int


class TrainStep(GradientStep):
    """One update of all parameters from a batch.

    Parameters
    ----------
    network : MLP
        The network to train; its parameters are changed in place.
    loss : Loss
        The loss to minimise.
    data : Batches or Source
        The rows to train on.
    batch_size : int
        The most rows of a batch.
    optimizer : Optimizer
        Formula and hyperparameters.
    regularization : Regularization
        L2 penalty and gradient clipping.
    options : StepOptions or None
        Seed, loss scaling, rounding, and what is recorded.

    Attributes
    ----------
    slots : tuple of (layout.size,) arrays
        The optimizer's state, laid out as the gradient.
    steps : int
        Number of batches done, including those whose update was skipped.
    squares : array
        The sum of the squared weights before the last update, if rows are recorded; see
        `Backend.sum_of_squares`.
    """

    part: slice | None = None  # the elements whose slots are here; None is all
    # What `training.resident` has planned, after what it was planned for.
    resident_plan: tuple[tuple[Any, ...], tuple[ResidentPlan, SpreadPlan]] | None = None

    def __init__(
        self,
        network: MLP,
        loss: Loss,
        data: Batches | Source,
        batch_size: int,
        optimizer: Optimizer,
        regularization: Regularization,
        options: StepOptions | None = None,
    ) -> None:
        options = options or StepOptions()
        drawn = any(network.dropout) or options.stochastic_rounding
        random = network.backend.asarray(random_state(options.seed)) if drawn else None
        self.optimizer, self.regularization = optimizer, regularization
        super().__init__(network, loss, data, batch_size, options, random)
        network.clear_gaps()  # penalty and norm are computed over the whole buffer
        backend, dtype, size = network.backend, network.dtype, network.layout.size
        formula = optimizer.formula
        held = size if self.part is None else self.part.stop - self.part.start
        self.slots = tuple(backend.zeros(held, dtype) for _ in formula.slots)
        for slot in self.slots:
            backend.fill(slot, optimizer.hyperparameters[formula.initial] if formula.initial else 0)
        self.squares = backend.zeros(2, dtype) if backend.asynchronous else np.zeros(())
        self.steps = 0
        rule = UpdateRule(
            formula, optimizer.hyperparameters, optimizer.lr, optimizer.weight_decay,
            regularization.l2, regularization.clip_norm, network.layout.weights_end,
            options.scaling, options.stochastic_rounding, self.part,
        )  # fmt: skip
        self.half_copy = backend.empty(size, network.precision) if network.mixed_precision else None
        self.updater = backend.updater(
            rule, network.parameters, self.gradient, self.slots, random, self.half_copy
        )
        if self.half_copy is not None:
            self.parameters = network.layout.views(self.half_copy)
        self.refresh()

    def refresh(self) -> None:
        """Round the weights to 16 bits as the last update did: others may have written them."""
        if self.half_copy is not None:
            random = self.random if self.updater.rule.stochastic else None
            self.network.backend.round_to_storage(self.network.parameters, self.half_copy, random)

    @property
    def formula(self) -> str:
        """Name of the optimizer's formula."""
        return self.optimizer.formula.name

    def __reduce__(self) -> tuple[Any, ...]:
        made_from = (*super().__reduce__()[1], self.optimizer, self.regularization, self.options)
        gradient = np.array(self.network.backend.to_host(self.gradient))
        return type(self), made_from, (self.snapshot(), gradient, self.planned)

    def __setstate__(self, state: tuple[StepState, np.ndarray, tuple[Any, ...]]) -> None:
        snapshot, gradient, self.planned = state
        self.network.backend.from_host(gradient, self.gradient)
        self.go_on_from(snapshot)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.optimizer!r}, {self.steps} steps done)"

    def snapshot(self) -> StepState:
        """Return a copy of the state."""
        to_host = self.network.backend.to_host
        arrays = {name: np.array(to_host(array)) for name, array in self.state().items()}
        return StepState(self.formula, arrays, self.steps)

    def state(self) -> dict[str, Array]:
        """Return the arrays, without the parameters, that a training needs to go on from here."""
        named = zip(self.optimizer.formula.slots, self.slots, strict=True)
        arrays = {f"slot.{name}": slot for name, slot in named}
        if not self.options.record:
            arrays["totals"] = self.totals
        if self.random is not None:
            arrays["random"] = self.random
        if self.updater.rule.scaling is not None:
            arrays["scaling"] = self.updater.state
        return arrays

    def restored(self, steps: int) -> None:
        """Take over the arrays of `state` and the parameters after they were written.

        They are those after `steps` steps.
        """
        self.steps = steps
        if self.updater.rule.scaling is not None:
            self.updater.restored(steps + 1)
        self.refresh()

    def go_on_from(self, other: TrainStep | StepState) -> None:
        """Take over the state of a step of the same formula, of a network of the same layout.

        Parts that one of the two steps lacks (dropout, loss scaling) stay as they are.
        """
        mine, backend = self.state(), self.network.backend
        write: Callable[[Any, Any], None]
        if isinstance(other, TrainStep):
            theirs, write = other.state(), backend.copy
        else:
            theirs, write = other.arrays, backend.from_host
        for name in mine.keys() & theirs.keys():
            write(theirs[name], mine[name])
        self.restored(other.steps)

    def update(
        self, rows: Array, lr: float, weights: Array | None = None, l2: float | None = None
    ) -> StepBatch:
        """Train on the batch of these row numbers with learning rate `lr`.

        `weights` are the rows' weights, as for `run`. `l2` is the penalty of this and of later
        updates, in place of the regularization's, which must not be 0.
        """
        self.updater.set(lr, self.steps + 1)
        if l2 is not None:
            self.updater.set_l2(l2)
        batch = self.run(rows, weights)
        self.steps += 1
        return batch

    def totals_of_all(self) -> np.ndarray:
        """Return the totals of all ranks that train together: here, this one's."""
        return self.read_totals()

    def summary(self, totals: np.ndarray | None = None) -> dict[str, float]:
        """Return `RunningTotals.figures` over the rows so far; the loss includes the penalty.

        With a mean over weighted or ignored rows the loss is the mean of the batches' means.
        `totals` are to be read; None reads this rank's.
        """
        totals = self.read_totals() if totals is None else totals
        rows = max(1.0, totals[Total.ROWS])
        figures = self.running.figures
        return figures(totals, totals[Total.LOSS] / rows, totals[Total.PENALTY] / rows)

    def load(self, data: Batches) -> None:
        super().load(data)
        if self._batch.spread is not None:
            self.source.inputs()  # converted anew, where the plans read them

    def _emit(self, backend: Backend, batch: StepBatch) -> None:
        network, options, penalty = self.network, self.options, None
        summed = self.loss.options.reduction == "sum"
        if self.updater.upstream is not None:
            batch.upstream = self.updater.upstream
        if options.record:
            weights = network.parameters[: network.layout.weights_end]
            backend.sum_of_squares(weights, self.squares)
        else:
            penalty = self.updater.penalty(backend, len(batch.targets) if summed else 1)
        if batch.spread is None:
            self.source.emit(backend, batch)
            gradient = self.grad_W, self.grad_b
            emit_step(backend, self.loss, batch, self.parameters, gradient, self.updater)
        else:
            batch.spread(backend)
            self.updater.emit(backend)
        if not options.record:
            self.running.emit(backend, batch, summed=summed, penalty=penalty)
        if options.rounded:
            self._emit_rounding(backend)

    def _emit_rounding(self, backend: Backend) -> None:
        """Issue the rounding of the views that `StepOptions.rounded` names."""
        for view, stored in self.options.rounded:
            backend.gather_rows(view, None, stored)
            backend.gather_rows(stored, None, view)
