"""Which memory an array lies in, and views of it for NumPy and CuPy.

CuPy is imported at the first array that lies on a GPU, never before.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

_HOST = (np.ndarray, np.generic, list, tuple, int, float, str)
ANYWHERE = (int, float, type(None))  # they lie in no memory, and go with arrays of any
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def on_gpu(array: Any) -> bool:
    """Whether `array` is CuPy's, or offers CUDA memory by __cuda_array_interface__ or DLPack."""
    if array is None or isinstance(array, _HOST):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in _DLPACK_CUDA


def as_cupy(array: Any) -> Any:
    """The CuPy array of what `on_gpu` is true for: itself, or a view. Nothing is copied."""
    from gpubackprop.backends.cupy.library import explained, import_cupy

    cupy = import_cupy()
    if isinstance(array, cupy.ndarray):
        return array
    with explained(cupy, "an array of the device"):
        if hasattr(array, "__cuda_array_interface__"):
            return cupy.asarray(array)
        return cupy.from_dlpack(array)


def as_host(values: Any, dtype: Any = None) -> np.ndarray:
    """`np.asarray`; a CPU tensor of PyTorch's by DLPack, because `Tensor.numpy` forbids for good
    that the tensor's storage is resized."""
    if type(values).__module__.partition(".")[0] == "torch" and hasattr(values, "__dlpack__"):
        with suppress(BufferError, RuntimeError):  # NumPy's way then has PyTorch's own error
            values = np.from_dlpack(values)
    return np.asarray(values, dtype)
