"""Tell whether a fit of float32 data has numbers that float32 does not hold.

scikit-learn subtracts y from the output in the wider dtype of the two. If y is float64, its
gradients, moments and losses are therefore float64, even if X and the parameters are float32. Here
they are float32, which is as good for ordinary numbers. For others the whole fit is computed in
float64, and the parameters are rounded in every step as scikit-learn rounds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from gpubackprop.sklearn import arrays

Array = Any
LARGE = 1e15  # float32 holds the square of a gradient of this size, and the sum of such squares
SMALLEST_EPSILON = 1e-30  # the smallest epsilon that float32, whose least number is 1e-38, can use


def outgrow_float32(estimator: Any, X: Array, y: np.ndarray, weights: np.ndarray | None) -> bool:
    """Return whether targets, gradients or penalty of a regression leave the range of float32.

    Parameters
    ----------
    estimator : BaseMLP
        The estimator.
    X : (N, D) array
        Checked inputs, on any device.
    y : (N, K) array
        Targets as they were given.
    weights : (N,) array or None
        Sample weights.

    Returns
    -------
    bool
        True only if scikit-learn computes in float64: float32 does not hold the dtype of y.
    """
    if y.dtype.kind == "b" or np.result_type(np.float32, y.dtype) == np.float32:
        return False
    x_bound = max(1.0, _norm(X))
    y_bound = max(x_bound, arrays.largest(y))
    tiny = estimator.solver == "adam" and estimator.epsilon < SMALLEST_EPSILON
    return x_bound * y_bound > LARGE or tiny or _penalty(estimator.alpha, weights) > LARGE


def _norm(X: Array) -> float:
    """Return the root of the sum of squares, a bound of the largest element that takes one pass."""
    if arrays.on_gpu(X):
        backend = arrays.backend_of(X)
        out = backend.zeros(2, X.dtype)
        backend.sum_of_squares(X.reshape(-1), out)
        return float(np.sqrt(backend.to_host(out)[0]))
    flat = X.data if sparse.issparse(X) else X.ravel("K")
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.dot(flat, flat)))


def _penalty(alpha: float, weights: np.ndarray | None) -> float:
    """Return a bound of the L2 factor of a batch, which is alpha / the sum of its weights."""
    if weights is None or not alpha:
        return 0.0
    positive = weights[weights > 0]
    return alpha / float(positive.min()) if len(positive) else 0.0
