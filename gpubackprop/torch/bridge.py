"""The bridge from a tensor to the backend of its device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gpubackprop.errors import DeviceUnavailable
from gpubackprop.torch.cuda_bridge import CudaBridge
from gpubackprop.torch.host_bridge import (
    FLOATS,
    LABELS,
    HostBridge,
    LabelError,
    compute_dtype,
    has_memory,
    numpy_view,
)

__all__ = [
    "FLOATS",
    "HOST",
    "LABELS",
    "ROUTES",
    "CudaBridge",
    "HostBridge",
    "LabelError",
    "check_labels",
    "compute_dtype",
    "has_memory",
    "numpy_view",
    "of",
    "same_device",
    "transformed",
]

HOST, CUDA = HostBridge(), CudaBridge()
ROUTES: dict[str, HostBridge] = {"cpu": HOST, "cuda": CUDA}


def of(tensor: Tensor) -> HostBridge:
    """Return the bridge of the tensor's device.

    Raises
    ------
    DeviceUnavailable
        The tensor lies neither on the CPU nor on a CUDA device.
    """
    bridge = ROUTES.get("cpu" if tensor.is_cpu else tensor.device.type)
    if bridge is None:
        raise DeviceUnavailable(
            f"a tensor lies on {tensor.device} but gpubackprop works on cpu and cuda; move it "
            f'with .to("cpu")'
        )
    return bridge


def same_device(name: str, like: Tensor, **others: Tensor | None) -> None:
    """Raise DeviceUnavailable if a tensor of `others` lies elsewhere than `like`, called `name`."""
    of(like)
    for other, tensor in others.items():
        if tensor is not None and tensor.device != like.device:
            raise DeviceUnavailable(
                f"{other} lies on {tensor.device} but {name} on {like.device}; move it with "
                f"{other}.to({name}.device)"
            )


def transformed() -> bool:
    """Return whether a transform of torch.func (grad, vmap, jvp, ...) or forward-mode AD is active.

    These cannot see through custom operators with registered gradients. The functions of this
    package are then composed of PyTorch's own operators.
    """
    return forward_ad._current_level >= 0 or _within_functorch()


def _within_functorch() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


# Dynamo guards the stack, but models it as an object. `torch.compiler.assume_constant_result` sets
# the same attribute, but imports Dynamo, which takes as long as the import of PyTorch itself.
_within_functorch._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_labels() -> None:
    """Wait for all work that is queued on CUDA devices; raise if it met a label out of range.

    If a label is out of range on a GPU, loss and gradient of its row are NaN. The kernel writes row
    and label into memory that the host can read, and the first call of this package on that device
    after the GPU has got there raises. When that is depends on chance; this function waits.

    Raises
    ------
    LabelError
        A label was out of range; the message names row and label.

    Examples
    --------
    >>> check_labels()  # nothing was queued
    """
    for bridge in ROUTES.values():
        if isinstance(bridge, CudaBridge):
            for index in bridge.flagged():
                if torch.cuda.is_available():
                    torch.cuda.synchronize(index)
                bridge.raise_bad_label(index)
