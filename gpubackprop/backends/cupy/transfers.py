"""The memory operations of the CUDA backend: the twins of `gpubackprop.backends.numpy.memory`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.memory import INPUT_DTYPES, Memory
from gpubackprop.backends.memory import Memory as MemoryOperations
from gpubackprop.dtypes import compute_dtype
from gpubackprop.errors import ShapeError

Array = Any  # cupy.ndarray


class DeviceMemory(MemoryOperations):
    """The memory operations of `CupyBackend`."""

    asynchronous = True  # reading a result waits for the device
    converts_rows = True  # gather_rows converts on the way

    memory: Memory
    sum_of_squares: Callable[[Array, Array], None]
    _issue: Callable[..., None]
    _labels: list[bool]

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.memory.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.memory.full(shape, 0, dtype)

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        return self.memory.asarray(array, dtype)

    def inputs(self, x: Any, dtype: Any) -> Array:
        return self.memory.asarray(x, dtype)

    def place(self, array: Any, dtype: Any) -> Array:
        return None if array is None else self.memory.asarray(array, dtype)

    def place_inputs(self, x: Any, dtype: Any) -> Array:
        return self.memory.asarray(x, None if x.dtype.name in INPUT_DTYPES else dtype)

    def is_device_array(self, array: Any) -> bool:
        return self.memory.is_device_array(array)

    def to_host(self, array: Array) -> np.ndarray:
        host = self.memory.read(array)
        self.check_labels()
        return host

    def from_host(self, host: np.ndarray, out: Array) -> None:
        self.memory.write(host, out)

    def fill(self, array: Array, value: float) -> None:
        self._issue(array.fill, value)

    def copy(self, source: Array, out: Array) -> None:
        if source.shape != out.shape or source.dtype != out.dtype or not source.size:
            if source.shape != out.shape or source.dtype != out.dtype:
                raise ShapeError(
                    f"a copy from {source.dtype} {source.shape} to {out.dtype} {out.shape}"
                )
            return
        self._issue(out.data.copy_from_device_async, source.data, source.nbytes)

    def all_finite(self, x: Array) -> bool:
        out = self.memory.scratch("finite", (2,), compute_dtype(x.dtype))
        self.sum_of_squares(x, out)
        return bool(self.to_host(out)[1] == 0)

    def labels_used(self) -> None:
        self._labels[0] = True

    def check_labels(self) -> None:
        if self._labels[0]:
            self._labels[0] = False
            self.memory.raise_bad_label()
