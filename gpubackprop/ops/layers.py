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
    """Compute a = x W^T + b and h = g(a).

    Parameters
    ----------
    x : (N, D_in) float array
        Inputs, float64 or float32; all arrays have one dtype.
    W : (D_out, D_in) float array
        Weights.
    b : (D_out,) float array
        Biases.
    activation_name : str or Activation
        Entry of the activation registry, e.g. "relu", "leaky_relu(0.2)".

    Returns
    -------
    h : (N, D_out) array
        Hidden units, in the dtype of x.
    saved : (N, D_out) array
        The array of this pass that `affine_backward` needs: h, or a if the slope is a function of
        a.

    Raises
    ------
    ShapeError
        The shapes do not fit each other.
    DtypeError
        The arrays are not of one dtype, or not float64 or float32.
    OptionError
        The activation is unknown.

    References
    ----------
    D. E. Rumelhart, G. E. Hinton and R. J. Williams, "Learning representations by back-propagating
    errors", 1986.

    Examples
    --------
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
    """Compute the gradients of a layer from the gradient with respect to its hidden units.

    delta = grad_h * g'(a); grad_W = delta^T x; grad_b = sum_i delta_i; grad_x = delta W.

    Parameters
    ----------
    grad_h : (N, D_out) float array
        Gradient with respect to h; it is left unchanged.
    saved : (N, D_out) float array
        From `affine_forward`.
    x : (N, D_in) float array
        The layer's input.
    W : (D_out, D_in) float array
        Weights.
    activation_name : str or Activation
        Entry of the activation registry.
    input_gradient : bool
        Whether to compute grad_x, the product delta W.

    Returns
    -------
    grad_W : (D_out, D_in) array
        Gradient with respect to W.
    grad_b : (D_out,) array
        Gradient with respect to b.
    grad_x : (N, D_in) array or None
        Gradient with respect to x.

    Raises
    ------
    ShapeError
        The shapes do not fit each other.
    DtypeError
        The arrays are not of one dtype, or not float64 or float32.
    OptionError
        The activation is unknown.

    References
    ----------
    D. E. Rumelhart, G. E. Hinton and R. J. Williams, "Learning representations by back-propagating
    errors", 1986.

    Examples
    --------
    >>> x, W, b = np.array([[1.0, 2.0]]), np.array([[1.0, 1.0]]), np.array([0.0])
    >>> h, saved = affine_forward(x, W, b, "relu")
    >>> grad_W, grad_b, grad_x = affine_backward(np.array([[10.0]]), saved, x, W, "relu")
    >>> print(grad_W, grad_b, grad_x)
    [[10. 20.]] [10.] [[10. 10.]]
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
    """Compute h = g(a), elementwise.

    Parameters
    ----------
    a : (N, D) float array
        Pre-activations; 16-bit types are computed in float32.
    name : str or Activation
        Entry of the activation registry.
    out : (N, D) array or None
        Receives h, in the dtype of a; `a` itself works in place.

    Returns
    -------
    (N, D) array
        The values h: `out`, or a new array.

    Raises
    ------
    ShapeError
        `a` is no matrix, or `out` does not fit it.
    DtypeError
        `a` is no float array.
    OptionError
        The activation is unknown, or `out` cannot be written into.

    Examples
    --------
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
    """Compute delta = grad_h * g'(a), elementwise.

    Parameters
    ----------
    grad_h : (N, D) float array
        Gradient with respect to h.
    saved : (N, D) float array
        The values h, or a if ``activation(name).saved == "a"``; of the dtype of grad_h.
    name : str or Activation
        Entry of the activation registry.
    out : (N, D) array or None
        Receives delta; `grad_h` itself works in place.

    Returns
    -------
    (N, D) array
        The gradient delta: `out`, or a new array.

    Raises
    ------
    ShapeError
        The shapes differ.
    DtypeError
        The arrays are not of one float dtype.
    OptionError
        The activation is unknown, or `out` overlaps an input without being the same view.

    Examples
    --------
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
    """Compute out[j] = sum_i delta[i, j], the bias gradient, in a fixed order.

    Parameters
    ----------
    delta : (N, D) float array
        The terms; those of 16-bit types are summed in float32.

    Returns
    -------
    (D,) array
        The sums, in the dtype of delta.

    Raises
    ------
    ShapeError
        `delta` is no matrix.
    DtypeError
        `delta` is no float array.

    Examples
    --------
    >>> print(column_sum(np.array([[1.0, 2.0], [3.0, 4.0]])))
    [4. 6.]
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
