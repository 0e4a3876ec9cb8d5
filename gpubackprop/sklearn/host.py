"""The host's backend of these estimators: sparse rows, fewer calls for small networks."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from scipy import sparse

from gpubackprop.backends import NativeBackend
from gpubackprop.backends.numpy.blocks import add_reduce
from gpubackprop.network import MLP
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import Source

Array = np.ndarray

# With AVX-512 OpenBLAS has kernels for small matrices, and multiplies these faster by a copy of W^T
# than by W^T if there are few units.
FEW_UNITS, SMALL_PRODUCT = 16, 10**6
HAS_SMALL_KERNELS = any(
    name in ("X86_V4", "AVX512F", "AVX512_SKX")
    for name in cast(Any, np.show_config(mode="dicts"))["SIMD Extensions"].get("found", ())
)
SQUARES = 1 << 16  # one BLAS call squares and adds so many numbers
PLAIN_SUM_ROWS = 512  # NumPy's tree takes more calls; its accuracy is worth them from here on


class SparseBatch:
    """CSR rows where a plan expects an array: as x of the first layer. `matrix` may be replaced."""

    def __init__(self, matrix: Any = None) -> None:
        self.matrix = matrix

    def __getitem__(self, rows: slice) -> SparseBatch:
        """Return itself for fewer rows, since each batch puts its own matrix there."""
        return self

    def times(self, W_T: Array, out: Array) -> None:
        """Set out = x W^T."""
        out[...] = self.matrix @ W_T

    def transposed_times(self, delta_T: Array, out: Array) -> None:
        """Set out = delta^T x."""
        out[...] = (self.matrix.T @ delta_T.T).T


class SparseSource(Source):
    """The rows of a CSR matrix, in the network's dtype."""

    def buffers(self, rows: int) -> tuple[Any, Any]:
        batch = SparseBatch()
        return batch, batch

    def whole(self) -> Any:
        return SparseBatch(self.x)

    def put_x(self, raw: Any, rows: Array) -> None:
        raw.matrix = self.x[rows]


def source_of(network: MLP, data: Batches) -> Source:
    """Return the source of these rows for a step; they have the network's dtype and device."""
    return (SparseSource if sparse.issparse(data.x) else Source)(network, data)


class HostBackend(NativeBackend):
    """The host's backend of these estimators.

    Products also take a `SparseBatch` for x. NumPy adds the bias gradients of ordinary batches row
    after row, as scikit-learn adds them.
    """

    def column_sum(self, delta: Array, out: Array) -> None:
        if len(delta) > PLAIN_SUM_ROWS or self._native("column_sum") is not None:
            super().column_sum(delta, out)
        else:
            self._call(add_reduce, delta, 0, None, out)

    def sum_of_squares(self, x: Array, out: Array) -> None:
        """Set out = sum x^2, without a library in larger blocks: only the reported loss uses it."""
        if self._native("sum_of_squares") is None:
            self._call(_large_squares, x, out)
        else:
            super().sum_of_squares(x, out)

    def matmul(self, x: Any, y: Any, out: Array, accumulate: bool = False) -> None:
        if accumulate:
            super().matmul(x, y, out, accumulate)
            return
        few_units = HAS_SMALL_KERNELS and not isinstance(y, SparseBatch) and y.shape[1] <= FEW_UNITS
        if isinstance(x, SparseBatch):
            self._call(x.times, y, out)
        elif isinstance(y, SparseBatch):
            self._call(y.transposed_times, x, out)
        elif few_units and y.flags.f_contiguous and out.size * y.shape[0] <= SMALL_PRODUCT:
            copied = self._scratch().take(0, 30, y.shape, y.dtype)
            self._call(np.copyto, copied, y)
            self._call(np.matmul, x, copied, out)
        else:
            super().matmul(x, y, out)


def host_backend(device: str) -> HostBackend:
    """Return the backend for "cpu", or for "cpu:numpy"."""
    backend = HostBackend()
    backend.device = device
    return backend


def _large_squares(x: Array, out: Array) -> None:
    if len(x) <= SQUARES:
        out[()] = np.dot(x, x)
        return
    blocks = (x[start : start + SQUARES] for start in range(0, len(x), SQUARES))
    out[...] = sum(float(np.dot(block, block)) for block in blocks)
