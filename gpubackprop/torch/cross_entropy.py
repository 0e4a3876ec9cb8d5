"""Cross entropy with PyTorch's signature, computed by the kernels."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import Tensor
from torch.nn import _reduction

from gpubackprop.torch import bridge, composed
from gpubackprop.torch.cross_entropy_ops import loss_and_lse
from gpubackprop.torch.errors import (
    DtypeError,
    OptionError,
    ShapeError,
    check_tensors,
)
from gpubackprop.torch.loss_settings import checked
from gpubackprop.torch.offered import exporting


@torch.fx.wrap  # one node of a traced graph
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `torch.nn.functional.cross_entropy` in one pass over the logits.

    With p = softmax(input) over the classes and w the class weights, a label y costs
    -w_y log p_y + z_loss * lse^2, where lse = log sum_k exp(input_k).

    Parameters
    ----------
    input : (C,), (N, C) or (N, C, d1, ...) tensor
        Logits in float64, float32, float16 or bfloat16; any strides.
    target : (), (N,) or (N, d1, ...) tensor
        Class indices in [0, C), of any integer dtype; or probabilities, shaped as `input`.
    weight : (C,) tensor or None
        Class weights. They are not differentiable, as in PyTorch for class indices.
    size_average : bool or None
        Deprecated in PyTorch; see its documentation.
    ignore_index : int
        Rows with this label add nothing to loss, count or gradient, even if they hold NaN.
    reduce : bool or None
        Deprecated in PyTorch; see its documentation.
    reduction : {"mean", "sum", "none"}
        How rows become the loss.
    label_smoothing : float
        Share in [0, 1] of each target that is spread evenly over the classes.
    z_loss : float
        Factor of lse^2, at least 0. The term is reduced as the rest of its row.
    return_lse : bool
        Whether to return lse too.

    Returns
    -------
    loss : () tensor
        Shaped as the class indices for "none". Its dtype is float32 for 16-bit
        input (PyTorch rounds it to 16 bits, except under autocast), else the dtype of `input`.
    lse : (), (N,) or (N, d1, ...) tensor
        Differentiable. Only with `return_lse`.

    Raises
    ------
    ShapeError
        The shapes do not fit each other; also a RuntimeError, as PyTorch's.
    DtypeError
        A tensor has a dtype that is not offered; also a NotImplementedError, hence a RuntimeError.
    OptionError
        An option is unknown or out of range; also a RuntimeError and a TypeError.
    DeviceUnavailable
        The tensors lie on several devices, or neither on the CPU nor on a CUDA device.
    LabelError
        A label is out of range; also an IndexError. On a CPU it is raised at once. On a GPU, loss
        and gradient of that row are NaN and a later call raises it, see `check_labels`.

    References
    ----------
    I. Goodfellow, Y. Bengio and A. Courville, "Deep Learning", 2016, section 6.2.2. C. Szegedy et
    al., "Rethinking the Inception architecture", 2016 (label smoothing). A. Chowdhery et al.,
    "PaLM", 2022 (z-loss).

    Examples
    --------
    >>> logits = torch.zeros(1, 2, requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([1]))
    >>> loss.backward()
    >>> print(round(loss.item(), 4), logits.grad)
    0.6931 tensor([[ 0.5000, -0.5000]])
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    settings = checked(reduction, label_smoothing, ignore_index, z_loss)
    _check(input, target, weight, settings.ignore_index)
    classes = 0 if input.dim() == 1 else 1
    logits = input
    if input.dim() != 2:
        logits = input.movedim(classes, -1).reshape(-1, input.shape[classes])
    if target.shape == input.shape:
        flat = target.dim() == 2
        targets = target if flat else target.movedim(classes, -1).reshape(logits.shape)
    else:
        targets = target if target.dim() == 1 else target.reshape(-1)
        targets = targets if targets.dtype in bridge.LABELS else targets.long()
    if bridge.transformed() or exporting():
        loss, lse = composed.loss(logits, targets, weight, settings)
    else:
        loss, lse = loss_and_lse(logits, targets, weight, settings, return_lse)
    if input.dim() == 2 or (settings.reduction != "none" and not return_lse):
        return (loss, lse) if return_lse else loss
    rows_shape = (*input.shape[:classes], *input.shape[classes + 1 :])
    loss = loss.reshape(rows_shape) if settings.reduction == "none" else loss
    return (loss, lse.reshape(rows_shape)) if return_lse else loss


def _check(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> None:
    op = "cross_entropy"
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)) or weight is not None:
        named = {} if weight is None else {"weight": weight}
        check_tensors(op, input=input, target=target, **named)
    if not (input.is_cpu and target.is_cpu) or weight is not None:
        bridge.same_device("input", input, target=target, weight=weight)
    if input.dtype not in bridge.FLOATS:
        raise DtypeError(
            f"input has dtype {input.dtype} but {op} wants float64, float32, float16 or bfloat16; "
            f"convert it with input.float()"
        )
    if input.dim() == 0:
        raise ShapeError(f"input has no dimension but {op} wants (C,), (N, C) or (N, C, d1, ...)")
    classes = input.shape[0 if input.dim() == 1 else 1]
    if not classes:
        raise ShapeError(f"input has shape {tuple(input.shape)}: {op} wants at least one class")
    if weight is not None:
        check_weight(weight, classes, op)
    _check_target(input, target, classes, ignore_index)


def check_weight(weight: Tensor | None, classes: int, op: str) -> None:
    """Raise ShapeError or OptionError for class weights that are not (C,) constants."""
    if weight is None:
        return
    if weight.shape != (classes,):
        raise ShapeError(
            f"weight has shape {tuple(weight.shape)} but {op} wants ({classes},), one for each "
            f"class"
        )
    if weight.requires_grad and torch.is_grad_enabled():
        raise OptionError(
            f"weight requires a gradient, which {op} does not compute; pass weight.detach(), or "
            f"call torch.nn.functional.{op}, which has it for probabilities"
        )


def _check_target(input: Tensor, target: Tensor, classes: int, ignore_index: int) -> None:
    op = "cross_entropy"
    if target.shape == input.shape:
        if target.dtype not in bridge.FLOATS:
            raise DtypeError(
                f"target has the shape of input, {tuple(target.shape)}, and so holds probabilities "
                f"of the classes, but its dtype is {target.dtype}; pass target.float(), or class "
                f"indices without the dimension of the classes, e.g. target.argmax(1)"
            )
        if ignore_index >= 0:
            raise OptionError(
                f"ignore_index={ignore_index} goes with class indices; target holds probabilities"
            )
        return
    wanted = (*input.shape[:1], *input.shape[2:]) if input.dim() > 1 else ()
    if target.shape != wanted:
        raise ShapeError(
            f"target has shape {tuple(target.shape)} but {op} wants class indices {wanted}, or "
            f"probabilities {tuple(input.shape)}, for input {tuple(input.shape)}"
        )
    if target.is_floating_point() or target.is_complex():
        raise DtypeError(
            f"target has dtype {target.dtype} and shape {tuple(target.shape)} but class indices "
            f"are integers; use target.long(), or pass probabilities {tuple(input.shape)}"
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` with `cross_entropy`; `z_loss` is added to its arguments.

    Parameters
    ----------
    weight : (C,) tensor or None
        Class weights; a buffer, as in PyTorch.
    size_average : bool or None
        Deprecated in PyTorch; see its documentation.
    ignore_index : int
        Rows with this label add nothing to loss, count or gradient.
    reduce : bool or None
        Deprecated in PyTorch; see its documentation.
    reduction : {"mean", "sum", "none"}
        How rows become the loss.
    label_smoothing : float
        Share in [0, 1] of each target that is spread evenly over the classes.
    z_loss : float
        Factor of lse^2, at least 0.

    References
    ----------
    `torch.nn.CrossEntropyLoss`; see `cross_entropy` for formulas, shapes and errors.

    Examples
    --------
    >>> loss = CrossEntropyLoss(label_smoothing=0.1)
    >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)
    0.6931
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        input : (C,), (N, C) or (N, C, d1, ...) tensor
            Logits.
        target : (), (N,) or (N, d1, ...) tensor
            Class indices; or probabilities, shaped as `input`.

        Returns
        -------
        () tensor
            The loss; shaped as the class indices for "none".
        """
        if torch.jit.is_scripting():
            return F.cross_entropy(
                input,
                target,
                self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
            )
        else:  # TorchScript does not compile this branch
            loss = cross_entropy(  # a Tensor, or torch.fx's stand-in for one
                input,
                target,
                self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
                z_loss=self.z_loss,
            )
            return cast(Tensor, loss)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Let torch.jit.script compile it, if PyTorch has all of it."""
        if self.z_loss:
            raise OptionError("z_loss is not offered in torch.jit.script; use torch.jit.trace")
        return self
