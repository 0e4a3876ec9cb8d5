"""Plan once, run many, on a GPU: the calls of a step, replayed one by one or as a CUDA graph.

A recorded call holds its arrays. Launch shapes, checks, casts and scratch memory are settled while
recording, so a replay is a loop of launches: this package allocates nothing and does not wait.
cuBLAS through CuPy 14 cannot be captured (docs/decisions/2026-11-23-cupy-plans.md), so a step with
`CupyProducts` replays its recorded calls. If the product can be captured, they are captured once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.launcher import Launcher
from gpubackprop.backends.cupy.library import one_line
from gpubackprop.backends.cupy_launch import Launch
from gpubackprop.dtypes import STORAGES

# cuBLAS's and CUDA's own numbers (cublas_api.h, library_types.h).
CUDA_TYPES = {name: row.cublas for name, row in STORAGES.items()}
COMPUTE_32F, GEMM_DEFAULT, OP_N, OP_T = 68, -1, 0, 1

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def _missing(*_: Any) -> None:
    raise AssertionError("recorded calls were run before they were complete")


class RecordedCalls:
    """Calls: ``recorded(f, *args)`` records, ``recorded.run()`` issues on the current stream.

    Attributes
    ----------
    obstacle : str
        The first recorded call that a graph cannot hold, or "".
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.obstacle = ""
        self._launches: dict[int, Launch] = {}  # launches whose entries are missing in `calls`

    @property
    def capturable(self) -> bool:
        return not self.obstacle

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        self.calls.append((function, args))

    def launch(self, launch: Launch, *args: Any) -> None:
        """Record a call of the launch's entry; `complete` inserts the entry."""
        self._launches[len(self.calls)] = launch
        self(_missing, *args)

    def complete(self, launcher: Launcher) -> None:
        """Resolve every launch to its compiled kernel, compiling missing ones in parallel."""
        launcher.compile_together(self._launches.values())
        for place, launch in self._launches.items():
            self.calls[place] = launcher.entry(launch), self.calls[place][1]
        self._launches.clear()

    def run(self) -> None:
        for function, args in self.calls:
            function(*args)

    def capture(self, cupy: Any) -> Any:
        """Return the calls as a CUDA graph, without executing them; the kernels are compiled."""
        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        with stream:
            stream.begin_capture()
            try:
                self.run()
            except BaseException:
                with suppress(Exception):  # the capture is over, with an error that says less
                    stream.end_capture()
                raise
            return stream.end_capture()


class Plan:
    """Recorded calls; each call of this issues them again, on the current stream.

    The calls of a plan share working memory. A call on another stream than the previous one
    therefore waits for that one, and the memory goes back to its pool after the last call.

    Attributes
    ----------
    uncaptured : str
        Why the calls are issued one by one; "" if they are a CUDA graph.
    """

    uncaptured = ""

    def __init__(self, cupy: Any, recorded: RecordedCalls) -> None:
        self._cupy, self._recorded, self._graph = cupy, recorded, None
        self._made = self._last = cupy.cuda.get_current_stream()
        if not recorded.capturable:
            self.uncaptured = "a call that cannot be captured: " + recorded.obstacle
            return
        try:
            self._graph = recorded.capture(cupy)
        except Exception as error:  # a call that cannot be captured may raise anything
            self.uncaptured = f"the capture failed: {one_line(error)}"

    def __call__(self) -> None:
        current = self._cupy.cuda.get_current_stream()
        if current != self._last:
            self._after_the_last_call(current)
            self._last = current
        if self._graph is None:
            self._recorded.run()
        else:  # a graph has only the addresses, so the recorded calls keep the arrays
            self._graph.launch()

    def _after_the_last_call(self, stream: Any) -> None:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._last)
        stream.wait_event(event)

    def close(self) -> None:
        """Let the pool's stream wait for the last call, before the arrays go back there."""
        if self._last != self._made:
            self._after_the_last_call(self._made)


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
