"""The source of a step's batches: arrays of the network's device, or a memory map of the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.memory import RowCursor, Staging
from gpubackprop.backends.numpy.calls import gather_rows
from gpubackprop.data.coded import CodedInputs
from gpubackprop.network import MLP
from gpubackprop.passes import Batch, PassUnits
from gpubackprop.training.batches import Batches, empty_like, gathered_dtype

Array = Any  # an array of the network's device


@dataclass(eq=False)
class StepBatch(Batch):
    """A batch of a step, and its plan.

    Attributes
    ----------
    raw : array
        x as it is gathered, before it is converted; x itself if it need not be.
    index : (N,) int array or None
        Where numbers of the host come to a GPU; None on the CPU.
    record : (N, 1) or (N, K) array or None
        The loss or the logits of each row, as `StepOptions.record` says.
    replay : callable
        Runs the plan.
    spread : callable or None
        Issues forward pass, loss and backward pass of a batch whose rows are spread over the card
        (`gpubackprop.training.spread`).
    """

    raw: Array = None
    index: Array | None = None
    record: Array | None = None
    replay: Callable[[], None] = lambda: None
    spread: Callable[[Any], None] | None = None

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
        if isinstance(cut.units, PassUnits) and not cut.units.chunked:
            cut.result["delta"] = cut.units.delta[-1]
        # The scale is not shared: if it is 1 / rows for every batch, a plan fills it only once.
        cut.result["scale"] = backend.empty(rows, cut.result["scale"].dtype)
        return cut


class Source:
    """The rows that a step gathers, on the device of its network.

    On a GPU all rows lie there, and an epoch's row numbers are copied there once. A memory map
    stays with the host, and so does x that is too large: batches are gathered there, and each is
    copied while the step before computes.

    Attributes
    ----------
    data : Batches
        The rows; `load` exchanges them for others of the same kind.
    x : array
        The inputs that `emit` reads.
    targets : array
        The targets that `emit` reads.
    sample_weight : array or None
        The weights that `emit` reads.
    from_host : bool
        Whether the host gathers x for a GPU.
    cursor : RowCursor or None
        Where a GPU that has all rows finds the numbers of a batch's; None for others, and where the
        rows are spread: that step reads them in `StepBatch.index`.
    """

    def __init__(self, network: MLP, data: Batches) -> None:
        self.backend, self.dtype, self._wide = network.backend, network.precision, network.dtype
        self.from_host = self.backend.asynchronous and isinstance(data.x, np.ndarray)
        resident = self.backend.asynchronous and not self.from_host
        self.cursor: RowCursor | None = self.backend.row_cursor() if resident else None
        self.staging: Staging | None = None  # if the host gathers x for a GPU: see `buffers`
        self._rows = np.zeros(0, np.int64)  # the batch's row numbers, if the host gathers it
        self._mean = self._scale = None
        self._inputs: tuple[Any, Array] = None, None  # of these data: see `inputs`
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
        """Take the batches from these rows from now on; kind and dtypes are as before.

        Returns
        -------
        bool
            Whether plans must be made anew: on a GPU they read the arrays from before, unless the
            new rows could be copied there.
        """
        before, targets = self.data, self.targets
        fits = self.backend.asynchronous and self.x.shape == data.x.shape
        fits = fits and not isinstance(data.x, CodedInputs)
        if not fits or self.from_host or before.borrowed or data.sample_weight is not None:
            self._place(data)
            return bool(self.backend.asynchronous)
        self.backend.copy(data.x, self.x)
        self.backend.copy(self.backend.place(data.targets, targets.dtype), targets)
        self._inputs = None, self._inputs[1]
        return False

    def release(self) -> None:
        """Drop the references to data on the host, until the next `load`."""
        if not self.backend.asynchronous:
            data = self.data
            self._place(Batches(data.x[:0].copy(), data.targets[:0].copy()))

    def place(self, order: np.ndarray) -> Array:
        """Return an epoch's row numbers in the form of which `put_rows` takes slices."""
        return order if self.from_host else self.backend.place(order, np.int64)

    def put_rows(self, rows: Array, batch: StepBatch) -> None:
        """Set the batch's rows, whose numbers lie on the host or on the device."""
        if batch.index is None:
            self._rows = rows
            return
        if isinstance(rows, np.ndarray):
            self._rows = rows
            self.backend.from_host(rows, batch.index)
            rows = batch.index
            if self.staging is not None:
                self.staging.put(self._fill, batch.raw)
        if self.cursor is not None:
            self.cursor.put(rows)
        elif rows is not batch.index:
            self.backend.copy(rows, batch.index)

    def buffers(self, rows: int) -> tuple[Array, Array]:
        """Return (x, raw): what the first product reads, and where a batch is gathered.

        These are one array unless the batch must be converted or standardised after that.
        """
        if isinstance(self.x, CodedInputs):
            coded = empty_like(self.backend, self.x, rows)
            return coded, coded
        data, x = self.data, self.backend.empty((rows, self.x.shape[1]), self.dtype)
        raw, standardized = x, data.standardizer is not None
        if standardized or not (data.x.dtype == self.dtype or self.backend.converts_rows):
            dtype = data.x.dtype
            if self.backend.asynchronous:
                dtype = np.dtype(np.float64) if self.from_host else gathered_dtype(dtype)
            raw = self.backend.empty(x.shape, dtype)
        if self.from_host:
            self.staging = self.backend.staging(raw.shape, raw.dtype)
        return x, raw

    def whole(self) -> Array:
        """Return all rows of x, in place, as the first product reads them."""
        return self.x

    def inputs(self) -> Array:
        """Return all rows in the dtype of the first product, converted and standardised.

        It is x, or a copy on the GPU that is kept until other rows are loaded.
        """
        x, mean = self.x, self._mean
        if mean is None and x.dtype == self.dtype:
            return x
        if self._inputs[0] is not self.data:
            out = self._inputs[1]  # a plan may have its address
            if out is None or out.shape != x.shape:
                out = self.backend.empty(x.shape, self.dtype)
            raw = out
            if mean is not None:
                raw = self.backend.empty(x.shape, gathered_dtype(x.dtype))
            self.backend.gather_rows(x, None, raw)
            if mean is not None:
                self.backend.standardize(raw, mean, self._scale, out)
            self._inputs = self.data, out
        return self._inputs[1]

    def emit(self, backend: Backend, batch: StepBatch) -> None:
        """Issue the copies of the batch's rows: x, converted and standardised, targets, weights."""
        raw, index = batch.raw, batch.index
        if index is None:  # the call reads them when it runs: `load` and `put_rows` copy nothing
            backend.call(self._gather, batch)
        else:
            pairs = [(self.targets, batch.targets)]
            if isinstance(raw, CodedInputs):
                pairs += [(self.x.dense, raw.dense), (self.x.codes, raw.codes)]
            elif not self.from_host:  # else `put_rows` has brought them
                pairs.append((self.x, raw))
            if self.sample_weight is not None:
                pairs.append((self.sample_weight, batch.weights))
            backend.gather_batch(pairs, self.cursor or index)
        if self.data.standardizer is None:
            if raw is not batch.x:
                backend.gather_rows(raw, None, batch.x)
        else:
            backend.standardize(raw, self._mean, self._scale, batch.x)

    def _gather(self, batch: StepBatch) -> None:
        """Gather the batch's rows on the host, from the data that are loaded now."""
        self.put_x(batch.raw, self._rows)
        gather_rows(self.targets, self._rows, batch.targets)
        if self.sample_weight is not None and batch.weights is not None:
            gather_rows(self.sample_weight, self._rows, batch.weights)

    def put_x(self, raw: Array, rows: np.ndarray) -> None:
        """Gather these rows of x on the host."""
        if isinstance(raw, CodedInputs):
            gather_rows(self.x.dense, rows, raw.dense)
            gather_rows(self.x.codes, rows, raw.codes)
            return
        gather_rows(self.x, rows, raw)

    def _fill(self, host: np.ndarray) -> None:
        """Set host = the rows of this batch, which a GPU does not hold."""
        host[...] = self.x[self._rows]
