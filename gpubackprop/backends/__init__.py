"""Backends: the same operations on NumPy arrays and on CuPy arrays.

>>> get("cpu").device
'cpu'
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np

from gpubackprop.backends import devices
from gpubackprop.backends.arrays import ANYWHERE, as_cupy, on_gpu
from gpubackprop.backends.base import Backend
from gpubackprop.backends.loss import LossOptions, Total
from gpubackprop.backends.native import NativeBackend
from gpubackprop.backends.numpy import NumpyBackend
from gpubackprop.backends.updater import LossScaling, Updater, UpdateRule
from gpubackprop.errors import DeviceUnavailable, DtypeError

__all__ = [
    "HOST",
    "Backend",
    "LossOptions",
    "LossScaling",
    "NativeBackend",
    "NumpyBackend",
    "Total",
    "UpdateRule",
    "Updater",
    "backend_for",
    "backend_of",
    "get",
]


def get(device: str = "cpu") -> Backend:
    """Return a backend that computes on `device`.

    Its `reason` says in a line why "auto" took that one.

    Parameters
    ----------
    device : str
        One of "auto", "cpu", "cpu:numpy", "cuda" and "cuda:N".

    Returns
    -------
    Backend
        A new backend.

    Raises
    ------
    OptionError
        There is no such name.
    DeviceUnavailable
        CUDA was asked for and something is missing.

    Examples
    --------
    >>> get("cpu").device
    'cpu'
    """
    name, reason = (device, "") if device == "cpu" else devices.choose(device)
    backend: Backend = NumpyBackend() if name == "cpu:numpy" else NativeBackend()
    if not devices.is_host(name):
        from gpubackprop.backends.cupy import CupyBackend

        backend = CupyBackend(int(re.sub(r"\D", "", name)))
    backend.reason = reason
    return backend


HOST = NativeBackend()
_ON_HOST = frozenset((np.ndarray, type(None), int, float, list, tuple))


def backend_for(op: str, **arrays: Any) -> Backend:
    """Return the backend for the memory in which all `arrays` are, to be asked once for each call.

    Parameters
    ----------
    op : str
        Name of the operation, for errors.
    **arrays : object
        Arrays by name; None and plain numbers are in any memory.

    Returns
    -------
    Backend
        The backend of that memory.

    Raises
    ------
    DtypeError
        Some are on the host and some on a GPU.
    DeviceUnavailable
        They are on different GPUs.

    Examples
    --------
    >>> backend_for("softmax", logits=np.zeros((2, 3)), out=None).device
    'cpu'
    """
    if _ON_HOST.issuperset(map(type, arrays.values())):
        return HOST
    given = {name: array for name, array in arrays.items() if not isinstance(array, ANYWHERE)}
    gpu = {name: as_cupy(array) for name, array in given.items() if on_gpu(array)}
    if not gpu:
        return HOST
    here, first = next(iter(gpu.items()))
    for name in given:
        if name not in gpu:
            raise DtypeError(
                f"{here} lies on cuda:{first.device.id} but {name} on the host and {op} wants all "
                f"arrays in one place; move it with cupy.asarray({name})"
            )
        if gpu[name].device.id != first.device.id:
            raise DeviceUnavailable(
                f"{here} lies on cuda:{first.device.id} but {name} on cuda:{gpu[name].device.id} "
                f"and {op} wants all arrays on one GPU; copy it there"
            )
    return backend_of(first)


def backend_of(array: Any) -> Backend:
    """Return the backend for the memory of an ndarray; there is one object for each device.

    Parameters
    ----------
    array : array
        An ndarray of NumPy or CuPy, of any shape.

    Returns
    -------
    Backend
        The backend of its memory.

    Examples
    --------
    >>> backend_of(np.zeros(3)).device
    'cpu'
    """
    if isinstance(array, np.ndarray):
        return HOST
    from gpubackprop.backends.cupy.library import import_cupy

    return _cuda_backend(import_cupy(), int(array.device.id))


@cache
def _cuda_backend(cupy: Any, index: int) -> Backend:
    from gpubackprop.backends.cupy import CupyBackend

    return CupyBackend(index)


def unpickled(device: str, reason: str) -> Backend:
    """Do what `gpubackprop.backends.cupy.unpickled` does: the first pickles name this."""
    from gpubackprop.backends.cupy import unpickled as unpickled_there

    return unpickled_there(device, reason)
