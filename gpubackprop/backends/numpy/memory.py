"""The memory of the host: what moves arrays to a GPU and back does next to nothing here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.memory import Memory
from gpubackprop.backends.numpy.blocks import aligned_empty

Array = np.ndarray


class HostMemory(Memory):
    """The memory operations of `NumpyBackend`."""

    asynchronous = False  # results are there when an operation returns
    converts_rows = False  # gather_rows of another dtype would take temporaries

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

    def is_device_array(self, array: Any) -> bool:
        return False

    def to_host(self, array: Array) -> Array:
        return array

    def from_host(self, host: Array, out: Array) -> None:
        if host is not out:
            np.copyto(out, host)

    def copy(self, source: Array, out: Array) -> None:
        np.copyto(out, source)

    def fill(self, array: Array, value: float) -> None:
        array.fill(value)

    def all_finite(self, x: Array) -> bool:
        return bool(np.isfinite(x).all())

    def check_labels(self) -> None:
        pass  # they are checked before they get here
