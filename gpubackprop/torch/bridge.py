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
    """The bridge of the tensor's device.

    Raises
    ------
    DeviceUnavailable : neither the CPU nor a CUDA device.
    """
    bridge = ROUTES.get("cpu" if tensor.is_cpu else tensor.device.type)
    if bridge is None:
        raise DeviceUnavailable(
            f"a tensor lies on {tensor.device} but gpubackprop works on cpu and cuda; move it "
            f'with .to("cpu")'
        )
    return bridge


def same_device(name: str, like: Tensor, **others: Tensor | None) -> None:
    """DeviceUnavailable where a tensor of `others` lies elsewhere than `like`, which is `name`."""
    of(like)
    for other, tensor in others.items():
        if tensor is not None and tensor.device != like.device:
            raise DeviceUnavailable(
                f"{other} lies on {tensor.device} but {name} on {like.device}; move it with "
                f"{other}.to({name}.device)"
            )


def transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) or forward-mode AD is going on. They
    cannot see through custom operators with registered gradients, so the functions of this package
    are then composed of PyTorch's own operators."""
    return forward_ad._current_level >= 0 or _within_functorch()


def _within_functorch() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


# Dynamo guards the stack, but models it as an object. `torch.compiler.assume_constant_result` sets
# the same, but imports Dynamo, which takes as long as all of PyTorch.
_within_functorch._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_labels() -> None:
    """Wait for all work queued on CUDA devices; LabelError where it met a label out of range.

    A label out of range on a GPU makes loss and gradient of its row NaN and leaves row and label in
    memory that the host can see; the next call of this package on that device raises as soon as the
    GPU has got there. This function does not leave it to chance.
    """
    for bridge in ROUTES.values():
        if isinstance(bridge, CudaBridge):
            for index in bridge.flagged():
                if torch.cuda.is_available():
                    torch.cuda.synchronize(index)
                bridge.raise_bad_label(index)
