"""A step over batches of rows: planned once for a number of rows, then run without allocation.

Every array is made together with the step. Each batch size that occurs (the full one, the short
last one) has a plan of its own, over the first rows of the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, LossScaling
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.passes import Layers, PassUnits, Units, emit_gradients, in_chunks
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import Source, StepBatch
from gpubackprop.training.totals import RunningTotals

Array = Any  # an array of the network's device
KEPT_PLANS = 16  # how many plans are kept, for different numbers of rows


@dataclass(frozen=True)
class StepOptions:
    """The options of a step, beside the formulas.

    Attributes
    ----------
    seed : int
        Seed of dropout and of stochastic rounding.
    scaling : LossScaling or None
        How the loss is scaled.
    stochastic_rounding : bool
        Whether the 16-bit copy of the weights is rounded by chance.
    record : {"", "row_loss", "logits"}
        "" adds up running totals. The others keep the loss, or the logits, of each row of a batch
        in `StepBatch.record` until the next batch.
    weighted : bool
        Whether `BatchStep.run` is given the weights of its rows.
    whole : bool
        Whether the only batch is all rows, read in place; `run` is then given no row numbers.
    rounded : sequence of pairs
        (view of the parameters, array of a narrower dtype): each update rounds the view to it.
    deterministic : bool
        Whether a plan takes products of repeatable sums alone.
    """

    seed: int = 0
    scaling: LossScaling | None = None
    stochastic_rounding: bool = False
    record: str = ""
    weighted: bool = False
    whole: bool = False
    rounded: Sequence[tuple[Array, Array]] = ()
    deterministic: bool = True


class BatchStep:
    """The common base of all steps: batches of a source, a loss, plans.

    Attributes
    ----------
    parameters : (W, b)
        As the products take them, see `MLP.working_parameters`.
    random : (2,) uint64 array or None
        {seed, updates done} on the network's device, from which masks are drawn.
    running : RunningTotals
        The running totals, if nothing is recorded.
    totals : (Total.SIZE,) float64 array
        The array of `running`.
    """

    backward = False  # whether there is a backward pass
    parts = 1  # in how many parts a batch is computed, one of them here
    tail = 0  # elements behind the gradient that are added up together with it

    def __init__(
        self,
        network: MLP,
        loss: Loss,
        data: Batches | Source,
        batch_size: int,
        options: StepOptions | None = None,
        random: Array | None = None,
    ) -> None:
        self.network, self.loss, self.options = network, loss, options or StepOptions()
        self.random = random
        self.parameters: Layers = network.W, network.b
        self.source = data if isinstance(data, Source) else Source(network, data)
        self.batch_size = max(1, min(batch_size, len(self.data)))
        self.most_rows = -(-self.batch_size // self.parts)
        if not self.options.record:
            self.running = RunningTotals(network, loss, self.data)
            self.totals = self.running.array
        if self.backward:
            flat = network.backend.zeros(network.layout.size + self.tail, network.dtype)
            self.gradient = flat[: network.layout.size] if self.tail else flat
            self._flat = flat
            self.grad_W, self.grad_b = network.layout.views(self.gradient)
        self._plans: dict[int, StepBatch] = {}
        self._batch = (network.backend.asynchronous and self._spread_batch()) or self._make_batch()
        self.planned: tuple[Any, ...] = ()  # the trainer's settings for which it was made

    @property
    def data(self) -> Batches:
        return self.source.data

    def __reduce__(self) -> tuple[Any, ...]:
        """Make copies that plan anew: a plan writes into the arrays of the step that made it."""
        return type(self), (self.network, self.loss, self.data, self.batch_size)

    def __repr__(self) -> str:
        batches = f"batches of {self.batch_size} of {len(self.data)} rows"
        return f"{type(self).__name__}({self.network!r}, {self.loss!r}, {batches})"

    def reset_totals(self) -> None:
        self.running.reset()

    def read_totals(self) -> np.ndarray:
        """Return the totals on the host; wait for the device."""
        return self.running.read()

    def place(self, order: np.ndarray) -> Array:
        """Put an epoch's row numbers where `run` takes slices of them without copying."""
        return self.source.place(order)

    def load(self, data: Batches) -> None:
        """Take the batches from these rows from now on; kind and dtypes are as before."""
        if self.source.load(data):
            self._plans.clear()

    def run(self, rows: Array | None = None, weights: Array | None = None) -> StepBatch:
        """Process one batch.

        Parameters
        ----------
        rows : (N,) int array or None
            Numbers of its rows, 1 to `batch_size` of them; None if the step takes all rows.
        weights : (N,) array or None
            Weights of the rows, on the network's device; for a step that is weighted.

        Returns
        -------
        StepBatch
            The batch; the next call overwrites its arrays.
        """
        count = self.batch_size if rows is None else len(rows)
        batch = self._plans.pop(count, None) or self._plan(count)
        self._plans[count] = batch
        if len(self._plans) > KEPT_PLANS:
            del self._plans[next(iter(self._plans))]
        if rows is not None:
            self.source.put_rows(rows, batch)
        if weights is not None:
            self.network.backend.copy(weights, batch.weights)
        batch.replay()
        if rows is not None and self.source.cursor is not None:
            self.source.cursor.done()
        return batch

    def _spread_batch(self) -> StepBatch | None:
        """Return the largest batch of a step whose rows are spread over a GPU, or None.

        `gpubackprop.training.spread`, which plans for steps and so lies above them, puts the
        function of a `TrainStep` here.
        """
        return None

    def _make_batch(self) -> StepBatch:
        """Return the largest batch, without its plan."""
        network, source, rows, options = self.network, self.source, self.most_rows, self.options
        backend, index, weights = network.backend, None, None
        if options.whole:
            x = raw = source.whole()
            targets = source.targets
        else:
            x, raw = source.buffers(rows)
            targets = backend.empty((rows, *source.targets.shape[1:]), source.targets.dtype)
            index = backend.zeros(rows, np.int64) if backend.asynchronous else None
        if options.weighted or source.sample_weight is not None:
            weights = backend.empty(rows, network.dtype)
        result = self.loss.buffers(backend, rows, network.dtype)
        chunked = options.record != "logits" and in_chunks(
            self.loss, rows, network.widths, network.dtype
        )
        if not options.record and self.running.counts_correct:
            if backend.asynchronous and not chunked:
                result["correct_rows"] = backend.zeros((), np.int64)
            else:
                result["correct"] = backend.empty(rows, np.bool_)
        units: Units
        if self.backward:
            units = PassUnits(network, rows, separate=False, random=self.random, chunked=chunked)
            if not chunked:
                result["delta"] = units.delta[-1]
        else:
            hidden, dtype = network.activations, network.precision
            units = Units(backend, rows, network.widths[1:], hidden, dtype, chunked=chunked)
        batch = StepBatch(x, targets, weights, units, result, raw=raw, index=index)
        if options.record == "logits":
            batch.logits = backend.empty((rows, network.widths[-1]), network.precision)
        return batch

    def _plan(self, rows: int) -> StepBatch:
        backend, batch = self.network.backend, self._batch
        if rows != self.batch_size:
            batch = batch.first_rows(rows, backend)
        if self.options.record:
            batch.record = batch.result["row_loss"].reshape(rows, 1)
            batch.record = batch.record if batch.logits is None else batch.logits
        if self.loss.options.reduction == "none" and not self.options.weighted:
            batch.upstream = 1.0 / rows  # the mean is learned; with weights, the sum
        planner = backend if self.options.deterministic else backend.in_any_order()
        batch.replay = planner.plan(partial(self._emit, batch=batch))
        return batch

    def _emit(self, backend: Backend, batch: StepBatch) -> None:
        raise NotImplementedError


class GradientStep(BatchStep):
    """A step that computes the gradient of a batch's loss.

    Attributes
    ----------
    gradient : (layout.size,) array
        Flat buffer of the last step's gradient, without L2 and clipping (with L2 if both are on; on
        a GPU times the loss's scale).
    grad_W : list of arrays
        Views into it, one for each layer.
    grad_b : list of arrays
        Views into it, one for each layer.
    """

    backward = True

    def _emit(self, backend: Backend, batch: StepBatch) -> None:
        if not self.options.whole:
            self.source.emit(backend, batch)
        gradient = self.grad_W, self.grad_b
        emit_gradients(backend, self.loss, batch, self.parameters, gradient)
