"""Pointwise losses and output functions, written in place on NumPy blocks.

A pointwise loss is called as ``value_and_delta(a, t, value, delta, work, k)``: ``a`` the output
layer's pre-activations, ``t`` the targets, ``value`` the loss of each element, ``delta`` its
derivative with respect to a (it may be ``a`` itself), ``work`` one more block, ``k`` the loss's one
parameter (0.0 where it has none). The softmax cross entropy couples the units of a row and is a
operation of the backends instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpubackprop.formulas.activations import logistic_value
from gpubackprop.formulas.registry import FINDERS, Entry, spelled, with_parameter

Array = np.ndarray


@dataclass(frozen=True)
class PointwiseLoss(Entry):
    """A loss that is a sum over rows and output units.

    Attributes
    ----------
    name : registry name, also the CUDA struct's.
    output : name of the output function O that belongs to it, yhat = O(a_L).
    value_and_delta : in-place block formula (see the module's docstring).
    target_domain : "real", "unit" (0 to 1) or "nonnegative"; targets outside it are an error.
    task : what the command line calls the learning of such targets.
    default : True for the loss that is taken where only the output function, or the task, is named.
    parameter, parameter_name : the formula's one parameter, a number above 0; "" if none.
    kinks : True where the second derivative jumps at abs(a - t) = parameter (the gradient check
        steps around it).
    """

    name: str
    output: str
    value_and_delta: Callable[[Array, Array, Array, Array, Array, float], None]
    target_domain: str
    task: str
    default: bool = True
    parameter: float = 0.0
    parameter_name: str = ""
    kinks: bool = False

    def __repr__(self) -> str:
        return f"PointwiseLoss({str(self)!r})"

    def __str__(self) -> str:
        return spelled(POINTWISE_LOSSES, self)


def squared_error(a: Array, t: Array, value: Array, delta: Array, work: Array, k: float) -> None:
    """(a - t)^2 / 2; derivative a - t."""
    np.subtract(a, t, delta)
    np.multiply(delta, delta, value)
    np.multiply(value, 0.5, value)


def binary_cross_entropy(
    a: Array, t: Array, value: Array, delta: Array, work: Array, k: float
) -> None:
    """-(t log p + (1 - t) log(1 - p)), p logistic(a), as (1 - t) a - min(a, 0) + log1p(exp(-|a|)).

    Derivative p - t. Finite for every finite a, and infinite for a = inf, t = 0.
    """
    np.subtract(1.0, t, value)
    np.multiply(value, a, value)
    np.minimum(a, 0.0, out=work)
    np.subtract(value, work, value)
    np.abs(a, work)
    np.negative(work, work)
    np.exp(work, work)
    np.log1p(work, work)
    np.add(value, work, value)
    logistic_value(a, delta, (), 0.0)
    np.subtract(delta, t, delta)


def poisson(a: Array, t: Array, value: Array, delta: Array, work: Array, k: float) -> None:
    """exp(a) - t a, the negative log likelihood without log t!; derivative exp(a) - t."""
    np.multiply(a, t, work)
    np.exp(a, delta)
    np.subtract(delta, work, value)
    np.subtract(delta, t, delta)


def huber(a: Array, t: Array, value: Array, delta: Array, work: Array, k: float) -> None:
    """r^2 / 2 where r = a - t is within k of 0, and k (|r| - k / 2) beyond (Huber 1964).

    As d (r - d / 2), where the derivative d is r, bounded by -k and k.
    """
    np.subtract(a, t, work)
    np.minimum(work, k, out=delta)
    np.maximum(delta, -k, out=delta)
    np.multiply(delta, 0.5, value)
    np.subtract(work, value, value)
    np.multiply(value, delta, value)


POINTWISE_LOSSES: dict[str, PointwiseLoss] = {
    entry.name: entry
    for entry in (
        PointwiseLoss("squared_error", "linear", squared_error, "real", "regression"),
        PointwiseLoss(
            "binary_cross_entropy", "logistic", binary_cross_entropy, "unit", "multilabel"
        ),
        PointwiseLoss("poisson", "exp", poisson, "nonnegative", "poisson"),
        PointwiseLoss(
            "huber", "linear", huber, "real", "regression", False, 1.0, "delta", kinks=True
        ),
    )
}


def pointwise_loss(spec: str) -> PointwiseLoss:
    """The pointwise loss that `spec` names.

    Parameters
    ----------
    spec : a registry name, or a name with its parameter in parentheses.

    Raises
    ------
    OptionError : unknown name, no such parameter, or a parameter that is not a finite number above
        0.

    >>> pointwise_loss("poisson").output
    'exp'
    """
    entry: PointwiseLoss = with_parameter(POINTWISE_LOSSES, spec, "loss", positive=True)
    return entry


FINDERS[PointwiseLoss] = pointwise_loss


def softmax_rows(a: Array, out: Array) -> None:
    """out[i] = softmax(a[i]); out may be a."""
    np.subtract(a, a.max(1, keepdims=True), out)
    np.exp(out, out)
    np.divide(out, out.sum(1, keepdims=True), out)


def log_softmax_rows(a: Array, out: Array) -> None:
    """out[i] = log softmax(a[i]); out may be a."""
    np.subtract(a, a.max(1, keepdims=True), out)
    np.subtract(out, np.log(np.exp(out).sum(1, keepdims=True)), out)


def _linear(a: Array, out: Array) -> None:
    if out is not a:
        np.copyto(out, a)


def _logistic(a: Array, out: Array) -> None:
    logistic_value(a, out, (), 0.0)


def _exp(a: Array, out: Array) -> None:
    np.exp(a, out)


# Output functions O: yhat = O(a_L), called as output(a, out) on (N, K) arrays.
OUTPUTS: dict[str, Callable[[Array, Array], None]] = {
    "softmax": softmax_rows,
    "linear": _linear,
    "logistic": _logistic,
    "exp": _exp,
}
