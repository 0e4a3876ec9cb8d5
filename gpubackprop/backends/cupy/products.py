"""The multiplication of matrices on a GPU: by cuBLASLt, which a CUDA graph can hold, or by CuPy.

The operation `matmul` calls one of these and nothing else. Matrices are row by row here and column
by column in cuBLAS, so out = x y is computed as out^T = y^T x^T, without copies.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np

from gpubackprop.backends.cupy import cublaslt
from gpubackprop.backends.cupy.cublaslt import (
    COMPUTE_32F,
    COMPUTE_32F_FAST_TF32,
    COMPUTE_64F,
    OP_N,
    OP_T,
    REDUCE_IN_COMPUTE_TYPE,
    REDUCE_IN_PLACE,
)
from gpubackprop.backends.cupy.product_choice import Choices
from gpubackprop.dtypes import STORAGES
from gpubackprop.errors import DeviceUnavailable

CUDA_TYPES = {name: row.cublas for name, row in STORAGES.items()}
GEMM_DEFAULT = -1
KEPT = 512  # products that are kept for calls outside a plan
WORKSPACE = 32 << 20  # bytes; NVIDIA recommends so much for cards of compute capability 9.0

Recorded = tuple[Callable[..., None], tuple[Any, ...]]


class ScratchMemory(Protocol):
    """The working memory of a plan: `gpubackprop.backends.cupy.memory.WorkingMemory`."""

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any: ...


class Products:
    """The multiplication of matrices; ``CupyBackend(index, products=...)`` takes another.

    Attributes
    ----------
    obstacle : str
        Why calls cannot be part of a CUDA graph; "" if they can.
    tf32 : bool
        Whether float32 is multiplied in TF32, as CUPY_TF32=1 asks too.
    any_order : bool
        Whether sums may be added in an order that varies from call to call.
    """

    obstacle, tf32, any_order = "matrix products", False, False
    epilogues = False  # whether `finished` is there
    choices: Choices  # if it is

    def in_tf32(self) -> Self:
        """Return the same with float32 multiplied in TF32."""
        twin = copy.copy(self)
        twin.tf32 = True
        return twin

    def in_any_order(self) -> Self:
        """Return the same with algorithms, too, whose sums may vary from call to call."""
        twin = copy.copy(self)
        twin.any_order = True
        return twin

    def __call__(self, x: Any, y: Any, out: Any, accumulate: bool = False) -> None:
        """Set out = x @ y on the current stream; each matrix is C- or F-contiguous.

        x is (M, K), y is (K, N), out is (M, N). `accumulate` adds the product to `out`.
        """
        raise NotImplementedError

    def planned(
        self, x: Any, y: Any, out: Any, memory: ScratchMemory, accumulate: bool = False
    ) -> tuple[Recorded, str]:
        """Return the call of a plan that sets out = x @ y, and why a graph cannot hold it, or "".

        Whatever allocates, asks or waits is done now.
        """
        return (self, (x, y, out, *((True,) if accumulate else ()))), self.obstacle

    def finished(
        self,
        epilogue: int,
        x: Any,
        y: Any,
        out: Any,
        memory: ScratchMemory,
        bias: Any | None = None,
        mask: Any | None = None,
    ) -> Recorded:
        """Return the call of a plan that sets out = x @ y and does with it what `epilogue` says.

        Parameters
        ----------
        epilogue : int
            A number of `gpubackprop.backends.cupy.cublaslt`, e.g. BIAS. In its words, `out` is D^T,
            x is B^T and y is A^T: its rows are our columns.
        x : (N, M) array
            As in `Products`.
        y : (M, D) array
            As in `Products`.
        out : (N, D) array
            As in `Products`.
        memory : ScratchMemory
            The plan's.
        bias : (D,) or (N,) array or None
            Of the dtype of `out`: what is added, or receives the sums.
        mask : (N, ``mask_bytes(D)``) uint8 array or None
            Written by RELU_MASK_BIAS, read by the others.

        Raises
        ------
        CublasLtError
            The library does not offer it.
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
        # Factors of the product and of what is in `out`, which cuBLAS reads when it is called.
        self._factors = {
            kind: (np.ones((), kind), np.zeros((), kind)) for kind in (np.float32, np.float64)
        }

    def __call__(self, x: Any, y: Any, out: Any, accumulate: bool = False) -> None:
        if not out.size or (accumulate and not x.shape[1]):
            return
        if not x.shape[1]:
            out.fill(0)
            return
        if x.itemsize > 2 and not accumulate and not self.tf32:
            self._matmul(x, y, out=out)
        else:
            self._gemm(x, y, out, accumulate)

    def _gemm(self, x: Any, y: Any, out: Any, accumulate: bool) -> None:
        """Multiply by cuBLAS, whose matrices are column by column: out^T = y^T x^T."""
        cuda, (rows, columns) = self._cupy.cuda, out.shape
        wide = x.itemsize == 8
        one, zero = self._factors[np.float64 if wide else np.float32]
        old, compute = (one if accumulate else zero), compute_type(x.dtype, self.tf32)
        transpose_x, stride_x = _as_columns(x)
        transpose_y, stride_y = _as_columns(y)
        cuda.cublas.gemmEx(
            cuda.device.get_cublas_handle(), transpose_y, transpose_x, columns, rows, x.shape[1],
            one.ctypes.data, y.data.ptr, CUDA_TYPES[y.dtype.name], stride_y,
            x.data.ptr, CUDA_TYPES[x.dtype.name], stride_x, old.ctypes.data,
            out.data.ptr, CUDA_TYPES[out.dtype.name], max(1, columns), compute, GEMM_DEFAULT,
        )  # fmt: skip


