"""CPU tensors as arrays of the NumPy backend, without copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpubackprop._optional import require
from gpubackprop.backends import NumpyBackend
from gpubackprop.errors import TargetRangeError
from gpubackprop.ops import checks
from gpubackprop.ops.memory import HOST

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LABELS = (torch.int64, torch.int32, torch.uint8)  # of the kernels; other integers are converted


class LabelError(TargetRangeError, IndexError):
    """A class index lies outside [0, C); an IndexError as in PyTorch, naming row and label."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for 32 bits and less."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def numpy_view(tensor: Tensor) -> np.ndarray:
    """The memory of a CPU tensor as an ndarray; bfloat16 as ml_dtypes' type."""
    tensor = tensor.detach()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    ml_dtypes = require("ml_dtypes", "torch", "see bfloat16 tensors of the CPU as NumPy arrays")
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


class HostBridge:
    """CPU tensors and the NumPy backend.

    Attributes
    ----------
    is_cuda : the backend is the CUDA one, which takes 16-bit types.
    keeps_delta : the forward pass of a loss keeps the gradient for the backward pass, which only
        scales it; otherwise the backward pass computes it from the logits. Exponentials are what
        costs on a CPU; on a GPU it is memory traffic, and that is less without the kept gradient
        (docs/decisions/2026-11-23-torch.md).
    """

    is_cuda = False
    keeps_delta = True

    @contextmanager
    def verbs(self, like: Tensor) -> Iterator[Any]:
        """The backend that works on the device of `like`, where its current stream is."""
        yield NumpyBackend()

    def report_rows_from(self, verbs: Any, like: Tensor, chunk: int, row: int) -> None:
        """Labels of the next call are those of a chunk that begins with `row`: errors count on."""

    def array(self, tensor: Tensor | None) -> Any:
        """`tensor` as an array of the backend, on the same memory."""
        return None if tensor is None else numpy_view(tensor)

    def rows(self, matrix: Tensor) -> Tensor:
        """`matrix` (N, K), or a copy where the backend does not take its strides."""
        return matrix

    def check_targets(self, labels: Tensor, classes: int, ignore_index: int) -> None:
        """LabelError where a label is out of range, or was in a call before on a GPU."""
        try:
            checks.class_indices(
                self.array(labels), len(labels), classes, ignore_index, HOST, check=True
            )
        except TargetRangeError as error:
            raise LabelError(str(error).replace("targets[", "target[", 1)) from None
