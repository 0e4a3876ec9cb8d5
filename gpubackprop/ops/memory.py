"""Host memory and GPU memory behind one interface, so that an operation and its checks exist once.

What differs: the host's operations compute 16-bit types in float32 copies, and any strides will do;
the GPU's kernels take 16-bit types as they are, but want the elements of a row side by side, and
looking at a value means to wait for the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends import backend_of, cuda_backend_of
from gpubackprop.backends.arrays import as_cupy, on_gpu
from gpubackprop.errors import DeviceUnavailable, DtypeError

Array = Any  # numpy.ndarray or cupy.ndarray


class HostMemory:
    """NumPy arrays."""

    xp: Any = np
    array_type: type = np.ndarray

    def __init__(self) -> None:
        self.backend = backend_of(np.empty(0))

    def empty(self, shape: Any, dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def writeable(self, array: Array) -> bool:
        return bool(array.flags.writeable)

    def same_start(self, a: Array, b: Array) -> bool:
        return bool(a.__array_interface__["data"][0] == b.__array_interface__["data"][0])

    def values(self, array: Array, check: bool) -> np.ndarray | None:
        """The values where they may be looked at, else None."""
        return array

    def source(self, array: Array, dtype: Any) -> Array:
        """`array` as an operation reads it, in its compute type `dtype`: itself, or a copy."""
        return array if array.dtype is dtype else array.astype(dtype, copy=False)

    def target(self, out: Array, source: Array) -> Array:
        """What an operation writes into for `out`: itself, or `source`, which is a copy then."""
        return out if out.dtype == source.dtype else source

    def widened(self, array: Array, dtype: Any) -> Array:
        """`array` of the dtype: itself, or a copy."""
        return array.astype(dtype, copy=False)

    def store(self, work: Array, out: Array) -> None:
        """out = work, converted, where `target` gave another array."""
        if work is not out:
            self.backend.call(np.copyto, out, work)  # overflow to infinity is no warning

    def factor(self, array: Array) -> Array:
        """`array` as a matrix product reads it."""
        return array

    def summand(self, array: Array) -> Array:
        """`array` as a column sum reads it."""
        return np.ascontiguousarray(array)

    def labels(self, array: Array) -> Array:
        return array

    def loss_inputs(self, dtype: Any, logits: Array, targets: Array, *weights: Any) -> tuple:
        """logits, targets and weights as the softmax cross entropy reads them, which takes 16-bit
        types on either side."""
        return logits, targets, *weights

    def loss_outputs(self, rows: int, dtype: Any) -> dict[str, Array]:
        """What a loss that is computed at once must be given beside its results."""
        return {"loss": np.empty((), dtype)}

    def count(self, flags: Array) -> Array:
        """How many of (N,) bool are true."""
        return np.count_nonzero(flags)

    def weights(self, array: Any, dtype: Any) -> Any:
        """A vector as the losses read it; None and numbers as they are."""
        return array


class GpuMemory:
    """CuPy arrays of one device. Nothing waits for it, except `values` where it is asked to."""

    def __init__(self, array: Array) -> None:
        self.backend = cuda_backend_of(array)
        self.xp: Any = self.backend.cupy
        self.array_type: type = self.xp.ndarray

    def empty(self, shape: Any, dtype: Any) -> Array:
        return self.backend.empty(shape, dtype)

    def writeable(self, array: Array) -> bool:
        return True  # CuPy knows no read-only arrays

    def same_start(self, a: Array, b: Array) -> bool:
        return int(a.data.ptr) == int(b.data.ptr)

    def values(self, array: Array, check: bool) -> np.ndarray | None:
        return self.backend.to_host(array) if check else None

    def source(self, array: Array, dtype: Any) -> Array:
        return array if _rows_lie_dense(array) else self.backend.asarray(array)

    def target(self, out: Array, source: Array) -> Array:
        return out if _rows_lie_dense(out) else self.empty(out.shape, out.dtype)

    def widened(self, array: Array, dtype: Any) -> Array:
        with self.xp.cuda.Device(self.backend.index):
            return array.astype(dtype, copy=False)

    def store(self, work: Array, out: Array) -> None:
        if work is not out:
            with self.xp.cuda.Device(self.backend.index):
                out[...] = work

    def factor(self, array: Array) -> Array:
        whole = array.flags.c_contiguous or array.flags.f_contiguous
        return array if whole else self.backend.asarray(array)

    def summand(self, array: Array) -> Array:
        return array

    def labels(self, array: Array) -> Array:
        """uint8, int32 or int64, contiguous."""
        kept = array.dtype in (np.uint8, np.int32)
        return self.backend.asarray(array, None if kept else np.int64)

    def loss_inputs(self, dtype: Any, logits: Array, targets: Array, *weights: Any) -> tuple:
        by_label = targets.ndim == 1
        targets = self.labels(targets) if by_label else self.source(targets, targets.dtype)
        return self.source(logits, dtype), targets, *(self.weights(w, dtype) for w in weights)

    def loss_outputs(self, rows: int, dtype: Any) -> dict[str, Array]:
        result = {name: self.empty(rows, dtype) for name in ("row_loss", "scale")}
        return result | {"loss": self.empty((), dtype)}

    def count(self, flags: Array) -> Array:
        with self.xp.cuda.Device(self.backend.index):
            return self.xp.sum(flags)

    def weights(self, array: Any, dtype: Any) -> Any:
        return self.backend.asarray(array, dtype) if on_gpu(array) else array


Memory = HostMemory | GpuMemory
HOST = HostMemory()
_ON_HOST = frozenset((np.ndarray, type(None), int, float, list, tuple))


def memory_of(op: str, **arrays: Any) -> Memory:
    """The memory that all `arrays` lie in; None and plain numbers lie in any.

    Raises
    ------
    DtypeError : some are on the host and some on a GPU. DeviceUnavailable : on different GPUs.
    """
    if _ON_HOST.issuperset(map(type, arrays.values())):
        return HOST
    given = {k: v for k, v in arrays.items() if v is not None and not isinstance(v, (int, float))}
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
    return GpuMemory(first)


def _rows_lie_dense(array: Array) -> bool:
    """Whether a kernel takes the matrix: rows one after another, each without gaps."""
    if array.flags.c_contiguous:
        return True
    rows, columns = array.strides
    return bool(
        (columns == array.itemsize or array.shape[1] == 1)
        and rows >= array.shape[1] * array.itemsize
        and rows % array.itemsize == 0
    )
