"""The multiplication of matrices on a GPU, by CuPy's cuBLAS."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.dtypes import STORAGES

# cuBLAS's and CUDA's own numbers (cublas_api.h, library_types.h).
CUDA_TYPES = {name: row.cublas for name, row in STORAGES.items()}
COMPUTE_32F, GEMM_DEFAULT, OP_N, OP_T = 68, -1, 0, 1


class Products:
    """The multiplication of matrices: the operation `matmul` calls this and nothing else.

    A binding of cuBLASLt takes over if it is given to ``CupyBackend(index, products=...)``.

    Attributes
    ----------
    obstacle : str
        Why calls cannot be part of a CUDA graph; "" if they can.
    """

    obstacle = "matrix products"

    def __call__(self, x: Any, y: Any, out: Any) -> None:
        """Set out = x @ y on the current stream; each matrix is C- or F-contiguous.

        x is (M, K), y is (K, N), out is (M, N).
        """
        raise NotImplementedError


class CupyProducts(Products):
    """Products by cupy.matmul, which calls cublasGemmEx; CUPY_TF32=1 allows TF32.

    CuPy refuses to call cuBLAS while a stream is captured. It copies nothing if operands are C- or
    F-contiguous and `out` is C-contiguous and shares no memory with them. A product with one
    element is computed by a reduction of CuPy's, whose temporary comes from CuPy's pool.

    16-bit operands go to cublasGemmEx directly, by CuPy's binding: cupy.matmul does not know
    bfloat16, and returns float16 for float16. Sums are float32, and so may `out` be.
    """

    obstacle = "matrix products through CuPy"

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._matmul = cupy, cupy.matmul
        self._one, self._zero = np.ones((), np.float32), np.zeros((), np.float32)

    def __call__(self, x: Any, y: Any, out: Any) -> None:
        if x.itemsize > 2:
            self._matmul(x, y, out=out)
        elif out.size:
            self._to_sixteen_bit(x, y, out)

    def _to_sixteen_bit(self, x: Any, y: Any, out: Any) -> None:
        """Multiply 16-bit matrices. cuBLAS's matrices are column by column: out^T = y^T x^T."""
        cuda, (rows, columns) = self._cupy.cuda, out.shape
        transpose_x, stride_x = _as_columns(x)
        transpose_y, stride_y = _as_columns(y)
        cuda.cublas.gemmEx(
            cuda.device.get_cublas_handle(), transpose_y, transpose_x, columns, rows, x.shape[1],
            self._one.ctypes.data, y.data.ptr, CUDA_TYPES[y.dtype.name], stride_y,
            x.data.ptr, CUDA_TYPES[x.dtype.name], stride_x,
            self._zero.ctypes.data, out.data.ptr, CUDA_TYPES[out.dtype.name], max(1, columns),
            COMPUTE_32F, GEMM_DEFAULT,
        )  # fmt: skip


def _as_columns(x: Any) -> tuple[int, int]:
    """Return (operation, leading dimension) that make x^T of a matrix read by columns."""
    if x.flags.c_contiguous:
        return OP_N, max(1, x.shape[1])
    return OP_T, max(1, x.shape[0])
