"""The host's backend: the formulas of the kernels, compiled for this machine; else NumPy.

An operation runs natively if there is a library of host kernels (`library`) and the arrays are such
as its kernel reads. Otherwise it is that of `NumpyBackend`, which also multiplies the matrices.
"""

from __future__ import annotations

from gpubackprop.backends.native.cross_entropy import NativeCrossEntropy
from gpubackprop.backends.native.layers import NativeLayers
from gpubackprop.backends.native.library import HostPath, host_path
from gpubackprop.backends.native.one_hot import NativeOneHot
from gpubackprop.backends.native.rows import NativeRows
from gpubackprop.backends.native.updates import NativeUpdates

__all__ = ["HostPath", "NativeBackend", "host_path"]


class NativeBackend(NativeLayers, NativeCrossEntropy, NativeUpdates, NativeRows, NativeOneHot):
    """The operations of backpropagation on NumPy arrays, compiled where that can be."""
