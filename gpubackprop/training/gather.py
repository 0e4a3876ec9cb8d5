"""Where a step's batches come from: arrays of the network's device, or a memory map of the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.network import MLP
from gpubackprop.training.batches import Batches, gathered_dtype

Array = Any  # of the network's device


class Source:
    """The rows that a step gathers, on the device of its network.

    On a GPU all rows lie there, and an epoch's row numbers are copied there once. A memory map
    stays with the host: its batches are gathered there and copied, which may wait for that copy.

    Attributes
    ----------
    data : the `Batches`. x, targets, sample_weight : where `emit_inputs` and the step read them.
    from_host : x is gathered by the host for a GPU.
    """

    def __init__(self, network: MLP, data: Batches) -> None:
        self.backend, self.dtype, self.data = network.backend, network.precision, data
        self.x = data.x
        self.from_host = self.backend.asynchronous and isinstance(data.x, np.ndarray)
        labels = data.targets.ndim == 1
        self.targets = self.backend.place(data.targets, np.int64 if labels else network.dtype)
        self.sample_weight = self.backend.place(data.sample_weight, network.dtype)
        self._rows = np.zeros(0, np.int64)  # of the batch, where the host gathers it
        self._mean = self._scale = None
        if data.standardizer is not None:
            self._mean = self.backend.asarray(data.standardizer.mean)
            self._scale = self.backend.asarray(data.standardizer.scale)

    def place(self, order: np.ndarray) -> Array:
        """An epoch's row numbers as `put_rows` takes slices of them."""
        return order if self.from_host else self.backend.place(order, np.int64)

    def put_rows(self, rows: Array, index: Array) -> None:
        """index = rows, which lie on the host or on the device."""
        if self.backend.asynchronous and isinstance(rows, np.ndarray):
            self._rows = rows
            self.backend.from_host(rows, index)
        else:
            self.backend.copy(rows, index)

    def raw_buffer(self, rows: int, x: Array) -> Array:
        """Where the batch is gathered: `x` itself, or apart if it must be converted after that."""
        data, columns = self.data, x.shape[1]
        standardized = data.standardizer is not None
        if not standardized and (data.x.dtype == self.dtype or self.backend.converts_rows):
            return x
        dtype = data.x.dtype
        if self.backend.asynchronous:
            dtype = np.dtype(np.float64) if self.from_host else gathered_dtype(dtype)
        return self.backend.empty((rows, columns), dtype)

    def emit_inputs(self, backend: Backend, index: Array, raw: Array, x: Array) -> None:
        """Issue x = the rows of this batch, converted and standardised; `raw` from `raw_buffer`."""
        if self.from_host:
            backend.call(self._copy_batch, raw)
        else:
            backend.gather_rows(self.x, index, raw)
        if self.data.standardizer is None:
            if raw is not x:
                backend.gather_rows(raw, None, x)
        else:
            backend.standardize(raw, self._mean, self._scale, x)

    def _copy_batch(self, raw: Array) -> None:
        """raw = the rows of this batch of a memory map."""
        self.backend.from_host(self.x[self._rows].astype(raw.dtype, copy=False), raw)
