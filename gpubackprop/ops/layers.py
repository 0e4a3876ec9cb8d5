"""Layers: affine maps, activations and their backward passes, a whole batch at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends import Backend, backend_for
from gpubackprop.backends.memory import Array
from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.formulas import Activation, activation
from gpubackprop.ops import checks


def affine_forward(
    x: Any, W: Any, b: Any, activation_name: str | Activation = "identity"
) -> tuple[Array, Array]:
    """a = x W^T + b and h = g(a).

    Parameters
    ----------
    x : (N, D_in); W : (D_out, D_in); b : (D_out,): float64 or float32, all of one dtype.
    activation_name : entry of the activation registry, e.g. "relu", "leaky_relu(0.2)".

    Returns
    -------
    h : (N, D_out).
    saved : what `affine_backward` needs of this pass: h, or a where the slope is a function of a.

    >>> x, W, b = np.array([[1.0, 2.0]]), np.array([[1.0, 1.0]]), np.array([-5.0])
    >>> h, _ = affine_forward(x, W, b, "relu")
    >>> print(h)
    [[0.]]
    """
    op, act = "affine_forward", activation(activation_name)
    backend = backend_for(op, x=x, W=W, b=b)
    W = checks.float_matrix(W, "W", op, backend)
    x = checks.float_matrix(x, "x", op, backend, W.shape[1])
    b = checks.as_array(b, "b", op, backend)
    if b.shape != (W.shape[0],):
        raise ShapeError(f"b has shape {b.shape} but {op} wants ({W.shape[0]},) for W {W.shape}")
    _one_dtype(op, x=x, W=W, b=b)
    _full_precision(op, x)
    a = backend.new((len(x), len(W)), x.dtype)
    h = a if act.saved == "h" else backend.new(a.shape, a.dtype)
    factors = backend.factor(x), backend.factor(W), backend.factor(b)
    backend.affine_forward(*factors, act, a, h)
    return h, (h if act.saved == "h" else a)


def affine_backward(
    grad_h: Any,
    saved: Any,
    x: Any,
    W: Any,
    activation_name: str | Activation = "identity",
    *,
    input_gradient: bool = True,
) -> tuple[Array, Array, Array | None]:
    """Gradients of a layer from the gradient with respect to its hidden units.

    delta = grad_h * g'(a); grad_W = delta^T x; grad_b = sum_i delta_i; grad_x = delta W.

    Parameters
    ----------
    grad_h : (N, D_out), gradient with respect to h; left unchanged.
    saved : (N, D_out), from `affine_forward`.
    x : (N, D_in), the layer's input; W : (D_out, D_in).
    input_gradient : False leaves the product delta W out.

    Returns
    -------
    grad_W : (D_out, D_in); grad_b : (D_out,); grad_x : (N, D_in) or None.
    """
    op, act = "affine_backward", activation(activation_name)
    backend = backend_for(op, grad_h=grad_h, saved=saved, x=x, W=W)
    W = checks.float_matrix(W, "W", op, backend)
    x = checks.float_matrix(x, "x", op, backend, W.shape[1])
    _full_precision(op, x)
    delta = _activation_backward(backend, grad_h, saved, act, None)
    if delta.shape != (len(x), len(W)):
        raise ShapeError(
            f"grad_h has shape {delta.shape} but {op} wants ({len(x)}, {len(W)}) for x {x.shape} "
            f"and W {W.shape}"
        )
    _one_dtype(op, grad_h=delta, x=x, W=W)
    grad_W, grad_b = backend.new(W.shape, W.dtype), backend.new(len(W), W.dtype)
    grad_x = backend.new(x.shape, x.dtype) if input_gradient else None
    backend.affine_backward(delta, backend.factor(x), backend.factor(W), grad_W, grad_x)
    backend.column_sum(delta, grad_b)
    return grad_W, grad_b, grad_x


def activation_forward(a: Any, name: str | Activation, *, out: Array | None = None) -> Array:
    """h = g(a), elementwise.

    Parameters
    ----------
    a : (N, D) float; 16-bit types are computed in float32.
    name : entry of the activation registry.
    out : (N, D) of the dtype of a; `a` itself works in place.

    >>> print(activation_forward(np.array([[-1.0, 2.0]]), "relu"))
    [[0. 2.]]
    """
    op = "activation_forward"
    backend = backend_for(op, a=a, out=out)
    a = checks.float_matrix(a, "a", op, backend)
    h = checks.output_array(out, a, "a", op, backend)
    source = backend.source(a, checks.compute_dtype(a.dtype, "a", op))
    work = backend.target(h, source)
    backend.activation_forward(source, activation(name), work)
    backend.store(work, h)
    return h


def activation_backward(
    grad_h: Any, saved: Any, name: str | Activation, *, out: Array | None = None
) -> Array:
    """delta = grad_h * g'(a), elementwise.

    Parameters
    ----------
    grad_h : (N, D) float, gradient with respect to h.
    saved : (N, D) of the same dtype: h, or a where ``activation(name).saved == "a"``.
    name : entry of the activation registry.
    out : (N, D); `grad_h` itself works in place.

    >>> print(activation_backward(np.array([[5.0, 5.0]]), np.array([[0.0, 2.0]]), "relu"))
    [[0. 5.]]
    """
    backend = backend_for("activation_backward", grad_h=grad_h, saved=saved, out=out)
    return _activation_backward(backend, grad_h, saved, activation(name), out)


def _activation_backward(
    backend: Backend, grad_h: Any, saved: Any, formula: Activation, out: Array | None
) -> Array:
    op = "activation_backward"
    grad_h = checks.float_matrix(grad_h, "grad_h", op, backend)
    saved = checks.float_matrix(saved, "saved", op, backend)
    if grad_h.shape != saved.shape:
        raise ShapeError(
            f"grad_h has shape {grad_h.shape} but {op} wants {saved.shape}, the shape of saved"
        )
    _one_dtype(op, grad_h=grad_h, saved=saved)
    delta = checks.output_array(out, grad_h, "grad_h", op, backend)
    overlaps = backend.overlap(delta, saved)
    if overlaps and not checks.same_view(delta, saved, backend):
        raise OptionError("out overlaps saved without being the same view; give it its own memory")
    dtype = checks.compute_dtype(grad_h.dtype, "grad_h", op)
    source = backend.source(grad_h, dtype)
    work = backend.target(delta, source)
    backend.activation_backward(source, backend.source(saved, dtype), formula, work)
    backend.store(work, delta)
    return delta


def column_sum(delta: Any) -> Array:
    """out[j] = sum_i delta[i, j]: the bias gradient. Fixed order, float32 sums for 16-bit types.

    Parameters
    ----------
    delta : (N, D) float.

    Returns
    -------
    (D,) of the dtype of delta.
    """
    backend = backend_for("column_sum", delta=delta)
    delta = checks.float_matrix(delta, "delta", "column_sum", backend)
    dtype = checks.compute_dtype(delta.dtype, "delta", "column_sum")
    source = backend.summand(delta, dtype)
    work = backend.new(delta.shape[1], source.dtype)
    backend.column_sum(source, work)
    if work.dtype == delta.dtype:
        return work
    out = backend.new(work.shape, delta.dtype)
    backend.store(work, out)
    return out


def _one_dtype(op: str, **arrays: Array) -> None:
    dtypes = {name: array.dtype for name, array in arrays.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise DtypeError(f"{op} wants one dtype but got {listed}; convert with .astype")


def _full_precision(op: str, x: Array) -> None:
    if x.dtype not in (np.float32, np.float64):
        raise DtypeError(
            f"x has dtype {x.dtype} but {op} wants float32 or float64; convert x, W and "
            f"b with .astype(np.float32)"
        )
