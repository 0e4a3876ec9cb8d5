"""The training step: planned once for a batch size, then run without allocation.

A step gathers its batch, runs forward, loss and backward pass, and updates all parameters. Every
array is made when the step is; each batch size that occurs (the full one, the short last one) has
its own plan over the first rows of the same arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, LossScaling, Total, UpdateRule
from gpubackprop.formulas.dropout import random_state
from gpubackprop.losses import Loss
from gpubackprop.network import MLP, PassBuffers, emit_backward, emit_forward
from gpubackprop.optimizers import Optimizer
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import Source

Array = Any  # of the network's device


@dataclass(frozen=True)
class StepOptions:
    """seed: of dropout and of stochastic rounding. scaling: of the loss, or None.
    stochastic_rounding: of the weights in 16 bits."""

    seed: int = 0
    scaling: LossScaling | None = None
    stochastic_rounding: bool = False


@dataclass(frozen=True)
class Regularization:
    """l2: penalty l2 / 2 * sum of squared weights (biases excepted); clip_norm: largest global
    norm of the gradient, or None."""

    l2: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True)
class StepState:
    """What `TrainStep.go_on_from` takes over, without plans and data, on the host.

    formula : name of the optimizer's. arrays : as `TrainStep.state`. steps : batches done.
    """

    formula: str
    arrays: dict[str, np.ndarray] = field(repr=False)
    steps: int


class BatchBuffers:
    """One batch and everything that a pass over it needs."""

    def __init__(
        self, network: MLP, loss: Loss, source: Source, rows: int, random: Array | None
    ) -> None:
        backend, data = network.backend, source.data
        self.index = backend.zeros(rows, np.int64)
        self.x = backend.empty((rows, network.widths[0]), network.precision)
        self.raw = source.raw_buffer(rows, self.x)
        self.targets = backend.empty((rows, *source.targets.shape[1:]), source.targets.dtype)
        self.weights = None
        if source.sample_weight is not None:
            self.weights = backend.empty(rows, network.dtype)
        self.passes = PassBuffers(network, rows, separate=False, random=random)
        self.result = loss.buffers(backend, rows, network.dtype)
        if loss.output in ("softmax", "logistic") and not (
            loss.output == "softmax" and data.targets.ndim == 2
        ):
            self.result["correct"] = backend.empty(rows, np.bool_)

    def first_rows(self, rows: int, backend: Backend) -> BatchBuffers:
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
        cut.result["scale"] = backend.empty(rows, cut.result["scale"].dtype)
        return cut


class BatchStep:
    """What a training step and an evaluation step share: a batch, its loss, running totals.

    Attributes
    ----------
    totals : (Total.SIZE,) float64 on the network's device, see `gpubackprop.backends.Total`; the
        loss there is per row. `read_totals` waits for them.
    W, b : what the products take, see `MLP.working_parameters`.
    random : (2,) uint64 {seed, updates done} there, from which masks are drawn; None without.
    """

    def __init__(
        self,
        network: MLP,
        loss: Loss,
        data: Batches,
        batch_size: int,
        random: Array | None = None,
    ) -> None:
        self.random = random
        self.W: Sequence[Array] = network.W
        self.b: Sequence[Array] = network.b
        self.network, self.loss, self.data = network, loss, data
        self.batch_size = max(1, min(batch_size, len(data)))
        self.source = Source(network, data)
        self.buffers = BatchBuffers(network, loss, self.source, self.batch_size, random)
        backend = network.backend
        fresh = np.zeros(Total.SIZE)
        fresh[Total.BAD_STEP] = -1
        self._fresh_totals = backend.asarray(fresh)
        self.totals = backend.zeros(Total.SIZE, np.float64)
        self.reset_totals()
        self._plans: dict[int, tuple[Array, Callable[[], None]]] = {}
        self._counted = 1.0 - data.ignored(loss).mean()
        self.planned: tuple[Any, ...] = ()  # the trainer's settings that it was made for

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy plans anew: a plan writes into the arrays of the step that made it."""
        return type(self), (self.network, self.loss, self.data, self.batch_size)

    def __repr__(self) -> str:
        batches = f"batches of {self.batch_size} of {len(self.data)} rows"
        return f"{type(self).__name__}({self.network!r}, {self.loss!r}, {batches})"

    def reset_totals(self) -> None:
        self.network.backend.copy(self._fresh_totals, self.totals)

    def read_totals(self) -> np.ndarray:
        """The totals on the host; waits for the device."""
        return self.network.backend.to_host(self.totals)

    def place(self, order: np.ndarray) -> Array:
        """Row numbers of an epoch where `run` takes slices of them without a copy from the host."""
        return self.source.place(order)

    def run(self, rows: Array) -> None:
        """Process the batch of these row numbers (at most batch_size, at least 1)."""
        plan = self._plans.get(len(rows))
        if plan is None:
            plan = self._plans[len(rows)] = self._make_plan(len(rows))
        index, replay = plan
        self.source.put_rows(rows, index)
        replay()

    def figures(self, totals: np.ndarray, loss: float, penalty: float = 0.0) -> dict[str, float]:
        """The loss, and accuracy or rmse where there is one; accuracy is of the rows so far."""
        values = {"loss": float(loss + penalty)}
        if "correct" in self.buffers.result:
            counted = totals[Total.ROWS] * self._counted
            correct = totals[Total.CORRECT]
            values["accuracy"] = float(correct / counted) if counted else math.nan
        if self.loss.name == "squared_error":
            by_unit = self.loss.options.reduction == "elementwise_mean"
            values["rmse"] = math.sqrt(2.0 * loss / (1 if by_unit else self.network.widths[-1]))
        return values

    def _make_plan(self, rows: int) -> tuple[Array, Callable[[], None]]:
        backend, buffers = self.network.backend, self.buffers
        if rows != self.batch_size:
            buffers = buffers.first_rows(rows, backend)
        return buffers.index, backend.plan(lambda recorder: self._emit(recorder, buffers))

    def _emit(self, backend: Backend, buffers: BatchBuffers) -> None:
        raise NotImplementedError

    def _emit_batch(self, backend: Backend, buffers: BatchBuffers) -> None:
        source = self.source
        source.emit_inputs(backend, buffers.index, buffers.raw, buffers.x)
        backend.gather_rows(source.targets, buffers.index, buffers.targets)
        if buffers.weights is not None:
            backend.gather_rows(source.sample_weight, buffers.index, buffers.weights)
        emit_forward(backend, self.network, buffers.x, buffers.passes, self.W, self.b)

    def _emit_loss(
        self,
        backend: Backend,
        buffers: BatchBuffers,
        loss: Loss,
        result: dict[str, Array],
        upstream: Any = 1.0,
    ) -> Array:
        """Issue the loss; returns the 0-d array of the loss per row."""
        logits = buffers.passes.a[-1]
        loss.emit(backend, logits, buffers.targets, result, buffers.weights, upstream)
        if loss.options.reduction != "sum":
            return result["loss"]
        per_row = backend.zeros((), self.network.dtype)
        backend.divide(result["loss"], float(len(buffers.index)), per_row)
        return per_row


