"""Losses that are sums over output units: squared error, binary cross entropy, Poisson."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends import HOST, LossOptions, backend_for
from gpubackprop.backends.memory import Array, Memory
from gpubackprop.dtypes import is_number
from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.formulas import PointwiseLoss
from gpubackprop.formulas import pointwise_loss as formula_named
from gpubackprop.ops import checks

REDUCTIONS = ("mean", "elementwise_mean", "sum", "none")


def pointwise_loss(
    name: str,
    a: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    reduction: str = "mean",
    out: Array | None = None,
    check: bool = False,
) -> tuple[Any, Array]:
    """Compute a pointwise loss of output pre-activations and its gradient, in one pass.

    ======================  ==========================  ===============  ===========
    name                    l(a, t)                     dl/da            output O(a)
    ======================  ==========================  ===============  ===========
    "squared_error"         (a - t)^2 / 2               a - t            a
    "binary_cross_entropy"  log(1 + exp(a)) - t a       logistic(a) - t  logistic(a)
    "poisson"               exp(a) - t a                exp(a) - t       exp(a)
    ======================  ==========================  ===============  ===========

    row_i = sample_weight_i * sum_k l(a_ik, t_ik).

    Parameters
    ----------
    name : str
        One of the above, or another entry of `gpubackprop.formulas.POINTWISE_LOSSES`. If the loss
        has a parameter, it may follow in parentheses.
    a : (N, K) float array
        Pre-activations of the output units: float64, float32, float16 or bfloat16.
    targets : (N, K) array, or (N,) if K = 1
        Real numbers; in [0, 1] for binary cross entropy, and at least 0 for Poisson.
    sample_weight : (N,) array or None
        Non-negative factor of each row.
    reduction : {"mean", "elementwise_mean", "sum", "none"}
        How rows become the loss. "mean" is the sum of rows / the sum of sample weights;
        "elementwise_mean" is that divided by K (PyTorch's "mean"); "none" keeps (N,).
    out : (N, K) array or None
        Receives delta, in the dtype of a; `a` itself works in place.
    check : bool
        For arrays on a GPU. True waits for the GPU and checks targets and weights, as is always
        done on the host; False takes their values as they are.

    Returns
    -------
    loss : scalar, or (N,) array for "none"
        The loss, in float32, or in float64 for float64.
    delta : (N, K) array
        Gradient of the reduced loss with respect to a, in the dtype of a.

    Raises
    ------
    ShapeError
        The shapes do not fit each other.
    DtypeError
        An array has no numeric dtype.
    OptionError
        The name or an option is unknown, or a target or weight is out of range.

    References
    ----------
    C. M. Bishop, "Pattern Recognition and Machine Learning", 2006, section 5.2: a loss with its
    canonical link gives delta = yhat - t.

    Examples
    --------
    >>> loss, delta = pointwise_loss("squared_error", np.array([[3.0]]), np.array([[1.0]]))
    >>> print(loss, delta)
    2.0 [[2.]]
    """
    formula = formula_named(name)
    backend = backend_for(name, a=a, targets=targets, sample_weight=sample_weight, out=out)
    a = checks.float_matrix(a, "a", name, backend)
    rows = len(a)
    checks.choice(reduction, "reduction", REDUCTIONS)
    targets = pointwise_targets(formula, targets, a.shape, backend, check)
    weights = checks.sample_weights(sample_weight, name, rows, backend, check)
    delta = checks.output_array(out, a, "a", name, backend)
    checks.no_overlap(delta, backend, targets=targets, sample_weight=weights)
    dtype = checks.compute_dtype(a.dtype, "a", name)
    source = backend.source(a, dtype)
    result = {name: backend.new(rows, dtype) for name in ("row_loss", "scale")}
    result |= {"loss": backend.new((), dtype), "delta": backend.target(delta, source)}
    targets = backend.inputs(targets, dtype)
    options = LossOptions(reduction=reduction)
    weights = backend.place(checks.near_one(weights, reduction), dtype)
    backend.pointwise_loss(source, targets, formula, options, result, weights)
    backend.store(result["delta"], delta)
    return (result["row_loss"] if reduction == "none" else result["loss"][()]), delta


def pointwise_targets(
    formula: PointwiseLoss,
    targets: Any,
    shape: tuple[int, int],
    memory: Memory = HOST,
    check: bool = False,
) -> Array:
    """Return (N, K) numeric targets inside the loss's domain; an error names row and column."""
    targets = checks.as_array(targets, "targets", formula.name, memory)
    if not is_number(targets.dtype):
        raise DtypeError(
            f"targets has dtype {targets.dtype} but {formula.name} wants numbers; encode text "
            f"labels first"
        )
    if targets.ndim == 1 and shape[1] == 1:
        targets = targets[:, None]
    if targets.shape != shape:
        raise ShapeError(
            f"targets has shape {targets.shape} but {formula.name} wants {shape}, one number for "
            f"each output unit"
        )
    low = -np.inf if formula.target_domain == "real" else 0
    high = 1 if formula.target_domain == "unit" else np.inf
    values = memory.values(targets, check)
    if values is None:
        return targets
    bad = (values < low) | (values > high)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        wanted = "in [0, 1]" if high == 1 else "at least 0"
        raise OptionError(
            f"targets[{row}, {column}] is {values[row, column]} but {formula.name} wants targets "
            f"{wanted}"
        )
    return targets
