"""CUDA tensors as arrays of the CUDA backend, by pointer.

Work is queued on PyTorch's current stream of the tensor's device, with working memory from
PyTorch's allocator. CuPy's pool therefore stays empty, and memory of a captured CUDA graph is in
the graph's own pool. Not measured on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from gpubackprop._optional import require
from gpubackprop.backends import Backend
from gpubackprop.errors import DeviceUnavailable, DtypeError
from gpubackprop.torch.host_bridge import HostBridge, LabelError, numpy_view

if TYPE_CHECKING:
    from gpubackprop.backends.cupy import CupyBackend

SLOTS = 32  # slots of the flag for bad labels: one for whole calls, others for chunks of rows


class CudaBridge(HostBridge):
    """CUDA tensors and the CUDA backend."""

    is_cuda = True
    keeps_delta = False

    def __init__(self) -> None:
        self._backends: dict[tuple[int, int], CupyBackend] = {}  # by device and stream
        self._streams: dict[tuple[int, int], Any] = {}  # by device and stream
        self._flags: dict[int, tuple[np.ndarray, Any]] = {}  # by device
        self._first_rows: dict[tuple[int, int], int] = {}  # by device and slot of the flag
        self._spare: dict[Any, Tensor] = {}  # pinned memory for uploads in a capture
        self._captured: list[Tensor] = []  # pinned memory that graphs read

    @contextmanager
    def backend_of(self, like: Tensor) -> Iterator[Any]:
        from gpubackprop.backends.cupy.library import import_cupy

        cupy, index = import_cupy(), _index(like)
        stream = torch.cuda.current_stream(index).cuda_stream
        with (
            torch.cuda.device(index),
            cupy.cuda.Device(index),
            self._stream(cupy, index, stream),
            cupy.cuda.using_allocator(lambda size: _allocate(cupy, size, index)),
        ):
            yield self.backend(index, stream, self.capturing())

    def _stream(self, cupy: Any, index: int, stream: int) -> Any:
        """Return CuPy's view of a stream.

        CuPy 14 wants `Stream.from_external` in place of this class, but that one knows no device.
        """
        if (index, stream) not in self._streams:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._streams[index, stream] = cupy.cuda.ExternalStream(stream, index)
        return self._streams[index, stream]

    def backend(self, index: int, stream: int, capturing: bool) -> CupyBackend:
        """Return a backend for one stream, on which its flag for bad labels is filled.

        While a graph is captured, only that graph would fill them, so nothing is kept.
        """
        from gpubackprop.backends.cupy import CupyBackend

        if (index, stream) not in self._backends:
            self._backends[index, stream] = CupyBackend(index)
        backend = self._backends[index, stream]
        if capturing:
            backend = backend.with_memory(type(backend.memory)(backend.cupy, index))
        backend.memory.first_row = 0
        backend.memory.bad_label = self.flag(index, capturing)[1][0]
        return backend

    def report_rows_from(self, backend: Backend, like: Tensor, chunk: int, row: int) -> None:
        slot = 1 + chunk % (SLOTS - 1)
        self._first_rows[_index(like), slot] = row
        memory = cast("CupyBackend", backend).memory
        memory.first_row = row
        memory.bad_label = self.flag(_index(like))[1][slot]

    def array(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        from gpubackprop.backends.cupy.library import import_cupy

        tensor, itemsize = tensor.detach().resolve_neg(), tensor.element_size()
        strides = tuple(step * itemsize for step in tensor.stride())
        memory = _unowned(import_cupy(), tensor, _index(tensor))
        return import_cupy().ndarray(tensor.shape, numpy_dtype(tensor.dtype), memory, strides)

    def rows(self, matrix: Tensor) -> Tensor:
        columns = matrix.shape[1]
        neighbours = matrix.stride(1) == 1 or columns < 2
        return matrix if neighbours and matrix.stride(0) >= columns else matrix.contiguous()

    def flag(self, index: int, capturing: bool = False) -> tuple[np.ndarray, Any]:
        """Return the flag for labels out of range, on the host and as the device sees it.

        It is SLOTS times {row, label}. The row is -1 if there was no such label, and -2 while a
        kernel writes. The memory is the host's and the kernels write into it, so the host can look
        without waiting.
        """
        if index not in self._flags:
            if capturing:
                raise DeviceUnavailable(
                    "the first call on a device allocates and compiles, which a CUDA graph cannot "
                    "capture; run the step once before the capture, as PyTorch asks anyway"
                )
            pinned = self._pinned(torch.full((SLOTS, 2), -1, device="cpu"))
            self._flags[index] = numpy_view(pinned), self._device_view(pinned, index)
        return self._flags[index]

    def flagged(self) -> list[int]:
        """Return the devices on which labels were used."""
        return list(self._flags)

    def _pinned(self, host: Tensor) -> Tensor:
        return host.pin_memory()

    def _device_view(self, pinned: Tensor, index: int) -> Any:
        from gpubackprop.backends.cupy.library import import_cupy

        memory = _unowned(import_cupy(), pinned, index)
        return import_cupy().ndarray((SLOTS, 2), np.int64, memory)

    def capturing(self) -> bool:
        """Return whether the work that is queued now becomes part of a CUDA graph."""
        return bool(torch.cuda.is_current_stream_capturing())

    def upload(self, host: Tensor, like: Tensor) -> Tensor:
        """Return a copy of `host` on the device of `like`, queued without a wait.

        Each replay of a graph makes its copy anew, from pinned memory that is kept for it. Pinned
        memory cannot be allocated during a capture, so the first upload leaves a spare block.
        """
        out = torch.empty(host.shape, dtype=host.dtype, device=like.device)
        key = (host.shape, host.dtype)
        if self.capturing():
            pinned = self._spare.pop(key, None)
            if pinned is None:
                raise DeviceUnavailable(
                    "the optimizer has not made a step with these parameters before the capture of "
                    "a CUDA graph: run a few steps on a side stream first, as PyTorch asks anyway"
                )
            self._captured.append(pinned.copy_(host))
        else:
            pinned = self._pinned(host)
            if key not in self._spare:
                with torch.inference_mode(False):  # a capture will write it, in any mode
                    self._spare[key] = self._pinned(host)
        self._copy_pinned(pinned, out)
        return out

    def _copy_pinned(self, pinned: Tensor, out: Tensor) -> None:
        if not self.capturing():
            out.copy_(pinned, non_blocking=True)  # PyTorch reuses `pinned` after the copy
            return
        from gpubackprop.backends.cupy.library import import_cupy

        runtime, stream = import_cupy().cuda.runtime, torch.cuda.current_stream(_index(out))
        runtime.memcpyAsync(
            out.data_ptr(), pinned.data_ptr(), pinned.nbytes, runtime.memcpyHostToDevice,
            stream.cuda_stream,
        )  # fmt: skip

    def check_targets(self, labels: Tensor, classes: int, ignore_index: int | None) -> bool:
        self.raise_bad_label(_index(labels))
        return False

    def raise_bad_label(self, index: int) -> None:
        """Raise LabelError if a finished kernel met a label out of range. This does not wait."""
        if index not in self._flags:
            return
        host = self._flags[index][0]
        if host[:, 0].max() < 0:
            return
        slot = int(np.argmax(host[:, 0]))
        row, label = (int(number) for number in host[slot])  # the row is written after its label
        row += self._first_rows.get((index, slot), 0)
        host[host[:, 0] >= 0, 0] = -1  # a slot that a kernel writes now (-2) is for the next call
        hint = "" if label >= 0 else "; to leave rows out pass ignore_index"
        raise LabelError(
            f"target[{row}] of an earlier call on cuda:{index} was {label}, which is no class "
            f"index: loss and gradient of that row are NaN; check the labels before they go to "
            f"the GPU{hint}"
        )


def _index(tensor: Tensor) -> int:
    return tensor.device.index or 0


def numpy_dtype(dtype: torch.dtype) -> Any:
    """Return NumPy's type of the same name; bfloat16 is that of ml_dtypes."""
    if dtype == torch.bfloat16:
        return require("ml_dtypes", "torch", "hand bfloat16 tensors to CuPy").bfloat16
    try:
        return np.dtype(str(dtype).removeprefix("torch."))
    except TypeError:
        raise DtypeError(f"a tensor of {dtype} cannot be handed to the kernels") from None


def _unowned(cupy: Any, tensor: Tensor, index: int) -> Any:
    """Return CuPy's pointer to the tensor's memory, which it keeps alive."""
    size = tensor.untyped_storage().nbytes()
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), size, tensor, index)
    return cupy.cuda.MemoryPointer(memory, 0)


def _allocate(cupy: Any, size: int, index: int) -> Any:
    """Return memory for CuPy from PyTorch's allocator, on the current stream of both."""
    block = torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", index))
    return _unowned(cupy, block, index)