class TrainStep(BatchStep):
    """One update of all parameters from a batch.

    Parameters
    ----------
    network, loss, data, batch_size : what to train, on what.
    optimizer : formula and hyperparameters.
    regularization : L2 penalty and gradient clipping.
    options : seed, loss scaling, rounding.

    Attributes
    ----------
    gradient : (layout.size,) flat buffer of the last step's gradient, without L2 and clipping
        (with L2 where both are on; on a GPU times the loss's scale).
    slots : the optimizer's state, same layout.
    steps : batches done, those whose update was left out among them.
    """

    def __init__(
        self,
        network: MLP,
        loss: Loss,
        data: Batches,
        batch_size: int,
        optimizer: Optimizer,
        regularization: Regularization,
        options: StepOptions | None = None,
    ) -> None:
        self.options = options = options or StepOptions()
        drawn = any(network.dropout) or options.stochastic_rounding
        random = network.backend.asarray(random_state(options.seed)) if drawn else None
        super().__init__(network, loss, data, batch_size, random)
        network.clear_gaps()  # penalty and norm are of the whole buffer
        backend, dtype, size = network.backend, network.dtype, network.layout.size
        self.optimizer, self.regularization = optimizer, regularization
        self.gradient = backend.zeros(size, dtype)
        self.grad_W, self.grad_b = network.layout.views(self.gradient)
        formula = optimizer.formula
        self.slots = tuple(backend.zeros(size, dtype) for _ in formula.slots)
        for slot in self.slots:
            backend.fill(slot, optimizer.hyperparameters[formula.initial] if formula.initial else 0)
        self.steps = 0
        rule = UpdateRule(
            formula, optimizer.hyperparameters, optimizer.lr, optimizer.weight_decay,
            regularization.l2, regularization.clip_norm, network.layout.weights_end,
            options.scaling, options.stochastic_rounding,
        )  # fmt: skip
        self.half_copy = backend.empty(size, network.precision) if network.mixed_precision else None
        self.updater = backend.updater(
            rule, network.parameters, self.gradient, self.slots, random, self.half_copy
        )
        if self.half_copy is not None:
            self.W, self.b = network.layout.views(self.half_copy)
        self.refresh()

    def refresh(self) -> None:
        """The weights in 16 bits, as the last update left them; again, where others write them."""
        if self.half_copy is not None:
            random = self.random if self.updater.rule.stochastic else None
            self.network.backend.round_to_storage(self.network.parameters, self.half_copy, random)

    @property
    def formula(self) -> str:
        """Name of the optimizer's."""
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
        """A copy of the state."""
        to_host = self.network.backend.to_host
        arrays = {name: np.array(to_host(array)) for name, array in self.state().items()}
        return StepState(self.formula, arrays, self.steps)

    def state(self) -> dict[str, Array]:
        """The arrays that a training needs to go on where this step stands, parameters aside."""
        named = zip(self.optimizer.formula.slots, self.slots, strict=True)
        arrays = {f"slot.{name}": slot for name, slot in named} | {"totals": self.totals}
        if self.random is not None:
            arrays["random"] = self.random
        if self.updater.rule.scaling is not None:
            arrays["scaling"] = self.updater.state
        return arrays

    def restored(self, steps: int) -> None:
        """The arrays of `state`, and the parameters, were written: those after `steps` steps."""
        self.steps = steps
        if self.updater.rule.scaling is not None:
            self.updater.restored(steps + 1)
        self.refresh()

    def go_on_from(self, other: TrainStep | StepState) -> None:
        """Take over the state of a step of a network of the same layout and of the same formula;
        what either has no use for (of dropout, of loss scaling) stays as it is."""
        mine, backend = self.state(), self.network.backend
        write: Callable[[Any, Any], None]
        if isinstance(other, TrainStep):
            theirs, write = other.state(), backend.copy
        else:
            theirs, write = other.arrays, backend.from_host
        for name in mine.keys() & theirs.keys():
            write(theirs[name], mine[name])
        self.restored(other.steps)

    def update(self, rows: Array, lr: float) -> None:
        """Train on the batch of these row numbers with learning rate `lr`."""
        self.updater.set(lr, self.steps + 1)
        self.run(rows)
        self.steps += 1

    def summary(self) -> dict[str, float]:
        """`figures` over the rows so far, the loss with penalty.

        With a mean over weighted or ignored rows the loss is the mean of the batches' means.
        """
        totals = self.read_totals()
        rows = max(1.0, totals[Total.ROWS])
        return self.figures(totals, totals[Total.LOSS] / rows, totals[Total.PENALTY] / rows)

    def _emit(self, backend: Backend, buffers: BatchBuffers) -> None:
        network, passes, rows = self.network, buffers.passes, len(buffers.index)
        result = buffers.result | {"delta": passes.delta[-1]}
        self._emit_batch(backend, buffers)
        upstream = 1.0 if self.updater.upstream is None else self.updater.upstream
        loss = self._emit_loss(backend, buffers, self.loss, result, upstream)
        summed = self.loss.options.reduction == "sum"
        penalty = self.updater.penalty(backend, rows if summed else 1)
        backend.accumulate(loss, rows, result.get("correct"), penalty, self.totals)
        emit_backward(backend, network, buffers.x, passes, self.W, self.grad_W, self.grad_b)
        self.updater.emit(backend)
