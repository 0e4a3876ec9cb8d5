"""A step that several ranks do together: each computes its rows of the batch, the sums are added.

The batch, its order and its weights are those of one process: every rank draws the same shuffle,
takes its part of each batch, and knows the divisor of the mean from all targets. So a rank's loss
and gradient are sums over its rows, already divided by the divisor of the whole batch, and one sum
over the ranks makes them the batch's. The update is then the same on every rank.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, Total
from gpubackprop.distributed import Communicator
from gpubackprop.errors import OptionError
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.optimizers import Optimizer
from gpubackprop.passes import emit_step
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import Source, StepBatch
from gpubackprop.training.gradient_parts import (
    LOSS,
    NORM,
    STOP,
    GradientParts,
    padded,
    parts_of,
)
from gpubackprop.training.gradient_sum import GradientSum
from gpubackprop.training.step import Regularization, StepOptions, StepState, TrainStep

Array = Any  # an array of the network's device
TAIL = 32  # elements behind the gradient, of which LOSS and STOP are used: it stays aligned


@dataclass(frozen=True)
class Share:
    """This rank's rows of a batch.

    Attributes
    ----------
    rows : (n,) int array
        Their numbers; those of one row if this rank has none.
    weights : (n,) array or None
        Their weights, divided by the mean weight of the whole batch.
    count : int
        Rows of the whole batch, which `len` returns.
    """

    rows: Array
    weights: Array | None
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Order:
    """The order of an epoch; a slice of it, which is a batch, gives this rank's share.

    Attributes
    ----------
    ranks : Communicator
        The ranks.
    rows : (N,) int array
        All row numbers, where the step reads them.
    weights : (N,) array or None
        As in `Share`, for all rows.
    """

    ranks: Communicator
    rows: Array
    weights: Array | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: slice) -> Share:
        rows = self.rows[batch]
        part = self.ranks.part(len(rows))
        part = slice(part.start, part.stop) if part.stop > part.start else slice(0, 1)
        weights = None if self.weights is None else self.weights[batch][part]
        return Share(rows[part], weights, len(rows))


class SharedSource(Source):
    """A source whose batches are shares."""

    def put_rows(self, rows: Share, batch: StepBatch) -> None:
        super().put_rows(rows.rows, batch)


class SharedStep(TrainStep):
    """One update of all parameters from a batch that lies in parts on several ranks.

    `batch_size` and `data` are those of the whole training; `parameters` and, if no rank has a part
    alone, `slots` and after an update `gradient` are the same on all ranks. `totals` are this
    rank's own.

    Parameters
    ----------
    ranks : Communicator
        The ranks, for arrays of the network's device.
    network, loss, data, batch_size, optimizer, regularization, options
        As for `TrainStep`.
    sharded : bool
        Whether this rank has the slots of its part of the parameters alone, and updates that part,
        see `gradient_parts`.

    Attributes
    ----------
    all_parts : sequence of slice
        The parts of all ranks; empty if every rank has all slots.
    asks_to_stop : bool
        Whether this rank asks, with the next update, that all stop.
    stopped : bool
        Whether a rank had asked with the last update. Only on the host.
    sum : GradientSum
        How the gradient is added up.
    """

    def __init__(
        self,
        ranks: Communicator,
        network: MLP,
        loss: Loss,
        data: Batches,
        batch_size: int,
        optimizer: Optimizer,
        regularization: Regularization,
        options: StepOptions | None = None,
        sharded: bool = False,
    ) -> None:
        size = network.layout.size
        self.all_parts = parts_of(size, ranks.size) if sharded else []
        self.part = self.all_parts[ranks.rank] if sharded else None
        self.tail = padded(size, ranks.size) - size if sharded else TAIL
        self.ranks, self.parts, self._data = ranks, ranks.size, data
        self.asks_to_stop = self.stopped = False
        self._summed = copy.copy(loss)
        self._summed.options = replace(loss.options, reduction="sum")
        self._sample, self._counted = _weights_by_row(data, loss, network.widths[-1])
        options = replace(options or StepOptions(), weighted=self._counted is not None)
        source = SharedSource(network, replace(data, sample_weight=None))
        super().__init__(network, loss, source, batch_size, optimizer, regularization, options)
        self.sum: GradientSum
        if sharded:
            self.sum = parts = GradientParts(ranks, self._flat, network.layout, network.backend)
            self._figures = parts.figures
            self.updater.agree_by(self._figures[NORM:], parts.emit_figures)
        else:
            self.sum = GradientSum(ranks, self._flat, network.layout)
            self._figures = self._flat[size:]
        self._loss = self._figures[LOSS : LOSS + 1].reshape(())

    @property
    def data(self) -> Batches:
        return self._data

    def __reduce__(self) -> tuple[Any, ...]:
        network, loss, _, *others = super().__reduce__()[1]
        state = super().__reduce__()[2]
        made_from = (self.ranks, network, loss, self._data, *others, bool(self.all_parts))
        return type(self), made_from, state

    def snapshot(self) -> StepState:
        if self.all_parts:
            raise OptionError(
                "a trainer of whose optimizer each rank has a part cannot be copied or pickled; "
                "write a checkpoint, which has it whole"
            )
        return super().snapshot()

    def place(self, order: np.ndarray) -> Order:
        """Return an epoch's order, of which slices are this rank's shares."""
        weights = None
        if self._counted is not None:
            weights = self._weights_of(order).astype(self.network.dtype)
            weights = self.network.backend.place(weights, self.network.dtype)
        return Order(self.ranks, super().place(order), weights)

    def _weights_of(self, order: np.ndarray) -> np.ndarray:
        """Return each row's weight, divided by the mean weight of its batch."""
        assert self._counted is not None
        sample = np.ones(len(order)) if self._sample is None else self._sample[order]
        if self.loss.options.reduction == "sum":
            return sample
        starts = np.arange(0, len(order), self.batch_size)
        sums = np.add.reduceat(self._counted[order], starts)
        counts = np.diff([*starts, len(order)])
        return np.asarray(sample * np.repeat(counts / sums, counts))

    def update(
        self, rows: Share, lr: float, weights: Array | None = None, l2: float | None = None
    ) -> StepBatch:
        """Train on a batch: `rows` is this rank's share of it. All ranks call this."""
        on_host = not self.network.backend.asynchronous
        if on_host:
            self._figures[STOP] = self.asks_to_stop
        batch = super().update(rows, lr, rows.weights, l2)
        if on_host:
            self.stopped = self._figures[STOP] > 0
            if not math.isfinite(self._loss) and self.totals[Total.BAD_STEP] < 0:
                self.totals[Total.BAD_STEP] = self.totals[Total.STEPS] - 1
        return batch

    def totals_of_all(self) -> np.ndarray:
        """Return the totals of all ranks' rows. All ranks call this."""
        return totals_of_all(self.ranks, self.read_totals())

    def _plan(self, rows: int) -> StepBatch:
        """Return the plan for a batch of so many rows, of which this rank has some or none."""
        backend, part = self.network.backend, self.ranks.part(rows)
        own = part.stop - part.start
        batch = self._batch.first_rows(max(1, own), backend)
        units = batch.units
        units.dropout = [each and replace(each, first_row=part.start) for each in units.dropout]
        planner = backend if self.options.deterministic else backend.in_any_order()
        batch.replay = planner.plan(lambda recorder: self._emit_part(recorder, batch, rows, own))
        return batch

    def _emit_part(self, backend: Backend, batch: StepBatch, rows: int, own: int) -> None:
        """Issue the step of a batch of `rows` rows, of which `own` are this rank's.

        A rank without a row computes one of the others', whose loss and delta are divided by
        infinity.
        """
        summed = self.loss.options.reduction == "sum"
        divisor = math.inf if not own else 1.0 if summed else float(rows)
        scale = self.updater.upstream
        batch.upstream = 1.0 / divisor
        if scale is not None:
            batch.upstream = backend.zeros((), self.network.dtype)
            backend.divide(scale, divisor, batch.upstream)
        penalty = self.updater.penalty(backend, rows if summed else 1)
        self.source.emit(backend, batch)

        def write_loss(backend: Backend) -> None:
            backend.divide(batch.result["loss"], divisor, self._loss)

        together, final = self.sum.emitters(write_loss)
        gradient = self.grad_W, self.grad_b
        emit_step(
            backend, self._summed, batch, self.parameters, gradient, self.updater, together, final
        )
        if self.all_parts:
            self.ranks.emit_allgather(backend, self.network.parameters, self.all_parts)
            if self.half_copy is not None:
                backend.round_to_storage(self.network.parameters, self.half_copy, None)
        if own:
            self.running.emit(backend, batch, summed=True, penalty=penalty)


