"""Backends: the same operations on NumPy arrays and on CuPy arrays.

>>> get("cpu").device
'cpu'
"""

from __future__ import annotations

import re

from gpubackprop.backends import devices
from gpubackprop.backends.base import Backend
from gpubackprop.backends.loss import LossOptions, Total
from gpubackprop.backends.numpy import NumpyBackend
from gpubackprop.backends.updater import LossScaling, Updater, UpdateRule
from gpubackprop.errors import DeviceUnavailable

__all__ = [
    "Backend",
    "LossOptions",
    "LossScaling",
    "NumpyBackend",
    "Total",
    "UpdateRule",
    "Updater",
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


def unpickled(device: str, reason: str) -> Backend:
    """The backend of a pickle that was made with one for `device`.

    Raises
    ------
    DeviceUnavailable : that device is not there.
    """
    try:
        backend = get(device)
    except DeviceUnavailable as error:
        raise DeviceUnavailable(
            f"what is unpickled here was pickled on {device}, and is unpickled to the same device "
            f'({error}) To read it elsewhere, pickle network.copy("cpu"), or use Model.save and '
            f"Model.load"
        ) from error
    backend.reason = reason
    return backend
