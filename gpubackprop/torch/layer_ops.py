"""An affine layer with its activation as custom operators of PyTorch, with their gradients.

    a = x W^T + b,  h = g(a)
    delta = dL/dh * g'(a),  grad_b = sum_i delta_i: one pass;  grad_W = delta^T x,  grad_x = delta W

PyTorch computes the products (its BLAS, its workspace, capturable). For 16-bit types it also adds
the bias, before the product is rounded. The backend's operations compute what follows and precedes
the products. If the slope is a function of a, a is an output too, so that PyTorch can differentiate
the backward pass with respect to it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpubackprop.formulas import activation
from gpubackprop.torch import bridge
from gpubackprop.torch.activations import slope


@torch.library.custom_op(
    "gpubackprop::linear_act",
    mutates_args=(),
    schema="(Tensor x, Tensor W, Tensor? b, str activation_name) -> (Tensor, Tensor)",
)
def linear_act(
    x: Tensor, W: Tensor, b: Tensor | None, activation_name: str
) -> tuple[Tensor, Tensor]:
    """Return (h, a), both (..., D_out), for x (..., D_in), W (D_out, D_in), b (D_out,).

    If h gives the slope, a is (0, 0). h is no view: a program may change it in place.
    """
    h, a = _of_matrix(_matrix(x), W, b, activation_name)
    shape = (*x.shape[:-1], W.shape[0])
    keeps_a = activation(activation_name).saved == "a"
    return _shaped(h, shape), (_shaped(a, shape) if keeps_a else a)


def _of_matrix(
    x: Tensor, W: Tensor, b: Tensor | None, activation_name: str
) -> tuple[Tensor, Tensor]:
    formula, nothing = activation(activation_name), x.new_empty((0, 0))
    if formula.name == "identity":
        return (torch.mm(x, W.t()) if b is None else torch.addmm(b, x, W.t())), nothing
    if b is None or x.dtype.itemsize == 2:  # 16 bits: the bias is added before the one rounding
        a = torch.mm(x, W.t()) if b is None else torch.addmm(b, x, W.t())
        bias = None
    else:
        a, bias = torch.mm(x, W.t()), b.contiguous()
    wide = _workable(a)
    h = wide if formula.saved == "h" or wide is not a else torch.empty_like(wide)
    of = bridge.of(x)
    with of.backend_of(x) as backend:
        before = of.array(wide)
        after = before if h is wide else of.array(h)
        if bias is None:
            backend.activation_forward(before, formula, after)
        else:
            backend.affine_epilogue(before, of.array(bias), formula, after)
    return h.to(x.dtype), (nothing if formula.saved == "h" else a)


def _matrix(tensor: Tensor) -> Tensor:
    """Return (..., D) as (N, D)."""
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _shaped(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return `matrix`, which nothing else refers to, as a tensor that is no view of it."""
    return matrix if matrix.dim() == len(shape) else torch.ops.aten._unsafe_view(matrix, shape)


@linear_act.register_fake
def _(x, W, b, activation_name):
    h = x.new_empty((*x.shape[:-1], W.shape[0]))
    keeps_a = activation(activation_name).saved == "a"
    return h, (torch.empty_like(h) if keeps_a else x.new_empty((0, 0)))


def _workable(tensor: Tensor) -> Tensor:
    """Return 16-bit tensors of the CPU in float32, the least in which NumPy computes."""
    if bridge.of(tensor).is_cuda:
        return tensor
    return tensor.to(bridge.compute_dtype(tensor.dtype))