def totals_of_all(ranks: Communicator, totals: np.ndarray) -> np.ndarray:
    """Return the running totals of all ranks; all of them call this.

    Parameters
    ----------
    ranks : Communicator
        The ranks.
    totals : (Total.SIZE,) float64 array
        This rank's.

    Returns
    -------
    (Total.SIZE,) float64 array
        Sums over the ranks, in their order; the most steps, and the first bad step.
    """
    each = np.array(ranks.gather(totals.tolist()))
    together = np.add.reduce(each, 0)
    together[Total.STEPS] = each[:, Total.STEPS].max()
    bad = each[:, Total.BAD_STEP]
    together[Total.BAD_STEP] = bad[bad >= 0].min(initial=np.inf)
    if not np.isfinite(together[Total.BAD_STEP]):
        together[Total.BAD_STEP] = -1
    return together


def _weights_by_row(
    data: Batches, loss: Loss, units: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return, for each row of x, its sample weight and its term in the divisor of a mean.

    Both are None if the divisor is the number of rows.
    """
    options = loss.options
    by_class = options.class_weight is not None and data.targets.ndim == 1
    by_unit = options.reduction == "elementwise_mean"
    if data.sample_weight is None and not by_class and not by_unit:
        return None, None
    counted = np.zeros(len(data.x))
    counted[data.order(None)] = data.row_weights(loss) * (units if by_unit else 1)
    sample = data.sample_weight
    return None if sample is None else sample.astype(np.float64), counted
