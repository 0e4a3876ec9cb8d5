"""The source of a step's batches: arrays of the network's device, or a memory map of the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.numpy.calls import gather_rows
from gpubackprop.network import MLP
from gpubackprop.passes import Batch
from gpubackprop.training.batches import Batches, gathered_dtype

Array = Any  # an array of the network's device


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

    def put_rows(self, rows: Array, index: Array | None) -> None:
        """Set the rows of the next batch; their numbers are on the host or on the device.

        `index` is the array in which a GPU reads them, None on the CPU.
        """
        if index is None:
            self._rows = rows
        elif isinstance(rows, np.ndarray):
            self._rows = rows
            self.backend.from_host(rows, index)
        else:
            self.backend.copy(rows, index)

    def buffer(self, rows: int) -> Array:
        """Return the array from which the first product reads a batch of x."""
        return self.backend.empty((rows, self.x.shape[1]), self.dtype)

    def raw_buffer(self, x: Array) -> Array:
        """Return the array into which the batch is gathered.

        It is `x` itself, or another one if the batch must be converted afterwards.
        """
        data = self.data
        standardized = data.standardizer is not None
        if not standardized and (data.x.dtype == self.dtype or self.backend.converts_rows):
            return x
        dtype = data.x.dtype
        if self.backend.asynchronous:
            dtype = np.dtype(np.float64) if self.from_host else gathered_dtype(dtype)
        return self.backend.empty(x.shape, dtype)

    def whole(self) -> Array:
        """Return all rows of x in their place, as the first product reads them."""
        return self.x

    def emit(self, backend: Backend, batch: Batch, raw: Array, index: Array | None) -> None:
        """Issue the gathering of a batch.

        That is x, converted and standardised (`raw` comes from `raw_buffer`), targets, and weights
        if the data have them.
        """
        if index is None:  # the call reads them when it runs: `load` and `put_rows` copy nothing
            backend.call(self._gather, batch, raw)
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

    def _gather(self, batch: Batch, raw: Array) -> None:
        """Gather the batch's rows on the host, from the data that are loaded now."""
        self.put_x(raw, self._rows)
        gather_rows(self.targets, self._rows, batch.targets)
        if self.sample_weight is not None and batch.weights is not None:
            gather_rows(self.sample_weight, self._rows, batch.weights)

    def put_x(self, raw: Array, rows: np.ndarray) -> None:
        """Set raw = these rows of x, on the host."""
        gather_rows(self.x, rows, raw)

    def _copy_batch(self, raw: Array) -> None:
        """Set raw = the rows of this batch of a memory map."""
        self.backend.from_host(self.x[self._rows].astype(raw.dtype, copy=False), raw)
