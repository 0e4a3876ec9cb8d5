"""Cross entropy of an affine layer as custom operators of PyTorch: the logits never exist.

On a CPU, in float32 and float64, both are `gpubackprop.backends.linear_cross_entropy`: the forward
pass leaves the gradients for an upstream gradient of 1, and the backward pass scales them. It
computes them anew only if each row has an upstream gradient of its own, if they are differentiated
themselves, or for a compiler. Other tensors have `linear_cross_entropy_twice`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpubackprop.backends.linear_cross_entropy import (
    LinearGradients,
    emit_linear_cross_entropy,
    working_bytes,
)
from gpubackprop.torch import bridge, composed
from gpubackprop.torch import linear_cross_entropy_twice as twice
from gpubackprop.torch.cross_entropy_ops import keeps_graph
from gpubackprop.torch.loss_settings import SCHEMA, LossSettings


def working_memory(
    rows: int, features: int, classes: int, dtype: torch.dtype, on_gpu: bool = False
) -> int:
    """Return the most bytes that forward and backward pass take beyond inputs and gradients.

    Parameters
    ----------
    rows : int
        Rows N of the input.
    features : int
        Features D.
    classes : int
        Classes C.
    dtype : torch.dtype
        Dtype of the input and of the weights.
    on_gpu : bool
        Whether it is for a GPU.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> theirs = 3 * 4096 * 128256 * 2  # log-softmax, its gradient, that of the logits, bfloat16
    >>> round(working_memory(4096, 4096, 128256, torch.bfloat16) / theirs, 3)
    0.102
    """
    if on_gpu or bridge.compute_dtype(dtype) != dtype:
        return twice.working_memory(rows, features, classes, dtype)
    kind = np.dtype(str(dtype).removeprefix("torch."))
    own = (2 << 20) + 16 * rows * kind.itemsize  # blocks of the host's operations
    return working_bytes(rows, features, classes, kind, False) + own


def by_core(x: Tensor) -> bool:
    """Return whether the core computes what belongs to this input."""
    return x.dtype == bridge.compute_dtype(x.dtype) and not bridge.of(x).is_cuda


def _in_given_types(body: Callable[..., Any]) -> Callable[..., Any]:
    """Run `body` without autocast, which would round operands that were widened."""

    @functools.wraps(body)
    def run(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return body(first, *others)

    return run


@torch.library.custom_op(
    "gpubackprop::linear_cross_entropy",
    mutates_args=(),
    schema=f"(Tensor x, Tensor W, Tensor? b, Tensor targets, Tensor? weight, {SCHEMA}, "
    "bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@_in_given_types
def linear_cross_entropy(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    targets: Tensor,
    weight: Tensor | None,
    *flat: Any,
) -> tuple[Tensor, ...]:
    """Return the loss and what the backward pass wants.

    x is (N, D), W (C, D), b (C,), targets (N,) int64. `flat` has the fields of the settings, and
    whether there will be a backward pass. The results are (loss, lse, sums, grad_x, grad_W,
    grad_b): the gradients by the core, if the loss is one number; lse and sums by `twice.forward`.
    What is not there has no elements.
    """
    settings, keep = LossSettings(*flat[:-1]), flat[-1]
    loss, lse, sums, *grads = _outputs(x, W, settings, keep)
    if not by_core(x):
        return *twice.forward(x, W, b, targets, weight, settings, keep), *grads
    into = grads if grads[1].shape == W.shape else None
    _through_core(x, W, b, targets, weight, settings, loss, into)
    return loss, lse, sums, *grads


@linear_cross_entropy.register_fake
def _(x, W, b, targets, weight, *flat):
    return _outputs(x, W, LossSettings(*flat[:-1]), flat[-1])


def _outputs(x: Tensor, W: Tensor, settings: LossSettings, keep: bool) -> tuple[Tensor, ...]:
    compute, rows = bridge.compute_dtype(x.dtype), x.shape[0]
    core, by_row = by_core(x), settings.reduction == "none"
    shapes = [x.shape, W.shape, W.shape[:1]] if keep and core and not by_row else [(0,)] * 3
    return (
        x.new_empty((rows,) if by_row else (), dtype=compute),
        x.new_empty((0 if core else rows,), dtype=compute),
        x.new_empty((2, rows if keep and not core else 0), dtype=compute),
        *(x.new_empty(shape) for shape in shapes),
    )


def _through_core(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    targets: Tensor,
    weight: Tensor | None,
    settings: LossSettings,
    loss: Tensor,
    gradients: Sequence[Tensor] | None,
    upstream: Tensor | None = None,
) -> None:
    """Fill loss and gradients (of x, W and b) by the operation of the core."""
    of, by_row = bridge.of(x), settings.reduction == "none"
    x, W = (t if t.is_contiguous() else t.contiguous() for t in (x, W))
    weight = None if weight is None else weight.to(x.dtype).contiguous()
    options = settings.options(of.array(weight), may_be_ignored=True)
    if of.check_targets(targets, W.shape[0], options.ignore_index):
        options = replace(options, ignore_index=None)
    result = {"loss": of.array(loss.new_empty(()) if by_row else loss)}
    if by_row:
        result["row_loss"] = of.array(loss)
    with of.backend_of(x) as backend:
        h, into = of.array(x), None
        if gradients is not None:
            grad_x, grad_W, grad_b = map(of.array, gradients)
            into = LinearGradients(grad_x, grad_W, grad_b)
        emit_linear_cross_entropy(
            backend, h, of.array(W), of.array(None if b is None else b.contiguous()),
            of.array(targets.contiguous()), options, result, into,
            upstream=1.0 if upstream is None else of.array(upstream.contiguous()),
        )  # fmt: skip


@torch.library.custom_op(
    "gpubackprop::linear_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad_loss, Tensor x, Tensor W, Tensor? b, Tensor targets, Tensor? weight, "
    f"Tensor lse, Tensor sums, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
@_in_given_types
def linear_cross_entropy_backward(
    grad_loss: Tensor,
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    targets: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    sums: Tensor,
    *flat: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (grad_x, grad_W, grad_b) for grad_loss () or, for "none", (N,).

    `flat` has the fields of the settings.
    """
    settings = LossSettings(*flat)
    if not by_core(x):
        return twice.backward(grad_loss, x, W, b, targets, weight, lse, sums, settings)
    loss = _outputs(x, W, settings, False)[0]
    grads = (x.new_empty(x.shape), W.new_empty(W.shape), W.new_empty(W.shape[0]))
    upstream = grad_loss.to(x.dtype)
    _through_core(x, W, b, targets, weight, settings, loss, grads, upstream)
    return grads


