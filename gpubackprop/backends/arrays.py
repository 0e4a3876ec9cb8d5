"""The memory in which an array is, and views of it for NumPy and CuPy.

CuPy is imported at the first array that is on a GPU, never before.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

_HOST = (np.ndarray, np.generic, list, tuple, int, float, str)
ANYWHERE = (int, float, type(None))  # these are in no memory and go with arrays of any memory
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def on_gpu(array: Any) -> bool:
    """Return whether `array` is CuPy's or shows CUDA memory by its interface or DLPack.

    The interface is __cuda_array_interface__.
    """
    if array is None or isinstance(array, _HOST):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in _DLPACK_CUDA


def as_cupy(array: Any) -> Any:
    """Return a GPU's array as a CuPy array: itself, or a view. Nothing is copied."""
    from gpubackprop.backends.cupy.library import explained, import_cupy

    cupy = import_cupy()
    if isinstance(array, cupy.ndarray):
        return array
    with explained(cupy, "an array of the device"):
        if hasattr(array, "__cuda_array_interface__"):
            return cupy.asarray(array)
        return cupy.from_dlpack(array)


def as_host(values: Any, dtype: Any = None) -> np.ndarray:
    """Return `np.asarray` of the values.

    A CPU tensor of PyTorch is taken by DLPack: `Tensor.numpy` would forbid that the tensor's
    storage is ever resized.
    """
    if type(values).__module__.partition(".")[0] == "torch" and hasattr(values, "__dlpack__"):
        with suppress(BufferError, RuntimeError):  # then np.asarray raises PyTorch's own error
            values = np.from_dlpack(values)
    return np.asarray(values, dtype)
