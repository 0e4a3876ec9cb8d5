"""Backends: the same verbs on NumPy arrays and on CuPy arrays.

>>> get("cpu").device
'cpu'
"""

from __future__ import annotations

import re
from typing import Any

from gpubackprop.backends import devices
from gpubackprop.backends.numpy import LossOptions, NumpyBackend, Total
from gpubackprop.backends.updater import UpdateRule

__all__ = ["LossOptions", "NumpyBackend", "Total", "UpdateRule", "get"]


def get(device: str = "cpu") -> Any:
    """A backend that computes on `device`: "auto", "cpu", "cuda" or "cuda:N".

    Raises
    ------
    OptionError : no such name. DeviceUnavailable : CUDA was asked for and something is missing.
    """
    name = device if device == "cpu" else devices.choose(device)[0]
    if name == "cpu":
        return NumpyBackend()
    from gpubackprop.backends.cupy import CupyBackend

    return CupyBackend(int(re.sub(r"\D", "", name)))
