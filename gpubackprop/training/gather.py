"""The source of a step's batches: arrays of the network's device, or a memory map of the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.numpy.calls import gather_rows
from gpubackprop.network import MLP
from gpubackprop.passes import Batch, PassUnits
from gpubackprop.training.batches import Batches, gathered_dtype

Array = Any  # an array of the network's device


@dataclass(eq=False)
class StepBatch(Batch):
    """A batch of a step, and its plan.

    Attributes
    ----------
    raw : array
        The gathered x before its conversion; x itself if there is none.
    index : (N,) int array or None
        Where a GPU reads the numbers of the rows; None on the CPU.
    record : (N, 1) or (N, K) array
        Loss or logits of each row, as `StepOptions.record` says.
    replay : callable
        Runs the plan.
    """

    raw: Array = None
    index: Array | None = None
    record: Array | None = None
    replay: Callable[[], None] = lambda: None

    def first_rows(self, rows: int, backend: Backend) -> StepBatch:
        """Return the same memory as a smaller batch."""
        cut = copy.copy(self)
        for name in ("index", "x", "targets", "weights", "logits"):
            array = getattr(self, name)
            setattr(cut, name, None if array is None else array[:rows])
        cut.raw = cut.x if self.raw is self.x else self.raw[:rows]
        cut.units = self.units.first_rows(rows)
        cut.result = {
            name: array if array.ndim == 0 else array[:rows] for name, array in self.result.items()
        }
        if isinstance(cut.units, PassUnits):
            cut.result["delta"] = cut.units.delta[-1]
        # The scale is not shared: if it is 1 / rows for every batch, a plan fills it only once.
        cut.result["scale"] = backend.empty(rows, cut.result["scale"].dtype)
        return cut


class Source:
    """The rows that a step gathers, on the device of its network.

    On a GPU all rows are there, and an epoch's row numbers are copied there once. A memory map
    stays on the host: its batches are gathered there and copied, and the gathering may wait for the
    copy before.

    Attributes
    ----------
    data : Batches
        The rows; `load` may replace them by others of the same kind.
    x : array
        Where `emit` reads the inputs.
    targets : array
        Where `emit` reads the targets.
    sample_weight : array or None
        Where `emit` reads the weights.
    from_host : bool
        Whether the host gathers x for a GPU.
    """

    def __init__(self, network: MLP, data: Batches) -> None:
        self.backend, self.dtype, self._wide = network.backend, network.precision, network.dtype
        self.from_host = self.backend.asynchronous and isinstance(data.x, np.ndarray)
        self._rows = np.zeros(0, np.int64)  # the batch's row numbers, if the host gathers it
        self._mean = self._scale = None
        if data.standardizer is not None:
            self._mean = self.backend.asarray(data.standardizer.mean)
            self._scale = self.backend.asarray(data.standardizer.scale)
        self._place(data)

    def _place(self, data: Batches) -> None:
        place, labels = self.backend.place, data.targets.ndim == 1
        self.data, self.x = data, data.x
        self.targets = place(data.targets, np.int64 if labels else self._wide)
        self.sample_weight = place(data.sample_weight, self._wide)

    def load(self, data: Batches) -> bool:
        """Take batches from `data` from now on.

        Return True if recorded plans still read the former arrays and must be made anew. That is so
        on a GPU if these arrays cannot be overwritten.
        """
        before, targets = self.data, self.targets
        fits = self.backend.asynchronous and self.x.shape == data.x.shape
        if not fits or self.from_host or before.borrowed or data.sample_weight is not None:
            self._place(data)
            return bool(self.backend.asynchronous)
        self.backend.copy(data.x, self.x)
        self.backend.copy(self.backend.place(data.targets, targets.dtype), targets)
        return False

    def release(self) -> None:
        """Drop data that are on the host, until the next `load`."""
        if not self.backend.asynchronous:
            data = self.data
            self._place(Batches(data.x[:0].copy(), data.targets[:0].copy()))

    def place(self, order: np.ndarray) -> Array:
        """Return an epoch's row numbers in the form of which `put_rows` takes slices."""
        return order if self.from_host else self.backend.place(order, np.int64)

    def put_rows(self, rows: Array, batch: StepBatch) -> None:
        """Set the batch's rows; their numbers are on the host or on the device."""
        if batch.index is None:
            self._rows = rows
        elif isinstance(rows, np.ndarray):
            self._rows = rows
            self.backend.from_host(rows, batch.index)
        else:
            self.backend.copy(rows, batch.index)

    def buffers(self, rows: int) -> tuple[Array, Array]:
        """Return (x, raw): where the first product reads a batch, and where it is gathered.

        raw is x itself, or another array if the batch must be converted afterwards.
        """
        data, x = self.data, self.backend.empty((rows, self.x.shape[1]), self.dtype)
        standardized = data.standardizer is not None
        if not standardized and (data.x.dtype == self.dtype or self.backend.converts_rows):
            return x, x
        dtype = data.x.dtype
        if self.backend.asynchronous:
            dtype = np.dtype(np.float64) if self.from_host else gathered_dtype(dtype)
        return x, self.backend.empty(x.shape, dtype)

    def whole(self) -> Array:
        """Return all rows of x in their place, as the first product reads them."""
        return self.x

    def emit(self, backend: Backend, batch: StepBatch) -> None:
        """Issue the gathering of a batch: its inputs, targets, and weights if the data have them.

        The inputs are converted and standardised.
        """
        raw, index = batch.raw, batch.index
        if index is None:  # the call reads them when it runs: `load` and `put_rows` copy nothing
            backend.call(self._gather, batch)
        else:
            if self.from_host:
                backend.call(self._copy_batch, raw)
            else:
                backend.gather_rows(self.x, index, raw)
            backend.gather_rows(self.targets, index, batch.targets)
            if self.sample_weight is not None:
                backend.gather_rows(self.sample_weight, index, batch.weights)
        if self.data.standardizer is None:
            if raw is not batch.x:
                backend.gather_rows(raw, None, batch.x)
        else:
            backend.standardize(raw, self._mean, self._scale, batch.x)

    def _gather(self, batch: StepBatch) -> None:
        """The batch's rows on the host, from the data that are loaded now."""
        self.put_x(batch.raw, self._rows)
        gather_rows(self.targets, self._rows, batch.targets)
        if self.sample_weight is not None and batch.weights is not None:
            gather_rows(self.sample_weight, self._rows, batch.weights)

    def put_x(self, raw: Array, rows: np.ndarray) -> None:
        """Set raw = these rows of x, on the host."""
        gather_rows(self.x, rows, raw)

    def _copy_batch(self, raw: Array) -> None:
        """Set raw = the rows of this batch of a memory map."""
        self.backend.from_host(self.x[self._rows].astype(raw.dtype, copy=False), raw)
