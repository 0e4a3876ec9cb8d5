"""Backends: the same verbs on NumPy arrays (here) and, when it is written, on CuPy arrays."""

from __future__ import annotations

from gpubackprop.backends.numpy import LossOptions, NumpyBackend, Total

__all__ = ["LossOptions", "NumpyBackend", "Total"]
