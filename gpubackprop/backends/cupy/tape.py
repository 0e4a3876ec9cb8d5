"""Plan once, run many, on a GPU: the calls of a step, replayed one by one or as a CUDA graph.

What is recorded holds its arrays: launch shapes, checks, casts and scratch memory are settled while
recording, so a replay is a loop of launches, with nothing allocated by this package and no wait.
cuBLAS through CuPy 14 cannot be captured (docs/decisions/2026-11-23-cupy-plans.md), so a step with
`CupyProducts` replays its tape; where the product can be captured, the tape is captured once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.launcher import Launcher
from gpubackprop.backends.cupy_launch import Launch

# cuBLAS's and CUDA's own numbers (cublas_api.h, library_types.h).
CUDA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
COMPUTE_32F, GEMM_DEFAULT, OP_N, OP_T = 68, -1, 0, 1

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def _missing(*_: Any) -> None:
    raise AssertionError("a tape was run before it was complete")


class Tape:
    """Recorded calls: ``tape(f, *args)`` records, ``tape.run()`` issues them on the current stream.

    Attributes
    ----------
    capturable : False once something was recorded that a graph cannot hold.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.capturable = True
        self._launches: dict[int, Launch] = {}  # whose entries are missing in `calls`

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        self.calls.append((function, args))

    def launch(self, launch: Launch, *args: Any) -> None:
        """Record a call of the launch's entry, which `complete` puts in."""
        self._launches[len(self.calls)] = launch
        self(_missing, *args)

    def complete(self, launcher: Launcher) -> None:
        """Get the entries: all that must be compiled are compiled together."""
        launcher.compile_together(self._launches.values())
        for place, launch in self._launches.items():
            self.calls[place] = launcher.entry(launch), self.calls[place][1]
        self._launches.clear()

    def run(self) -> None:
        for function, args in self.calls:
            function(*args)

    def capture(self, cupy: Any) -> Any:
        """The calls as a CUDA graph. Nothing is executed; the kernels are compiled already."""
        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        with stream:
            stream.begin_capture()
            try:
                self.run()
            finally:
                graph = stream.end_capture()
        return graph


class Products:
    """How matrices are multiplied: the verb `matmul` calls this and nothing else.

    A binding of cuBLASLt takes over by being given to ``CupyBackend(index, products=...)``.

    Attributes
    ----------
    capturable : whether calls can be part of a CUDA graph.
    """

    capturable = False

    def __call__(self, x: Any, y: Any, out: Any) -> None:
        """out = x @ y on the current stream: (M, K), (K, N), (M, N), each C- or F-contiguous."""
        raise NotImplementedError


class CupyProducts(Products):
    """Products by cupy.matmul, that is cublasGemmEx; CUPY_TF32=1 allows TF32.

    CuPy refuses to call cuBLAS while a stream is captured. It copies nothing for operands that are
    C- or F-contiguous and an `out` that is C-contiguous and shares no memory with them; a product
    with one element goes through a reduction of CuPy's, whose temporary comes from CuPy's pool.

    16-bit operands go to cublasGemmEx directly, by CuPy's binding: cupy.matmul knows no bfloat16
    and gives float16 back from float16. Sums are float32, and so may `out` be.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._matmul = cupy, cupy.matmul
        self._one, self._zero = np.ones((), np.float32), np.zeros((), np.float32)

    def __call__(self, x: Any, y: Any, out: Any) -> None:
        if x.itemsize > 2:
            self._matmul(x, y, out=out)
        elif out.size:
            self._narrow(x, y, out)

    def _narrow(self, x: Any, y: Any, out: Any) -> None:
        """cuBLAS's matrices are column by column: out^T = y^T x^T."""
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
    """(operation, leading dimension) that make x^T of a matrix which cuBLAS reads by columns."""
    if x.flags.c_contiguous:
        return OP_N, max(1, x.shape[1])
    return OP_T, max(1, x.shape[0])
