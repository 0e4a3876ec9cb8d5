"""Backends: the same operations on NumPy arrays and on CuPy arrays.

>>> get("cpu").device
'cpu'
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.backends import devices
from gpubackprop.backends.base import Backend
from gpubackprop.backends.loss import LossOptions, Total
from gpubackprop.backends.numpy import NumpyBackend
from gpubackprop.backends.updater import LossScaling, Updater, UpdateRule

if TYPE_CHECKING:
    from gpubackprop.backends.cupy import CupyBackend

__all__ = [
    "HOST",
    "Backend",
    "LossOptions",
    "LossScaling",
    "NumpyBackend",
    "Total",
    "UpdateRule",
    "Updater",
    "backend_of",
    "get",
]


def get(device: str = "cpu") -> Backend:
    """A backend that computes on `device`: "auto", "cpu", "cuda" or "cuda:N".

    Its `reason` says in a line why "auto" took that one.

    Raises
    ------
    OptionError : no such name. DeviceUnavailable : CUDA was asked for and something is missing.
    """
    name, reason = (device, "") if device == "cpu" else devices.choose(device)
    backend: Backend = NumpyBackend()
    if name != "cpu":
        from gpubackprop.backends.cupy import CupyBackend

        backend = CupyBackend(int(re.sub(r"\D", "", name)))
    backend.reason = reason
    return backend


def backend_of(array: Any) -> Backend:
    """The backend for the memory of an ndarray of NumPy's or CuPy's; one object for each device."""
    return HOST if isinstance(array, np.ndarray) else cuda_backend_of(array)


def cuda_backend_of(array: Any) -> CupyBackend:
    """`backend_of` an ndarray of CuPy's."""
    from gpubackprop.backends.cupy.library import import_cupy

    return _cuda_backend(import_cupy(), int(array.device.id))


HOST = NumpyBackend()


@cache
def _cuda_backend(cupy: Any, index: int) -> CupyBackend:
    from gpubackprop.backends.cupy import CupyBackend

    return CupyBackend(index)


def unpickled(device: str, reason: str) -> Backend:
    """`gpubackprop.backends.cupy.unpickled`, as pickles of the first versions name it."""
    from gpubackprop.backends.cupy import unpickled as unpickled_there

    return unpickled_there(device, reason)
