"""Cross entropy of an affine layer without its logits, with PyTorch's signature."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor

from gpubackprop.torch import bridge
from gpubackprop.torch.affine import affine
from gpubackprop.torch.cross_entropy import check_weight, cross_entropy
from gpubackprop.torch.errors import OptionError, ShapeError, check_tensors
from gpubackprop.torch.layers import autocast, check_types
from gpubackprop.torch.linear_cross_entropy_ops import by_core
from gpubackprop.torch.linear_cross_entropy_ops import linear_cross_entropy as _fused
from gpubackprop.torch.loss_settings import checked
from gpubackprop.torch.offered import exporting


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Compute cross_entropy(linear(input, ...), target, ...), as PyTorch's linear_cross_entropy.

    For class indices the logits never exist as a whole. They are computed in chunks and summed in
    float32; in 16 bits, for a compiler, for "none" and on a GPU once more in the backward pass.
    Memory beyond inputs and gradients: `linear_cross_entropy_ops.working_memory`.

    Parameters
    ----------
    input : (D,) or (N, D) tensor
        Inputs of the affine layer.
    linear_weight : (C, D) tensor
        Weights of the layer. With (C, d1, ..., D) the logits (N, C, d1, ...) are computed whole.
    target : tensor
        Class indices (), (N,) or (N, d1, ...); or probabilities, shaped as the logits, which are
        then computed whole too.
    linear_bias : (C,) tensor or None
        Biases; (C, d1, ...) if linear_weight is (C, d1, ..., D).
    weight : (C,) tensor or None
        Class weights, as in `cross_entropy`.
    reduction : {"mean", "sum", "none"}
        How rows become the loss.
    ignore_index : int or None
        Label of rows that add nothing; None is -100, and the only choice for probabilities.
    label_smoothing : float
        As in `cross_entropy`.
    options : object
        Accepted but not read: the sizes decide the chunks.
    z_loss : float
        As in `cross_entropy`.

    Returns
    -------
    tensor
        The loss, of shape (), or shaped as the class indices for "none"; float32 for 16-bit input.

    Raises
    ------
    ShapeError
        The shapes do not fit each other.
    DtypeError
        A tensor has a dtype that is not offered.
    OptionError
        An option is unknown or out of range.
    DeviceUnavailable
        The tensors lie on several devices, or neither on the CPU nor on a CUDA device.
    LabelError
        A label is out of range, as in `cross_entropy`. All errors are also of PyTorch's types.

    References
    ----------
    `torch.nn.functional.linear_cross_entropy`; the chunks of classes are described in
    `gpubackprop.torch.linear_cross_entropy_ops`.

    Examples
    --------
    >>> x, W = torch.tensor([[1.0, 2.0]]), torch.zeros(4, 2)
    >>> round(linear_cross_entropy(x, W, torch.tensor([3])).item(), 4)
    1.3863
    """
    given = {"linear_bias": linear_bias, "weight": weight}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    check_tensors(
        "linear_cross_entropy", input=input, linear_weight=linear_weight, target=target, **given
    )
    _check(input, linear_weight, linear_bias)
    bridge.same_device("input", input, target=target, weight=weight)
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_types("linear_weight", input, linear_weight, linear_bias)
    check_weight(weight, linear_weight.shape[0], "linear_cross_entropy")
    classes, *places = linear_weight.shape[:-1]
    logits_shape = (*input.shape[:-1], classes, *places)
    dense = target.shape == logits_shape
    if dense and ignore_index is not None:
        raise OptionError("ignore_index goes with class indices; target holds probabilities")
    settings = checked(
        reduction, label_smoothing, -100 if ignore_index is None else ignore_index, z_loss
    )
    if dense or places or bridge.transformed() or exporting():
        bias = None if linear_bias is None else linear_bias.reshape(-1)
        x, W = input, linear_weight.flatten(0, -2)
        rounds = x.itemsize == 2 and bridge.transformed()  # vmap adds the bias to rounded products
        logits = affine(x, W, bias) if rounds else F.linear(x, W, bias)
        return cross_entropy(logits.reshape(logits_shape), target, weight, **settings._asdict())
    if target.shape != input.shape[:-1] or target.is_floating_point():
        raise ShapeError(
            f"target has dtype {target.dtype} and shape {tuple(target.shape)} but the logits "
            f"{logits_shape} want class indices {tuple(input.shape[:-1])} or probabilities"
        )
    targets = target.reshape(-1).long()
    x = input if input.dim() == 2 else input[None]
    operands = [t for t in (x, linear_weight, linear_bias) if t is not None]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in operands)
    keep = keep and not (torch.compiler.is_compiling() and by_core(x))  # it calls the backward pass
    W = linear_weight.view_as(linear_weight)  # as in `linear_act`
    loss, *_ = _fused(x, W, linear_bias, targets, weight, *settings, keep)
    return loss.reshape(target.shape) if settings.reduction == "none" else loss


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    bridge.same_device("input", input, linear_weight=weight, linear_bias=bias)
    if input.dim() not in (1, 2) or weight.dim() < 2 or input.shape[-1] != weight.shape[-1]:
        raise ShapeError(
            f"input has shape {tuple(input.shape)} and linear_weight {tuple(weight.shape)} but "
            f"wanted are (N, D) or (D,), and (C, D) or (C, d1, ..., D)"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ShapeError(
            f"linear_bias has shape {tuple(bias.shape)}, wanted {tuple(weight.shape[:-1])}"
        )
    if not weight.shape[0]:
        raise ShapeError("linear_weight has no rows: wanted is at least one class")
    if weight.dim() > 2 and input.dim() == 1:
        raise ShapeError("a linear_weight of more than two dimensions wants input (N, D)")
