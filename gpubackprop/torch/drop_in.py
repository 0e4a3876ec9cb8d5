"""Losses in the place of PyTorch's, for `patch` and `convert`.

They return PyTorch's dtypes, and call PyTorch's own loss if something is not offered here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor, nn

from gpubackprop.errors import DeviceUnavailable, DtypeError, OptionError, ShapeError
from gpubackprop.torch import bridge, fused, offered
from gpubackprop.torch.cross_entropy import CrossEntropyLoss
from gpubackprop.torch.cross_entropy import cross_entropy as _cross_entropy
from gpubackprop.torch.linear_cross_entropy import linear_cross_entropy as _linear_cross_entropy

NOT_OFFERED = (DeviceUnavailable, DtypeError, OptionError, ShapeError)
ORIGINALS = {name: getattr(F, name, None) for name in ("cross_entropy", "linear_cross_entropy")}
KNOWN = set(ORIGINALS.values())  # functions that these losses may replace; `patch` adds its own


def refuse(*tensors: Any) -> None:
    """Raise DtypeError if a tensor is not offered, or if PyTorch's own operators are wanted."""
    why = offered.refusal_now() or next(filter(None, map(offered.refusal, tensors)), "")
    if why:
        raise DtypeError(why)


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: Any = -100,
    reduce: Any = None,
    reduction: Any = "mean",
    label_smoothing: Any = 0.0,
    z_loss: float = 0.0,
) -> Any:
    """Compute `gpubackprop.torch.cross_entropy` in PyTorch's dtype.

    An error of NOT_OFFERED is raised before anything is computed.
    """
    refuse(input, target, *_given(weight))
    loss = _cross_entropy(
        _gradient_in_order(input), target, weight, size_average, ignore_index, reduce, reduction,
        label_smoothing, z_loss=z_loss,
    )  # fmt: skip
    assert isinstance(loss, Tensor)
    return loss.to(_dtype_of_pytorch(input, target, *_given(weight)))


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    **options: Any,
) -> Any:
    """Compute `gpubackprop.torch.linear_cross_entropy` as `cross_entropy` does its loss."""
    refuse(input, linear_weight, target, *_given(linear_bias, weight))
    loss = _linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight, **options
    )
    return loss.to(_dtype_of_pytorch(input, target, *_given(weight)))


def _gradient_in_order(input: Tensor) -> Tensor:
    """Return `input`; make its gradient contiguous, as PyTorch's is.

    A program may view the gradient as one row, but the kernels write the gradient of (N, C, d1,
    ...) with the classes last.
    """
    wanted = input.dim() > 2 and input.requires_grad and torch.is_grad_enabled()
    if not wanted or torch.compiler.is_compiling() or bridge.transformed():
        return input
    same = input.view_as(input)
    same.register_hook(Tensor.contiguous)
    return same


def _given(*tensors: Any) -> list[Any]:
    return [tensor for tensor in tensors if tensor is not None]


def _dtype_of_pytorch(input: Tensor, *others: Tensor) -> torch.dtype:
    """Return the widest dtype of logits, probabilities and weights; float32 under autocast."""
    dtype = input.dtype
    for tensor in others:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.promote_types(dtype, torch.float32)
    return dtype


def original(name: str) -> Callable[..., Any]:
    """Return PyTorch's function.

    To tensors with a `__torch_function__` it passes its own name, and not the function that stands
    in its place inside `patch`.
    """
    function = ORIGINALS[name]
    if not isinstance(function, types.FunctionType) or torch.compiler.is_compiling():
        assert function is not None
        return function
    own = types.FunctionType(function.__code__, {**vars(F), **ORIGINALS}, name)
    own.__defaults__, own.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return own


class _ConvertedLoss(fused.Exchanged, CrossEntropyLoss):
    """The class that `convert` gives to a `torch.nn.CrossEntropyLoss`."""

    z_loss = 0.0

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.cross_entropy(
                input,
                target,
                weight=self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
            )
        else:  # TorchScript does not compile this branch
            return _loss_of(self, input, target)


def _loss_of(module: Any, input: Any, target: Any) -> Any:
    options = module.ignore_index, None, module.reduction, module.label_smoothing
    if F.cross_entropy in KNOWN:
        try:
            return cross_entropy(input, target, module.weight, None, *options, z_loss=module.z_loss)
        except NOT_OFFERED:
            if module.z_loss:
                raise
    return nn.CrossEntropyLoss.forward(module, input, target)


fused.EXCHANGES[nn.CrossEntropyLoss] = fused.named_like(nn.CrossEntropyLoss, _ConvertedLoss)
