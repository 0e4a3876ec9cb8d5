"""The operands of an update: parameter, gradient, slots and step count, checked in each step.

State may have been made elsewhere (a checkpoint, another optimizer, a cast of the module), so
nothing is taken for granted. Tensors with another order in memory or another dtype take part
through a copy, which is written back after the update.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpubackprop.errors import DtypeError, StateError
from gpubackprop.torch import bridge

Strides = tuple[int, ...]


@dataclass
class Entry:
    """A parameter with the tensors of its update, in any order and dtype that `storage_of` accepts.

    Attributes
    ----------
    p : Tensor
        The parameter.
    g : Tensor
        Its gradient.
    slots : tuple of Tensor
        The optimizer's state, shaped as p.
    step : Tensor
        The step count, one element, on the device of p.
    group : int
        The row of the settings.
    """

    p: Tensor
    g: Tensor
    slots: tuple[Tensor, ...]
    step: Tensor
    group: int


class Operands:
    """The tensors of an entry as the kernels read them: dense and in one order.

    Attributes
    ----------
    p : Tensor
        The parameter, in the storage dtype.
    g : Tensor
        The gradient, in the storage dtype.
    slots : tuple of Tensor
        The state, in the storage dtype's compute dtype.
    """

    def __init__(self, entry: Entry, storage: torch.dtype) -> None:
        self._back: list[tuple[Tensor, Tensor]] = []
        self._shape, self._strides = entry.p.shape, order_of(entry.p)
        self.p = self._aligned(entry.p, storage, True)
        self.g = self._aligned(entry.g, storage, False)
        compute = bridge.compute_dtype(storage)
        self.slots = tuple(self._aligned(slot, compute, True) for slot in entry.slots)
        self.step = entry.step

    def _aligned(self, tensor: Tensor, dtype: torch.dtype, written: bool) -> Tensor:
        if tensor.dtype == dtype and same_order(tensor, self._strides) and not tensor.is_neg():
            return tensor
        tensor = tensor.detach()
        copy = torch.empty_strided(self._shape, self._strides, dtype=dtype, device=tensor.device)
        copy.copy_(tensor)
        if written:
            self._back.append((tensor, copy))
        return copy

    def count_in_float32(self) -> None:
        """Make `step` float32, in which the kernels count."""
        if self.step.dtype != torch.float32:
            count = self.step.detach().to(torch.float32)
            self._back.append((self.step.detach(), count))
            self.step = count

    def write_back(self) -> None:
        for tensor, copy in self._back:
            tensor.copy_(copy)


def same_order(tensor: Tensor, strides: Strides) -> bool:
    """Return whether the tensor has these strides; the stride of a size of 1 is free."""
    own = tensor.stride()
    return own == strides or all(
        a == b or size == 1 for a, b, size in zip(own, strides, tensor.shape, strict=True)
    )


def order_of(p: Tensor) -> Strides:
    """Return the strides of p if its elements fill a range of memory, else row-major ones."""
    if p.is_contiguous() or _is_dense(p):
        return p.stride()
    strides, step = [], 1
    for size in reversed(p.shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a range of memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def memory_of(tensor: Tensor) -> Tensor:
    """Return the tensor with the elements that this process holds; for a DTensor, its local shard.

    Raises
    ------
    DtypeError
        The tensor wraps others in a way that is unknown here.
    """
    if bridge.has_memory(tensor):
        return tensor
    if _is_distributed(tensor):
        local: Tensor = tensor._local_tensor
        return local
    raise DtypeError(
        f"a {type(tensor).__name__} wraps other tensors and has no memory of its own; use the "
        f"optimizer of torch.optim"
    )


def _is_distributed(tensor: Tensor) -> bool:
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def gradient_of(p: Tensor) -> Tensor:
    """Return p.grad as elements for those of `memory_of(p)`, of any float dtype and order.

    Raises
    ------
    DtypeError
        The parameter is complex or integer, or the gradient is sparse.
    StateError
        Elements of p share memory though p is written to, or the gradient has other sizes.
    """
    g = p.grad
    assert g is not None
    bridge.of(p)
    if g.is_sparse or p.is_complex() or g.layout != torch.strided:
        raise DtypeError("sparse gradients and complex parameters are not offered; use torch.optim")
    if p.dtype not in bridge.FLOATS or g.dtype not in bridge.FLOATS:
        raise DtypeError(
            f"a parameter of {p.dtype} has a gradient of {g.dtype}; wanted float64, float32, "
            f"float16 or bfloat16"
        )
    if _is_distributed(p) and _is_distributed(g):
        g = g.redistribute(p.device_mesh, p.placements)
    memory, g = memory_of(p), memory_of(g)
    _refuse_overlap("a parameter", memory)
    if g.shape == memory.shape and g.device == memory.device:
        return g
    try:
        if g.device == memory.device:
            return g.detach().expand(memory.shape)  # PyTorch would broadcast it too
    except RuntimeError:
        pass
    raise StateError(
        f"a parameter of shape {tuple(memory.shape)} on {memory.device} has a gradient of shape "
        f"{tuple(g.shape)} on {g.device}; call zero_grad() and backward() after its data changed"
    )


def _refuse_overlap(what: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous() and torch._debug_has_internal_overlap(tensor) == 1:
        raise StateError(
            f"{what} of shape {tuple(tensor.shape)} and strides {tensor.stride()} is written to, "
            f"but more than one of its elements lie in the same place; clone() it before"
        )


def storage_of(entry: Entry, slot_types: tuple[torch.dtype, ...] | None) -> torch.dtype:
    """Return the dtype that parameter and gradient have in the update: the widest that takes part.

    Parameters
    ----------
    entry : Entry
        The tensors.
    slot_types : tuple of dtype, or None
        Dtypes that slots may have besides those of p and g and p's compute dtype; None is any
        float.

    Raises
    ------
    DtypeError
        A slot is sparse, as PyTorch's SGD leaves it after sparse gradients.
    StateError
        A slot does not fit the parameter (any more). PyTorch raises a RuntimeError there.
    """
    p, g = entry.p, entry.g
    storage = p.dtype if g.dtype == p.dtype else torch.promote_types(p.dtype, g.dtype)
    for slot in entry.slots:
        wanted = bridge.compute_dtype(p.dtype)
        if slot.layout != torch.strided:
            raise DtypeError(f"state of {slot.layout} is not offered; use torch.optim")
        if slot.shape != p.shape or slot.device != p.device:
            raise _misfit(p, slot)
        if slot.dtype != wanted:
            known = bridge.FLOATS if slot_types is None else (p.dtype, g.dtype, *slot_types)
            if slot.dtype not in known:
                raise _misfit(p, slot)
            if slot.dtype == torch.float64:
                storage = torch.float64
        if slot.stride() != p.stride():
            _refuse_overlap("state", slot)
    return storage


def _misfit(p: Tensor, slot: Tensor) -> StateError:
    was, now = (f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (slot, p))
    return StateError(
        f"the optimizer has state of {was} for a parameter of {now}: the parameter was cast, moved "
        f"or resized after its first step; make the optimizer anew, or clear its state"
    )


def step_count(step: Any, p: Tensor, fused: bool | None) -> Tensor:
    """Return the step count of a parameter: one element on its device.

    A number (from an old checkpoint) becomes a tensor of the dtype that PyTorch gives it.

    Raises
    ------
    StateError
        It is a tensor of several elements.
    """
    if not isinstance(step, Tensor):
        return torch.tensor(float(step), dtype=count_dtype(fused), device=p.device)
    if step.numel() != 1:
        raise StateError(f"state['step'] has the shape {tuple(step.shape)}; wanted one number")
    return step if step.device == p.device else step.to(p.device)


def count_dtype(fused: bool | None) -> torch.dtype:
    """Return PyTorch's dtype of step counts."""
    wide = torch.get_default_dtype() == torch.float64 and not fused
    return torch.float64 if wide else torch.float32
