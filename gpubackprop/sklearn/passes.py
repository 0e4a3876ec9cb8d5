"""A batch's loss and gradient, and the update: planned once for a number of rows, then replayed.

The steps of `gpubackprop.training` keep a running loss and gather from data that lie where they lay
when the plan was made. Here every row's loss is recorded for the solver, which reports it as
scikit-learn does, and the data may change from one `partial_fit` to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from gpubackprop.backends import Backend, LossOptions
from gpubackprop.network import IDENTITY, MLP, PassBuffers, emit_backward, emit_forward
from gpubackprop.sklearn.host import SparseBatch
from gpubackprop.sklearn.objective import Objective

Array = Any  # of the network's device
KEPT_BATCHES = 16  # plans for different numbers of rows
ROW_LOSSES = LossOptions(reduction="none")


@dataclass
class Rows:
    """Rows to learn from, on the network's device and in its dtype.

    Attributes
    ----------
    x : (N, D_0) array, or a CSR matrix. targets : (N,) int64 class numbers, or (N, K).
    borrowed : x is the caller's own array of a GPU, which nothing may be written to.
    """

    x: Any
    targets: Array
    borrowed: bool = False

    def __len__(self) -> int:
        return int(self.x.shape[0])


@dataclass
class Batch:
    """One batch's arrays and the plan over them.

    Attributes
    ----------
    index : where a GPU reads its row numbers; None on the CPU, or where all rows are used.
    weights : (rows,) factors on the losses of the rows, or None for 1 / rows.
    record : (rows, record_width) losses of the rows, times these weights, or logits.
    """

    x: Any
    targets: Array
    index: Array | None
    weights: Array | None
    record: Array
    replay: Callable[[], None]


class Passes:
    """Plans of forward, loss and backward pass, and of the update where there is an updater.

    Parameters
    ----------
    network : `MLP`. objective : its loss.
    data : `Rows`; others of the same kind and width may take their place with `load`.
    batch_rows : rows of the largest batch. weighted : `run` is given weights of the rows.
    gradient : (layout.size,) flat; of the mean loss, without the L2 penalty.
    updater : updates network.parameters from `gradient` after each pass; None: they stay.
    random : (2,) uint64 {seed, step} on the device, for passes with dropout; None: without.
    rounded : (view of the parameters, array of a narrower dtype) that each update is rounded to.

    Attributes
    ----------
    squares : sum of the squared weights in the last pass; see `NumpyBackend.sum_of_squares`.
    """

    def __init__(
        self,
        network: MLP,
        objective: Objective,
        data: Rows,
        batch_rows: int,
        *,
        weighted: bool,
        gradient: Array,
        updater: Any = None,
        random: Array | None = None,
        rounded: Sequence[tuple[Array, Array]] = (),
    ) -> None:
        self.network, self.objective, self.data = network, objective, data
        self.batch_rows, self.weighted = batch_rows, weighted
        self.loss = objective.loss(weighted)
        self.gradient, self.updater, self.rounded = gradient, updater, rounded
        backend, dtype = network.backend, network.dtype
        self.squares = backend.zeros(2, dtype) if backend.asynchronous else np.zeros(())
        self._passes = PassBuffers(network, batch_rows, separate=False, random=random)
        self._targets = backend.empty((batch_rows, *data.targets.shape[1:]), data.targets.dtype)
        self._x: Any = SparseBatch()
        if not sparse.issparse(data.x):
            self._x = backend.empty((batch_rows, network.widths[0]), dtype)
        self._batches: dict[tuple[int, bool], Batch] = {}

    def load(self, data: Rows) -> None:
        """The batches are rows of `data` from now on."""
        backend, old = self.network.backend, self.data
        if backend.asynchronous and old.x.shape == data.x.shape and not old.borrowed:
            backend.copy(data.x, old.x)
            backend.copy(data.targets, old.targets)
            return
        if backend.asynchronous:
            self._batches.clear()  # they gather from the arrays of before
        self.data = data

    def release(self) -> None:
        """Let go of data that lie on the host, until the next `load`."""
        if not self.network.backend.asynchronous:
            self.data = Rows(self.data.x[:0].copy(), self.data.targets[:0].copy())

    def run(self, rows: Array, weights: Array | None = None) -> Array:
        """One pass over these row numbers (on the device), with these weights; the record."""
        batch = self._batch(len(rows), gather=True)
        if batch.index is not None:
            self.network.backend.copy(rows, batch.index)
        else:
            self.data.targets.take(rows, 0, batch.targets, "clip")  # "raise" would buffer
            if isinstance(batch.x, SparseBatch):
                batch.x.matrix = self.data.x[rows]
            else:
                self.data.x.take(rows, 0, batch.x, "clip")
        return self._replay(batch, weights)

    def run_all(self, weights: Array | None = None) -> Array:
        """One pass over all rows where they lie, with these weights; the record."""
        count = len(self.data)
        batch = self._batch(count, gather=False)
        if isinstance(batch.x, SparseBatch):
            batch.x.matrix = self.data.x
        return self._replay(batch, weights)

    def _batch(self, rows: int, *, gather: bool) -> Batch:
        """The batch of so many rows; those that were used last are kept."""
        batch = self._batches.pop((rows, gather), None) or self._plan(rows, gather=gather)
        self._batches[rows, gather] = batch
        if len(self._batches) > KEPT_BATCHES:
            del self._batches[next(iter(self._batches))]
        return batch

    def _replay(self, batch: Batch, weights: Array | None) -> Array:
        if weights is not None:
            self.network.backend.copy(weights, batch.weights)
        batch.replay()
        return batch.record

    def _plan(self, rows: int, *, gather: bool) -> Batch:
        backend, dtype = self.network.backend, self.network.dtype
        x, targets, index = self.data.x, self.data.targets, None
        if isinstance(self._x, SparseBatch):
            x = self._x
        elif gather:
            x = self._x[:rows]
        if gather:
            targets = self._targets[:rows]
            index = backend.zeros(rows, np.int64) if backend.asynchronous else None
        weights = backend.empty(rows, dtype) if self.weighted else None
        passes = self._passes if rows == self.batch_rows else self._passes.first_rows(rows)
        result = self.loss.buffers(backend, rows, dtype)
        record = result["row_loss"].reshape(rows, 1)
        if self.objective.records_logits:
            record = backend.empty((rows, self.objective.units), dtype)
        batch = Batch(x, targets, index, weights, record, lambda: None)
        batch.replay = backend.plan(lambda recorder: self._emit(recorder, batch, passes, result))
        return batch

    def _emit(
        self, backend: Backend, batch: Batch, passes: PassBuffers, result: dict[str, Array]
    ) -> None:
        network = self.network
        if batch.index is not None:
            backend.gather_rows(self.data.x, batch.index, batch.x)
            backend.gather_rows(self.data.targets, batch.index, batch.targets)
        emit_forward(backend, network, batch.x, passes, network.W, network.b)
        logits = passes.a[-1]
        if self.objective.records_logits:
            backend.activation_forward(logits, IDENTITY, batch.record)
        result = result | {"delta": passes.delta[-1]}
        if self.objective.out_activation == "softmax":  # without a sum that nobody reads
            share = 1.0 if self.weighted else 1.0 / len(batch.record)
            backend.softmax_cross_entropy(
                logits, batch.targets, ROW_LOSSES, result, batch.weights, share
            )
        else:
            self.loss.emit(backend, logits, batch.targets, result, batch.weights)
        gradients = network.layout.views(self.gradient)
        emit_backward(backend, network, batch.x, passes, network.W, *gradients)
        backend.sum_of_squares(network.parameters[: network.layout.weights_end], self.squares)
        if self.updater is not None:
            self.updater.emit(backend)
        for view, stored in self.rounded:
            backend.gather_rows(view, None, stored)
            backend.gather_rows(stored, None, view)
