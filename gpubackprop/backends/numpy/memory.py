"""Arrays of the host: what brings arrays to a GPU and back does next to nothing here."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.numpy.blocks import aligned_empty

Array = np.ndarray


class HostMemory:
    """The memory operations of `NumpyBackend`."""

    asynchronous = False  # results are there when an operation returns
    converts_rows = False  # gather_rows of another dtype would take temporaries

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Uninitialised array, aligned to 128 bytes."""
        shape = (shape,) if isinstance(shape, int) else shape
        return aligned_empty(int(np.prod(shape, dtype=np.int64)), dtype).reshape(shape)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """C-contiguous, of `dtype`; `array` itself where it is that."""
        return np.ascontiguousarray(array, dtype).reshape(np.shape(array))

    def inputs(self, x: Any, dtype: Any) -> Array:
        """`x` in that dtype, in whatever order its elements are."""
        return x.astype(dtype, copy=False)

    def place(self, array: Array | None, dtype: Any) -> Array | None:
        """Targets or weights where the kernels read them, in the dtype that CUDA kernels want."""
        return array

    def place_inputs(self, x: Array, dtype: Any) -> Array:
        """All rows of x where batches are gathered from; `dtype`: what they are converted to."""
        return x

    def is_device_array(self, array: Any) -> bool:
        """Whether it lies on a GPU of this backend's; never."""
        return False

    def to_host(self, array: Array) -> Array:
        return array

    def from_host(self, host: Array, out: Array) -> None:
        """out = host; nothing where they are one."""
        if host is not out:
            np.copyto(out, host)

    def copy(self, source: Array, out: Array) -> None:
        np.copyto(out, source)

    def fill(self, array: Array, value: float) -> None:
        array.fill(value)

    def all_finite(self, x: Array) -> bool:
        """Whether no element is NaN or infinite."""
        return bool(np.isfinite(x).all())

    def check_labels(self) -> None:
        """Labels are checked before they get here."""
