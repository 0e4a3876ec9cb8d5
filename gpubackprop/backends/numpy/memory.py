"""Host memory. The transfer operations (to_host, from_host, place) do next to nothing here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.arrays import as_host
from gpubackprop.backends.memory import Memory, RowCursor, Staging
from gpubackprop.backends.numpy.blocks import aligned_empty
from gpubackprop.backends.numpy.calls import HostRows

Array = np.ndarray


class _Direct(Staging):
    """Fills the arrays themselves."""

    def put(self, fill: Callable[[Array], None], out: Array) -> None:
        fill(out)


class HostMemory(Memory):
    """The memory operations of `NumpyBackend`."""

    _call: Callable[..., None]

    asynchronous = False  # an operation returns when its result is there
    converts_rows = False  # gather_rows to another dtype takes temporaries

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        shape = (shape,) if isinstance(shape, int) else shape
        return aligned_empty(math.prod(shape), dtype).reshape(shape)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        return np.ascontiguousarray(array, dtype).reshape(np.shape(array))

    def inputs(self, x: Any, dtype: Any) -> Array:
        return x.astype(dtype, copy=False)

    def place(self, array: Array | None, dtype: Any) -> Any:
        return array

    def place_inputs(self, x: Array, dtype: Any) -> Array:
        return x

    def has_room(self, nbytes: int) -> bool:
        return True

    def staging(self, shape: tuple[int, ...], dtype: Any) -> Staging:
        return _Direct()

    def row_cursor(self) -> RowCursor:
        return HostRows()

    def is_device_array(self, array: Any) -> bool:
        return False

    def to_host(self, array: Array) -> Array:
        return array

    def from_host(self, host: Array, out: Array) -> None:
        if host is not out:
            np.copyto(out, host)

    def copy(self, source: Array, out: Array) -> None:
        out[...] = source  # half the time of np.copyto for few numbers

    def fill(self, array: Array, value: float) -> None:
        array.fill(value)

    def all_finite(self, x: Array) -> bool:
        return bool(np.isfinite(x).all())

    def check_labels(self) -> None:
        pass  # labels are checked before they get here

    # -- for `gpubackprop.ops` --------------------------------------------------------------------

    def new(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def as_ndarray(self, values: Any, dtype: Any = None) -> Array:
        return as_host(values, dtype)

    def is_ndarray(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def overlap(self, a: Array, b: Array) -> bool:
        return np.may_share_memory(a, b)

    def same_start(self, a: Array, b: Array) -> bool:
        return bool(a.__array_interface__["data"][0] == b.__array_interface__["data"][0])

    def values(self, array: Array, check: bool) -> np.ndarray | None:
        return array

    def source(self, array: Array, dtype: Any) -> Array:
        return array if array.dtype is dtype else array.astype(dtype, copy=False)

    def target(self, out: Array, source: Array) -> Array:
        return out if out.dtype == source.dtype else source

    def store(self, work: Array, out: Array) -> None:
        if work is not out:
            self._call(np.copyto, out, work)  # overflow to infinity is no warning

    def factor(self, array: Array) -> Array:
        return array

    def summand(self, array: Array, dtype: Any) -> Array:
        return np.ascontiguousarray(array, dtype)

    def loss_inputs(self, dtype: Any, logits: Array, targets: Array, *weights: Any) -> Any:
        return logits, targets, *weights  # it takes 16-bit types on either side

    def loss_outputs(self, rows: int, dtype: Any) -> dict[str, Array]:
        return {"loss": np.empty((), dtype)}

    def count(self, flags: Array) -> Any:
        return np.count_nonzero(flags)
