"""The memory operations of the CUDA backend: the twins of `gpubackprop.backends.numpy.memory`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.memory import INPUT_DTYPES, Memory
from gpubackprop.dtypes import compute_dtype
from gpubackprop.errors import ShapeError

Array = Any  # cupy.ndarray


class DeviceMemory:
    """The memory operations of `CupyBackend`."""

    asynchronous = True  # reading a result waits for the device
    converts_rows = True  # gather_rows converts on the way

    memory: Memory
    sum_of_squares: Callable[[Array, Array], None]
    _issue: Callable[..., None]
    _labels: list[bool]

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Uninitialised array of the device, aligned to 128 bytes and more."""
        return self.memory.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.memory.full(shape, 0, dtype)

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """C-contiguous array of the device: itself, or a view of CUDA memory, or a copy.

        `array` is NumPy's or whatever NumPy takes, CuPy's, or has __cuda_array_interface__ or
        DLPack. What lies on another GPU is an error.
        """
        return self.memory.asarray(array, dtype)

    def inputs(self, x: Any, dtype: Any) -> Array:
        """`x` in that dtype, on the device."""
        return self.memory.asarray(x, dtype)

    def place(self, array: Any, dtype: Any) -> Array | None:
        """Targets or weights on the device, in the dtype that the kernels want."""
        return None if array is None else self.memory.asarray(array, dtype)

    def place_inputs(self, x: Any, dtype: Any) -> Array:
        """All rows of x on the device, of a dtype that `gather_rows` reads: its own, or `dtype`."""
        return self.memory.asarray(x, None if x.dtype.name in INPUT_DTYPES else dtype)

    def is_device_array(self, array: Any) -> bool:
        return self.memory.is_device_array(array)

    def to_host(self, array: Array) -> np.ndarray:
        """A copy as a NumPy array. Waits, and so reports labels that were out of range."""
        host = self.memory.read(array)
        self.check_labels()
        return host

    def from_host(self, host: np.ndarray, out: Array) -> None:
        """out = host, queued; `host` may be changed afterwards."""
        self.memory.write(host, out)

    def fill(self, array: Array, value: float) -> None:
        """Every element of `array` = value, queued."""
        self._issue(array.fill, value)

    def copy(self, source: Array, out: Array) -> None:
        """out = source, both contiguous arrays of one dtype on this device."""
        if source.shape != out.shape or source.dtype != out.dtype or not source.size:
            if source.shape != out.shape or source.dtype != out.dtype:
                raise ShapeError(
                    f"a copy from {source.dtype} {source.shape} to {out.dtype} {out.shape}"
                )
            return
        self._issue(out.data.copy_from_device_async, source.data, source.nbytes)

    def all_finite(self, x: Array) -> bool:
        """Whether no element of the flat array is NaN or infinite. Waits."""
        out = self.memory.scratch("finite", (2,), compute_dtype(x.dtype))
        self.sum_of_squares(x, out)
        return bool(self.to_host(out)[1] == 0)

    def labels_used(self) -> None:
        self._labels[0] = True

    def check_labels(self) -> None:
        """TargetRangeError where a loss has met a label outside [0, K); waits if one could have."""
        if self._labels[0]:
            self._labels[0] = False
            self.memory.raise_bad_label()
