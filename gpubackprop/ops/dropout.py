"""Dropout with a mask that depends on (seed, step, layer) alone, the same on every device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from gpubackprop.backends import backend_for
from gpubackprop.backends.memory import Array
from gpubackprop.errors import OptionError, ShapeError
from gpubackprop.formulas import ACTIVATIONS, Dropout
from gpubackprop.formulas.dropout import MAX_STREAM, keep_mask, random_state
from gpubackprop.ops import checks

_MAX_STEP = (1 << 48) - 1


def dropout_forward(
    x: Any, p: float, *, seed: int, step: int = 0, layer: int = 0, out: Array | None = None
) -> Array:
    """Drop elements: 0 with probability p, else x / (1 - p) (inverted dropout).

    Parameters
    ----------
    x : (N, D) float array
        Values; 16-bit types are computed in float32. A NaN that is dropped becomes 0.
    p : float
        Probability in [0, 1).
    seed : int
        Chooses the mask, below 2^64. A network that trains uses the trainer's seed.
    step : int
        Chooses the mask, below 2^48. A network that trains uses the number of updates done.
    layer : int
        Chooses the mask, below 65,535. A network that trains uses the hidden layer's number.
    out : (N, D) array or None
        Receives the result, in the dtype of x; `x` itself works in place.

    Returns
    -------
    (N, D) array
        The result, in the dtype of x: `out`, or a new array.

    Raises
    ------
    ShapeError
        `x` is no matrix, or `out` does not fit it.
    DtypeError
        `x` is no float array.
    OptionError
        A number is out of range, or `out` cannot be written into.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
    J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (Philox4x32-10).

    Examples
    --------
    >>> print(dropout_forward(np.ones((2, 4)), 0.5, seed=1))
    [[2. 2. 2. 2.]
     [2. 2. 0. 2.]]
    """
    op = "dropout_forward"
    dropout = _dropout(p, seed, step, layer)
    backend = backend_for(op, x=x, out=out)
    x = checks.float_matrix(x, "x", op, backend)
    result = checks.output_array(out, x, "x", op, backend)
    source = backend.source(x, x.dtype)
    work = backend.target(result, source)
    state = backend.asarray(dropout.state)
    there = replace(dropout, state=state)
    backend.activation_forward(source, ACTIVATIONS["identity"], work, there)
    backend.store(work, result)
    return result


def dropout_backward(
    grad: Any, p: float, *, seed: int, step: int = 0, layer: int = 0, out: Array | None = None
) -> Array:
    """Compute the gradient with respect to the input of `dropout_forward` with the same arguments.

    The mask is computed again: the forward pass keeps nothing.

    Parameters
    ----------
    grad : (N, D) float array
        Gradient with respect to the output.
    p : float
        As in the forward pass.
    seed : int
        As in the forward pass.
    step : int
        As in the forward pass.
    layer : int
        As in the forward pass.
    out : (N, D) array or None
        Receives the result; `grad` itself works in place.

    Returns
    -------
    (N, D) array
        The gradient, in the dtype of grad: `out`, or a new array.

    Raises
    ------
    ShapeError
        `grad` is no matrix, or `out` does not fit it.
    DtypeError
        `grad` is no float array.
    OptionError
        A number is out of range, or `out` cannot be written into.

    Examples
    --------
    >>> print(dropout_backward(np.ones((2, 4)), 0.5, seed=1))
    [[2. 2. 2. 2.]
     [2. 2. 0. 2.]]
    """
    return dropout_forward(grad, p, seed=seed, step=step, layer=layer, out=out)


def dropout_mask(
    shape: tuple[int, int], p: float, *, seed: int, step: int = 0, layer: int = 0
) -> Array:
    """Return which elements `dropout_forward` keeps.

    Parameters
    ----------
    shape : pair of int
        Rows N and columns D.
    p : float
        As in the forward pass.
    seed : int
        As in the forward pass.
    step : int
        As in the forward pass.
    layer : int
        As in the forward pass.

    Returns
    -------
    (N, D) bool array
        True for the elements that are kept; a NumPy array.

    Raises
    ------
    ShapeError
        `shape` is no pair of sizes.
    OptionError
        A number is out of range.

    Examples
    --------
    >>> print(dropout_mask((2, 4), 0.5, seed=1))
    [[ True  True  True  True]
     [ True  True False  True]]
    """
    try:
        sizes = tuple(int(size) for size in shape)
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) != 2 or min(sizes) < 0:
        raise ShapeError(f"shape is {shape!r} but dropout_mask wants (rows, columns)")
    dropout = _dropout(p, seed, step, layer)
    return keep_mask(sizes, dropout) if math.prod(sizes) else np.ones(sizes, np.bool_)


def dropout_rate(p: Any) -> float:
    """Return `p` as a float in [0, 1), or raise OptionError."""
    rate = checks.number(p, "dropout", 0.0)
    if rate >= 1:
        raise OptionError(
            f"dropout is {p!r} but must be below 1, where nothing would be left; pass a rate such "
            f"as 0.5"
        )
    return rate


def _dropout(p: Any, seed: Any, step: Any, layer: Any) -> Dropout:
    rate = dropout_rate(p)
    seed = _whole(seed, "seed", (1 << 64) - 1)
    step, layer = _whole(step, "step", _MAX_STEP), _whole(layer, "layer", MAX_STREAM - 1)
    return Dropout(rate, layer, random_state(seed, step))


def _whole(value: Any, name: str, most: int) -> int:
    try:
        number = int(value)
        whole = number == value
    except (TypeError, ValueError, OverflowError):
        number, whole = -1, False
    if not (whole and 0 <= number <= most):
        raise OptionError(f"{name} is {value!r} but must be a whole number from 0 to {most:,}")
    return number
