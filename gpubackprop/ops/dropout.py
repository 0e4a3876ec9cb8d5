"""Dropout whose mask is a pure function of (seed, step, layer), the same on every device."""

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
    """Inverted dropout: 0 with probability p, else x / (1 - p).

    Parameters
    ----------
    x : (N, D) float; 16-bit types are computed in float32. A NaN that is dropped becomes 0.
    p : in [0, 1).
    seed, step, layer : choose the mask; whole numbers below 2^64, 2^48 and 65,535. A network that
        trains uses the trainer's seed, the number of updates done, and the hidden layer's number.
    out : (N, D) of the dtype of x; `x` itself works in place.

    Returns
    -------
    (N, D) of the dtype of x.

    Source: Srivastava et al. 2014; Philox4x32-10 of Salmon et al. 2011.

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
    """The gradient with respect to the input of `dropout_forward` with the same arguments.

    The mask is computed again: nothing is kept of the forward pass.

    Parameters
    ----------
    grad : (N, D) float, gradient with respect to the output. The others as in `dropout_forward`.
    """
    return dropout_forward(grad, p, seed=seed, step=step, layer=layer, out=out)


def dropout_mask(
    shape: tuple[int, int], p: float, *, seed: int, step: int = 0, layer: int = 0
) -> Array:
    """Bool array (N, D): the elements that `dropout_forward` keeps.

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
    """`p` as a float in [0, 1), or an OptionError."""
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
