"""Pointwise losses and output functions, written in place on NumPy blocks.

A pointwise loss is called as ``value_and_delta(a, t, value, delta, work, k)`` with

* ``a``: the output layer's pre-activations; ``t``: the targets,
* ``value``: receives the loss of each element,
* ``delta``: receives its derivative with respect to a, and may be ``a`` itself,
* ``work``: one more block, which the formula may overwrite,
* ``k``: the loss's one parameter (0.0 if it has none).

The softmax cross entropy couples the units of a row. It is an operation of the backends instead.
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

    Parameters
    ----------
    name : str
        Name in the registry, and of the CUDA struct.
    output : str
        Name of the output function O that belongs to the loss, yhat = O(a_L).
    value_and_delta : callable
        In-place block formula; see the module's docstring.
    target_domain : {"real", "unit", "nonnegative"}
        Where the targets lie; "unit" is 0 to 1. A target outside is an error.
    task : str
        What the command line calls the learning of such targets.
    default : bool
        True for the loss that is taken if only the output function, or only the task, is named.
    parameter : float
        The formula's one parameter, a number above 0; 0.0 if it has none.
    parameter_name : str
        Name of the parameter; "" if the formula has none.
    kinks : bool
        True if the second derivative jumps at abs(a - t) = parameter. The gradient check steps
        around it.

    Examples
    --------
    >>> huber = pointwise_loss("huber(2)")
    >>> huber.output, huber.parameter_name, huber.parameter
    ('linear', 'delta', 2.0)
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
    """value = (a - t)^2 / 2; delta = a - t."""
    np.subtract(a, t, delta)
    np.multiply(delta, delta, value)
    np.multiply(value, 0.5, value)


def binary_cross_entropy(
    a: Array, t: Array, value: Array, delta: Array, work: Array, k: float
) -> None:
    """value = -(t log p + (1 - t) log(1 - p)) with p = logistic(a); delta = p - t.

    The value is computed as (1 - t) a - min(a, 0) + log1p(exp(-|a|)). It is finite for every finite
    a, and infinite for a = inf, t = 0.
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
    """value = exp(a) - t a; delta = exp(a) - t.

    The value is the negative log likelihood without the term log t!, which does not depend on a.
    """
    np.multiply(a, t, work)
    np.exp(a, delta)
    np.subtract(delta, work, value)
    np.subtract(delta, t, delta)


def huber(a: Array, t: Array, value: Array, delta: Array, work: Array, k: float) -> None:
    """value = r^2 / 2 if |r| <= k, else k (|r| - k / 2), with r = a - t (Huber 1964).

    delta is r bounded by -k and k. The value is computed as delta (r - delta / 2).
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
    """Return the pointwise loss that `spec` names.

    Parameters
    ----------
    spec : str
        A registry name ("poisson"), or a name with its parameter in parentheses ("huber(2)").

    Returns
    -------
    PointwiseLoss
        The registry's entry, with the parameter that was given.

    Raises
    ------
    OptionError
        The name is unknown, the loss has no parameter, or the parameter is not a finite number
        above 0.

    Examples
    --------
    >>> pointwise_loss("poisson").output
    'exp'
    """
    entry: PointwiseLoss = with_parameter(POINTWISE_LOSSES, spec, "loss", positive=True)
    return entry


FINDERS[PointwiseLoss] = pointwise_loss


def softmax_rows(a: Array, out: Array) -> None:
    """out[i] = exp(z) / sum(exp(z)) with z = a[i] - max(a[i]); out may be a."""
    np.subtract(a, a.max(1, keepdims=True), out)
    np.exp(out, out)
    np.divide(out, out.sum(1, keepdims=True), out)


def log_softmax_rows(a: Array, out: Array) -> None:
    """out[i, k] = log(softmax(a[i])[k]), with the row maximum subtracted first; out may be a."""
    np.subtract(a, a.max(1, keepdims=True), out)
    np.subtract(out, np.log(np.exp(out).sum(1, keepdims=True)), out)


def _linear(a: Array, out: Array) -> None:
    """out = a."""
    if out is not a:
        np.copyto(out, a)


def _logistic(a: Array, out: Array) -> None:
    """out = 1 / (1 + exp(-a))."""
    logistic_value(a, out, (), 0.0)


def _exp(a: Array, out: Array) -> None:
    """out = exp(a)."""
    np.exp(a, out)


# Output functions O: yhat = O(a_L), called as output(a, out) on (N, K) arrays.
OUTPUTS: dict[str, Callable[[Array, Array], None]] = {
    "softmax": softmax_rows,
    "linear": _linear,
    "logistic": _logistic,
    "exp": _exp,
}