def compute_type(dtype: Any, tf32: bool) -> int:
    """Return the type in which products of that dtype are computed."""
    if dtype.itemsize == 8:
        return COMPUTE_64F
    if dtype.itemsize == 4 and (tf32 or os.environ.get("CUPY_TF32") == "1"):
        return COMPUTE_32F_FAST_TF32
    return COMPUTE_32F


def _as_columns(x: Any) -> tuple[int, int]:
    """Return (operation, leading dimension) that make x^T of a matrix read by columns."""
    if x.flags.c_contiguous:
        return OP_N, max(1, x.shape[1])
    return OP_T, max(1, x.shape[0])


class CublasLtProducts(Products):
    """Products by cuBLASLt on the current stream, with working memory of their own.

    Sums are float32, or float64 for float64; CUPY_TF32=1 allows TF32 for float32, as in CuPy. A
    plan's algorithms are chosen by time (`gpubackprop.backends.cupy.product_choice`); other calls
    take the library's first proposal. What the library refuses goes to CuPy. Not measured on a GPU.

    Parameters
    ----------
    cupy : module
        CuPy.
    index : int
        Number of the device.
    library : Library
        The library.
    """

    obstacle, epilogues = "", True

    def __init__(self, cupy: Any, index: int, library: cublaslt.Library) -> None:
        self._cupy, self._index, self._library = cupy, index, library
        self._context: int | None = None
        self._eager: dict[cublaslt.Problem, cublaslt.Product | None] = {}
        self.choices = Choices(cupy, index, library.version)
        self._fallback = CupyProducts(cupy)

    def in_tf32(self) -> Self:
        twin = super().in_tf32()
        twin._fallback = self._fallback.in_tf32()
        return twin

    def __call__(self, x: Any, y: Any, out: Any, accumulate: bool = False) -> None:
        if not out.size or not x.shape[1]:
            if not accumulate:
                out.fill(0)
            return
        problem = self._problem(x, y, out)
        if problem not in self._eager:
            if len(self._eager) >= KEPT:
                self._eager.clear()
            self._eager[problem] = self._first_proposal(problem)
        product = self._eager[problem]
        if product is None:
            self._fallback(x, y, out, accumulate)
            return
        workspace = self._cupy.empty(product.workspace, np.uint8) if product.workspace else None
        self._issue(product, out, workspace, x, y, accumulate)

    def planned(
        self, x: Any, y: Any, out: Any, memory: ScratchMemory, accumulate: bool = False
    ) -> tuple[Recorded, str]:
        if not out.size or not x.shape[1]:
            nothing = out[:0] if accumulate else out
            return (nothing.fill, (0,)), ""
        try:
            product = self._product(self._problem(x, y, out))
            self.choices.choose(product, partial(self._issue, x=x, y=y), out)
        except cublaslt.CublasLtError:
            return self._fallback.planned(x, y, out, memory, accumulate)
        workspace = _workspace(product, memory)
        return (self._issue, (product, out, workspace, x, y, accumulate)), ""

    def finished(
        self,
        epilogue: int,
        x: Any,
        y: Any,
        out: Any,
        memory: ScratchMemory,
        bias: Any | None = None,
        mask: Any | None = None,
    ) -> Recorded:
        aligned = 0 if bias is None else cublaslt.alignment(bias.data.ptr)
        problem = replace(self._problem(x, y, out), epilogue=epilogue, bias_aligned=aligned)
        product = self._product(problem)
        pointers = (0 if array is None else array.data.ptr for array in (bias, mask))
        product.point_to(*pointers)
        self.choices.choose(product, partial(self._issue, x=x, y=y), out)
        workspace = _workspace(product, memory)
        # The product holds addresses alone; the call keeps the arrays.
        return self._issue_with, (bias, mask, product, out, workspace, x, y)

    def _issue_with(self, bias: Any, mask: Any, *args: Any) -> None:
        self._issue(*args)

    def _issue(
        self,
        product: cublaslt.Product,
        out: Any,
        workspace: Any | None,
        x: Any,
        y: Any,
        accumulate: bool = False,
    ) -> None:
        room = 0 if workspace is None else workspace.data.ptr
        stream = self._cupy.cuda.get_current_stream().ptr
        product.issue(y.data.ptr, x.data.ptr, out.data.ptr, room, stream, accumulate)

    def _first_proposal(self, problem: cublaslt.Problem) -> cublaslt.Product | None:
        """Return a product that takes the best proposal; None if there is none."""
        if self._cupy.cuda.get_current_stream().is_capturing():
            raise DeviceUnavailable(
                "a product of these sizes is new, and cuBLASLt cannot be asked for an algorithm "
                "while a stream is captured; call the operation once before the capture"
            )
        try:
            product = self._product(problem)
            product.take(product.candidates(1)[0])
        except (cublaslt.CublasLtError, IndexError):
            return None
        return product

    def _product(self, problem: cublaslt.Problem) -> cublaslt.Product:
        if self._context is None:
            self._context = self._library.context()
        return cublaslt.Product(self._library, self._context, problem)

    def _problem(self, x: Any, y: Any, out: Any) -> cublaslt.Problem:
        schemes = REDUCE_IN_COMPUTE_TYPE
        if self.any_order and out.itemsize > 2:  # else parts of a sum would be rounded to 16 bits
            schemes |= REDUCE_IN_PLACE
        return cublaslt.Problem(
            _transposed(y),
            _transposed(x),
            _transposed(out),
            compute_type(x.dtype, self.tf32),
            WORKSPACE,
            schemes=schemes,
        )