@torch.library.custom_op(
    "gpubackprop::activation_backward",
    mutates_args=(),
    schema="(Tensor grad_h, Tensor saved, str activation_name) -> (Tensor, Tensor)",
)
def activation_backward(
    grad_h: Tensor, saved: Tensor, activation_name: str
) -> tuple[Tensor, Tensor]:
    """Return delta (N, D) and its column sums (D,); `saved` (N, D) is h or a."""
    dtype, of = saved.dtype, bridge.of(saved)
    grad_h, saved = of.rows(_workable(grad_h.to(dtype))), of.rows(_workable(saved))
    delta = torch.empty(saved.shape, dtype=saved.dtype, device=saved.device)
    grad_b = delta.new_empty(delta.shape[1])
    with of.backend_of(saved) as backend:
        backend.activation_backward(
            of.array(grad_h), of.array(saved), activation(activation_name), of.array(delta),
            of.array(grad_b),
        )  # fmt: skip
    return delta.to(dtype), grad_b.to(dtype)


@activation_backward.register_fake
def _(grad_h, saved, activation_name):
    return saved.new_empty(saved.shape), saved.new_empty(saved.shape[1])


@torch.library.custom_op("gpubackprop::column_sum", mutates_args=(), schema="(Tensor x) -> Tensor")
def column_sum(x: Tensor) -> Tensor:
    """Return sum_i x_ij for x (N, D), in a fixed order; sums of 16-bit numbers are float32."""
    of = bridge.of(x)
    wide = of.rows(_workable(x))
    out = wide.new_empty(wide.shape[1])
    with of.backend_of(wide) as backend:
        backend.column_sum(of.array(wide), of.array(out))
    return out.to(x.dtype)


@column_sum.register_fake
def _(x):
    return x.new_empty(x.shape[1])


# -- autograd -------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, W, _, name = inputs
    saved = activation(name).saved
    kept = () if name == "identity" else (output[0] if saved == "h" else output[1],)
    # Save only what is needed: a program may change the rest, e.g. W by a step of an optimizer.
    needs_x, needs_W = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_W else None, W if needs_x else None, *kept)
    ctx.name, ctx.shape = name, x.shape
    ctx.set_materialize_grads(False)
    if saved == "h":
        ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_h: Tensor | None, grad_a: Tensor | None) -> tuple[Tensor | None, ...]:
    x, W, *saved = ctx.saved_tensors
    grad_h, grad_a = (None if grad is None else _matrix(grad) for grad in (grad_h, grad_a))
    delta, grad_b = grad_a, None
    if grad_h is not None and saved:
        delta, grad_b = activation_backward(grad_h, _matrix(saved[0]), ctx.name)
        if grad_a is not None:
            delta, grad_b = delta + grad_a, grad_b + grad_a.sum(0)
    elif grad_h is not None:
        delta = grad_h
    if delta is None:
        return None, None, None, None
    needs_x, needs_W, needs_b = ctx.needs_input_grad[:3]
    if needs_b and grad_b is None:
        grad_b = column_sum(delta)
    return (
        torch.mm(delta, W).reshape(ctx.shape) if needs_x else None,
        torch.mm(delta.t(), _matrix(x)) if needs_W else None,
        grad_b if needs_b else None,
        None,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_h, saved, ctx.name = inputs
    ctx.save_for_backward(grad_h, saved)
    ctx.set_materialize_grads(False)


def _double_backward(
    ctx: Any, v_delta: Tensor | None, v_b: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return v g' for grad_h and v grad_h g'' for what was saved, with v = v_delta + v_b."""
    grad_h, saved = ctx.saved_tensors
    parts = [v for v in (v_delta, v_b) if v is not None]
    if not parts:
        return None, None, None
    v = sum(parts[1:], parts[0]).expand(saved.shape)
    formula = activation(ctx.name)
    value, pullback = torch.func.vjp(lambda s: slope(formula, s), saved)
    return v * value, pullback((v * grad_h).to(value.dtype))[0], None


linear_act.register_autograd(_backward, setup_context=_setup)
activation_backward.register_autograd(_double_backward, setup_context=_setup_backward)
column_sum.register_autograd(
    lambda ctx, grad: grad.expand(ctx.shape),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "shape", inputs[0].shape),
)
