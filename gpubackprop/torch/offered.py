"""Which tensors these functions take instead of PyTorch's own; decided before anything is computed.

A script that is patched and a model that is converted hold more kinds of tensors than these kernels
read: wrappers with operators of their own (DTensor, quantized weights), tensors without memory
(meta, fake, functional), nested tensors. The exact type tells them apart, because a subclass may
give an operator any meaning.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from gpubackprop.torch import bridge

EXACT = (Tensor, nn.Parameter)


def refusal(tensor: Any) -> str:
    """Say why the kernels do not read `tensor`; "" if they do."""
    if type(tensor) not in EXACT:
        return f"a {type(tensor).__name__} may have operators of its own"
    if tensor.layout != torch.strided:
        return f"a tensor has the layout {tensor.layout}; wanted torch.strided"
    if tensor.is_nested:
        return "a tensor is nested"
    if tensor.device.type not in bridge.ROUTES:
        return f"a tensor lies on {tensor.device} but gpubackprop works on cpu and cuda"
    if torch.compiler.is_compiling():
        return ""
    if torch._is_functional_tensor(tensor) or tensor._is_zerotensor():
        return "a tensor has no memory of its own"
    return "a tensor is negated lazily" if tensor.is_neg() else ""


def refusal_now() -> str:
    """Say why PyTorch's own operators are wanted whatever the tensors are; "" if they are not.

    An exported program (torch.export, torch.jit.trace, ONNX) must hold PyTorch's operators and no
    others. A mode (FlopCounterMode, FakeTensorMode, a selective checkpoint, ...) knows only those.
    The mode that sets a default device does not watch operators.
    """
    if exporting():
        return "the program is exported"
    if torch.compiler.is_compiling():
        return ""
    if torch._C._len_torch_dispatch_stack() or _function_modes():
        return "a mode watches PyTorch's operators"
    return ""


def exporting() -> bool:
    """Return whether torch.export, torch.jit.trace or an ONNX export records the program."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _function_modes() -> bool:
    modes = range(torch._C._len_torch_function_stack())
    return any(type(torch._C._get_function_stack_at(n)) is not DeviceContext for n in modes)
