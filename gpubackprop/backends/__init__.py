"""Backends: the same verbs on NumPy arrays and on CuPy arrays.

>>> get("cpu").device
'cpu'
"""

from __future__ import annotations

import re
from typing import Any

from gpubackprop.backends import devices
from gpubackprop.backends.numpy import LossOptions, NumpyBackend, Total
from gpubackprop.backends.updater import LossScaling, UpdateRule

__all__ = ["LossOptions", "LossScaling", "NumpyBackend", "Total", "UpdateRule", "get"]


def get(device: str = "cpu") -> Any:
    """A backend that computes on `device`: "auto", "cpu", "cuda" or "cuda:N".

    Its `reason` says in a line why "auto" took that one.

    Raises
    ------
    OptionError : no such name. DeviceUnavailable : CUDA was asked for and something is missing.
    """
    name, reason = (device, "") if device == "cpu" else devices.choose(device)
    backend: Any = NumpyBackend()
    if name != "cpu":
        from gpubackprop.backends.cupy import CupyBackend

        backend = CupyBackend(int(re.sub(r"\D", "", name)))
    backend.reason = reason
    return backend
