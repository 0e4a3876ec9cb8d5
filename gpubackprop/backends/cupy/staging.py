"""Arrays of the host on their way to a GPU: the next one is copied while the last one is used.

There are two buffers of pinned memory, which CUDA copies without the host, and two of the device. A
stream of their own copies from the one to the other. The current stream takes what has come, and
goes on with its work while the host fills the other pair. Not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.library import explained
from gpubackprop.backends.memory import Staging

BUFFERS = 2


class PinnedStaging(Staging):
    """Two pairs of buffers for arrays of one dtype.

    Parameters
    ----------
    cupy : module
        CuPy.
    index : int
        Number of the device.
    shape : tuple of int
        Of the largest array.
    dtype : dtype
        Of all arrays.
    """

    def __init__(self, cupy: Any, index: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._cupy, self._index, self._next = cupy, index, 0
        nbytes = max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        with explained(cupy, "pinned memory for batches", nbytes), cupy.cuda.Device(index):
            cuda = cupy.cuda
            self._stream = cuda.Stream(non_blocking=True)
            self._pinned = [cuda.alloc_pinned_memory(nbytes) for _ in range(BUFFERS)]
            self._there = [cupy.empty(shape, dtype) for _ in range(BUFFERS)]
            self._copied, self._taken = (
                [cuda.Event(disable_timing=True) for _ in range(BUFFERS)] for _ in range(2)
            )
            # The memory may be in use until the stream that it comes from is here.
            self._made = cuda.get_current_stream()
            for event in self._taken:
                event.record(self._made)

    def put(self, fill: Callable[[np.ndarray], None], out: Any) -> None:
        number, self._next = self._next, (self._next + 1) % BUFFERS
        copied, taken = self._copied[number], self._taken[number]
        with explained(self._cupy, "a copy to the GPU"), self._cupy.cuda.Device(self._index):
            if not copied.done:  # the buffer is still read, for the batch before the last one
                copied.synchronize()
            host = np.frombuffer(self._pinned[number], out.dtype, out.size).reshape(out.shape)
            fill(host)
            there, current = self._there[number][: len(out)], self._cupy.cuda.get_current_stream()
            self._stream.wait_event(taken)
            there.set(host, stream=self._stream)
            copied.record(self._stream)
            current.wait_event(copied)
            out.data.copy_from_device_async(there.data, there.nbytes)
            taken.record(current)

    def __del__(self) -> None:
        with suppress(Exception), self._cupy.cuda.Device(self._index):  # the process may be ending
            for copied, taken in zip(self._copied, self._taken, strict=True):
                if not copied.done:
                    copied.synchronize()
                self._made.wait_event(taken)