def mask_bytes(columns: int) -> int:
    """Return the bytes of a row of a mask: a bit for each column, and room up to 128 bits."""
    return -(-columns // cublaslt.MASK_BITS) * cublaslt.MASK_BITS // 8


def _transposed(x: Any) -> cublaslt.Operand:
    """Return x^T of a matrix that lies row by row, or column by column."""
    transpose, stride = _as_columns(x)
    rows, columns = x.shape[::-1] if transpose == OP_N else x.shape
    kind, aligned = CUDA_TYPES[x.dtype.name], cublaslt.alignment(x.data.ptr)
    return cublaslt.Operand(kind, rows, columns, stride, transpose, aligned)


def default(cupy: Any, index: int) -> Products:
    """Return products by cuBLASLt if it loads, else by CuPy.

    GPUBACKPROP_PRODUCTS=cupy asks for CuPy's.
    """
    if os.environ.get("GPUBACKPROP_PRODUCTS") == "cupy":
        return CupyProducts(cupy)
    library = cublaslt.load()
    return CupyProducts(cupy) if library is None else CublasLtProducts(cupy, index, library)


def _workspace(product: cublaslt.Product, memory: ScratchMemory) -> Any | None:
    """Return the memory of a plan that a product needs; None if it needs none."""
    if not product.workspace:
        return None
    return memory.scratch("products", (product.workspace,), np.uint8)
