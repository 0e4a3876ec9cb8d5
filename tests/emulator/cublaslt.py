"""The stand-in for cuBLASLt: `cublaslt.cpp`, whose products run when the stand-in's streams do."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from tests.emulator import builds
from tests.emulator.cupy_queue import STATE, CUDARuntimeError

SOURCE = Path(__file__).with_name("cublaslt.cpp")
PATH = "the stand-in for libcublasLt"
KEEPS_NAN, ROUNDS_BGRAD, VARIES = 1, 2, 4  # see `standin_behave` in the source


class _Job:
    """A product that is queued, or is a node of a graph."""

    def __init__(self, handle: Any, place: int) -> None:
        self._handle, self._place = handle, ctypes.c_void_p(place)

    def __call__(self) -> None:
        if self._handle.standin_run(self._place):
            raise CUDARuntimeError("cudaErrorIllegalAddress: in an epilogue of cuBLASLt")

    def spans(self) -> list[tuple[int, int]]:
        """Return the memory of operands, result, workspace, and of an epilogue's bias and mask."""
        ends = (ctypes.c_uint64 * 12)()
        self._handle.standin_spans(self._place, ends)
        return [(low, high) for low, high in zip(ends[::2], ends[1::2], strict=True) if high > low]

    def __del__(self) -> None:
        self._handle.standin_free(self._place)


@cache
def library() -> Any:
    """Return the shared library, which queues on the current stream's device.

    Its streams are the numbers that `cupy_queue.Stream.ptr` gives.
    """
    handle = ctypes.CDLL(str(builds.plain_library(SOURCE.read_text())))

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    def queue(stream: int | None, job: int) -> None:
        current = STATE.stream
        assert current.ptr == (stream or 0), "a product on another stream than the current one"
        STATE.count_product()
        STATE.queue(_Job(handle, job), current)

    @ctypes.CFUNCTYPE(ctypes.c_int)
    def capturing() -> int:
        return bool(STATE.capturing_here())

    handle.standin_begin(queue, capturing)
    handle.kept = queue, capturing
    return handle


def load_cuda_library(name: str, major: int | None) -> tuple[Any, str] | None:
    """Stand in for `gpubackprop.backends.devices.load_cuda_library`."""
    return (library(), PATH) if name == "cublasLt" else None