@linear_cross_entropy_backward.register_fake
def _(grad_loss, x, W, b, *others):
    return x.new_empty(x.shape), W.new_empty(W.shape), W.new_empty(W.shape[0])


# -- autograd -------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.settings = LossSettings(*inputs[5:-1])
    ctx.save_for_backward(*inputs[:5], *output[1:])  # without the loss
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 10
    *inputs, grad_x, grad_W, grad_b = ctx.saved_tensors
    kept, W = (grad_x, grad_W, grad_b), inputs[1]
    if grad_W.shape == W.shape and not torch.is_grad_enabled() and _scales(grad_loss):
        grads = _scaled(kept, grad_loss)
    else:
        grads = linear_cross_entropy_backward(grad_loss, *inputs, *ctx.settings)
    needed = zip(grads, ctx.needs_input_grad[:3], strict=True)
    return *(grad if needs else None for grad, needs in needed), *([None] * 7)


def _has_number(tensor: Tensor) -> bool:
    """Return whether it may be read: is_grads_batched=True gives more than one number."""
    return bool(torch._C._has_storage(tensor))


def _scales(grad_loss: Tensor) -> bool:
    """Return whether the kept gradients may be scaled: of ignored rows, 0 times infinity is NaN."""
    if torch.compiler.is_compiling() or type(grad_loss) is not Tensor:
        return False
    return not _has_number(grad_loss) or math.isfinite(grad_loss.item())


def _scaled(kept: Sequence[Tensor], grad_loss: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients for another upstream gradient than 1, in their own memory if nobody sees
    them again: in a graph that is freed."""
    if _has_number(grad_loss) and grad_loss.item() == 1.0:
        return tuple(kept) if _is_freed() else tuple(t.clone() for t in kept)
    if _has_number(grad_loss) and _is_freed():
        return tuple(t.mul_(grad_loss) for t in kept)
    return tuple(t * grad_loss for t in kept)


def _is_freed() -> bool:
    return keeps_graph is not None and not keeps_graph()


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_loss, x, W, b, targets, weight, _, _, *flat = inputs
    ctx.settings = LossSettings(*flat)
    ctx.save_for_backward(grad_loss, x, W, b, targets, weight)


def _double_backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate by PyTorch's operators, with logits, which second derivatives need."""
    grad_loss, x, W, b, targets, weight = ctx.saved_tensors

    def gradients(grad: Tensor, *inputs: Tensor) -> Any:
        def loss(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
            z = torch.nn.functional.linear(x, W, b)
            return composed.loss(z, targets, weight, ctx.settings)[0]

        return torch.func.vjp(loss, *inputs)[1](grad)

    inputs = (x, W) if b is None else (x, W, b)
    _, pullback = torch.func.vjp(gradients, grad_loss, *inputs)
    grads = pullback(v[: len(inputs)])
    return *grads, *([None] * (12 - len(grads)))


linear_cross_entropy.register_autograd(_backward, setup_context=_setup)
linear_cross_entropy_backward.register_autograd(_double_backward, setup_context=_setup_backward)
