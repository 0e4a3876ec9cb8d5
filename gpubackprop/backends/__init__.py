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
from gpubackprop.backends.numpy import NumpyBackend
from gpubackprop.backends.updater import LossScaling, Updater, UpdateRule
from gpubackprop.errors import DeviceUnavailable, DtypeError

__all__ = [
    "HOST",
    "Backend",
    "LossOptions",
    "LossScaling",
    "NumpyBackend",
    "Total",
    "UpdateRule",
    "Updater",
    "backend_for",
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


HOST = NumpyBackend()
_ON_HOST = frozenset((np.ndarray, type(None), int, float, list, tuple))


def backend_for(op: str, **arrays: Any) -> Backend:
    """The backend for the memory that all `arrays` lie in, to be asked once for each call.

    Parameters
    ----------
    op : name of the operation, for errors.
    **arrays : by name; None and plain numbers lie in any memory.

    Raises
    ------
    DtypeError : some are on the host and some on a GPU.
    DeviceUnavailable : they lie on different GPUs.
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
    """The backend for the memory of an ndarray of NumPy's or CuPy's; one object for each device."""
    if isinstance(array, np.ndarray):
        return HOST
    from gpubackprop.backends.cupy.library import import_cupy

    return _cuda_backend(import_cupy(), int(array.device.id))


@cache
def _cuda_backend(cupy: Any, index: int) -> Backend:
    from gpubackprop.backends.cupy import CupyBackend

    return CupyBackend(index)


def unpickled(device: str, reason: str) -> Backend:
    """`gpubackprop.backends.cupy.unpickled`, as pickles of the first versions name it."""
    from gpubackprop.backends.cupy import unpickled as unpickled_there

    return unpickled_there(device, reason)
