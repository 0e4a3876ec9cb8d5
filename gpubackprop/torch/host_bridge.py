"""CPU tensors as arrays of the host's backend, without copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpubackprop._optional import require
from gpubackprop.backends import HOST, Backend, NativeBackend
from gpubackprop.dtypes import STORAGES
from gpubackprop.errors import DtypeError, TargetRangeError
from gpubackprop.ops import checks

FLOATS = tuple(getattr(torch, name) for name in STORAGES)
_COMPUTE = {getattr(torch, name): getattr(torch, row.compute) for name, row in STORAGES.items()}
LABELS = (torch.int64, torch.int32, torch.uint8)  # kernels read these; others are converted


class LabelError(TargetRangeError, IndexError):
    """A class index lies outside [0, C); an IndexError as in PyTorch, naming row and label."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64, and float32 for 32 bits and less."""
    return _COMPUTE.get(dtype, torch.float32)


class _Memory:
    """The array interface by which NumPy sees the memory of a tensor, which it keeps alive.

    `Tensor.numpy()` gives the same array, but also forbids that the storage is ever resized.
    """

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Tensor, shape: tuple[int, ...], code: str) -> None:
        strides = None
        if not tensor.is_contiguous():
            size = tensor.element_size()
            strides = tuple(step * size for step in tensor.stride())
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": code,
            "data": (tensor.data_ptr(), False),
            "strides": strides,
        }


_TYPES = {
    dtype: np.dtype(str(dtype).removeprefix("torch.")).str
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    )
} | {torch.bfloat16: np.dtype(np.int16).str}


def has_memory(tensor: Tensor) -> bool:
    """Return whether the elements are the tensor's own: it neither is fake nor wraps others."""
    kind = type(tensor)
    return kind in _PLAIN or kind.__torch_dispatch__ is Tensor.__torch_dispatch__


_PLAIN = (Tensor, torch.nn.Parameter)


def numpy_view(tensor: Tensor) -> np.ndarray:
    """Return the memory of a CPU tensor as an ndarray; bfloat16 as ml_dtypes' type.

    Raises
    ------
    DtypeError
        The tensor has no memory of its own, or a dtype that the kernels do not know.
    """
    if type(tensor) not in _PLAIN and not has_memory(tensor):
        raise DtypeError(f"a {type(tensor).__name__} has no memory of its own; use PyTorch for it")
    tensor, dtype = tensor.detach(), tensor.dtype
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    code = _TYPES.get(dtype)
    if code is None or not tensor.is_cpu:
        raise DtypeError(f"a tensor of {dtype} on {tensor.device} is no array of the CPU")
    shape = tensor.shape
    if 0 in shape:
        array = np.empty(tuple(shape), code)
    else:
        array = np.asarray(_Memory(tensor, shape, code))
    if dtype != torch.bfloat16:
        return array
    ml_dtypes = require("ml_dtypes", "torch", "see bfloat16 tensors of the CPU as NumPy arrays")
    return array.view(ml_dtypes.bfloat16)


class HostBridge:
    """CPU tensors and the host's backend.

    Attributes
    ----------
    is_cuda : bool
        Whether the backend is the CUDA one, which takes 16-bit types.
    keeps_delta : bool
        Whether the forward pass of a loss keeps the gradient for the backward pass, which then only
        scales it. Otherwise the backward pass computes it from the logits. On a CPU the
        exponentials cost most; on a GPU it is memory traffic, which is less without the kept
        gradient (docs/decisions/2026-11-23-torch.md).
    """

    is_cuda = False
    keeps_delta = True
    host_backend = NativeBackend()

    @contextmanager
    def backend_of(self, like: Tensor) -> Iterator[Backend]:
        """Give the backend that works on the device of `like`, on its current stream."""
        yield self.host_backend

    def report_rows_from(self, backend: Backend, like: Tensor, chunk: int, row: int) -> None:
        """Note that the next call handles rows row, row + 1, ... of a larger batch.

        Error messages then use row numbers of that batch.
        """

    def array(self, tensor: Tensor | None) -> Any:
        """Return `tensor` as an array of the backend, on the same memory."""
        return None if tensor is None else numpy_view(tensor)

    def rows(self, matrix: Tensor) -> Tensor:
        """Return `matrix` (N, K), or a copy if the backend does not take its strides."""
        return matrix

    def row_buffers(self, logits: Tensor) -> dict[str, Tensor | None]:
        """Return the arrays that the backend's loss wants beside its results."""
        return {}

    def check_targets(self, labels: Tensor, classes: int, ignore_index: int | None) -> bool:
        """Raise LabelError if a label is out of range, or was in an earlier call on a GPU.

        Returns
        -------
        bool
            Whether every label is known to be a class, and none of them is ignored.
        """
        return check_host_labels(numpy_view(labels), classes, ignore_index)


def check_host_labels(labels: np.ndarray, classes: int, ignore_index: int | None) -> bool:
    """Do what `HostBridge.check_targets` does, for an array."""
    try:
        return checks.class_indices(labels, len(labels), classes, ignore_index, HOST, check=True)
    except TargetRangeError as error:
        raise LabelError(str(error).replace("targets[", "target[", 1)) from None
