"""Output of a fitted estimator for new rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from gpubackprop import backends
from gpubackprop.backends import Backend
from gpubackprop.formulas import Activation, activation
from gpubackprop.passes import Layers, Units, emit_forward
from gpubackprop.sklearn import few_rows
from gpubackprop.sklearn.arrays import backend_of, device_of, on_gpu
from gpubackprop.sklearn.host import HostBackend, SparseBatch
from gpubackprop.sklearn.objective import Objective
from gpubackprop.sklearn.stored import arrays_to_predict

Array = Any
BATCH_ROWS = 16384  # rows whose hidden units are in memory at a time


def outputs(estimator: Any, x: Any) -> Array:
    """yhat (N, K), from coefs_ and intercepts_ as they are now.

    Parameters
    ----------
    x : (N, D_0) checked; a NumPy array, CSR matrix, or array of a GPU, where the result then lies.
    """
    key = few_rows.kind_of(estimator, x)
    if key is None:
        return _outputs(estimator, x)
    plan = few_rows.take(estimator, key)
    if plan is None:
        result = _outputs(estimator, x)
        few_rows.begin(estimator, x, key)
        return result
    if plan.replay is None:
        e, kind = estimator, Objective(estimator.out_activation_, plan.result_width).output
        hidden = _hidden(e.activation, len(e.coefs_) - 1)
        parameters = [coef.T for coef in e.coefs_], e.intercepts_
        plan.plan(
            HostBackend(),
            lambda backend, x, out: _emit(backend, x, parameters, hidden, kind, out),
            x,
        )
    result = plan(x)
    few_rows.keep(estimator, plan)
    return result


def _outputs(estimator: Any, x: Any) -> Array:
    e, host = estimator, not on_gpu(x)
    own = (
        device_of(x)
        if not host
        else "cpu"
        if sparse.issparse(x)
        else few_rows.device_for_host_rows(e)
    )
    backend = HostBackend() if own == "cpu" else backends.get(own)
    coefs, intercepts = arrays_to_predict(e, x.shape[1])
    theirs = np.dtype(e.precision or np.result_type(x.dtype, *(coef.dtype for coef in coefs)))
    dtype = theirs if theirs in (np.float32, np.float64) else np.dtype(np.float64)
    # On the CPU these are views: nothing is copied where the dtype is right.
    W = [backend.inputs(coef, dtype).T for coef in coefs]
    b = [backend.inputs(intercept, dtype) for intercept in intercepts]
    hidden = _hidden(e.activation, len(W) - 1)
    kind = Objective(e.out_activation_, len(b[-1])).output
    result = backend.empty((x.shape[0], len(b[-1])), dtype)
    for start in range(0, x.shape[0], BATCH_ROWS):
        out = result[start : start + BATCH_ROWS]
        h = _batch(backend, x[start : start + BATCH_ROWS], dtype)
        _emit(backend, h, (W, b), hidden, kind, out)
    if not host:
        return result
    return backend.to_host(result).astype(theirs if theirs.kind == "f" else dtype, copy=False)


def _emit(
    backend: Backend,
    x: Any,
    parameters: Layers,
    hidden: Sequence[Activation],
    kind: str,
    out: Array,
) -> None:
    """Issue the forward pass from x to out, and the output function."""
    widths = [bias.shape[0] for bias in parameters[1]]
    units = Units(backend, out.shape[0], widths, hidden, out.dtype, logits=out)
    emit_forward(backend, x, parameters, units)
    backend.output(out, kind, out)


def two_columns(positive: Array) -> Array:
    """(N, 1) probabilities of the second of two classes -> (N, 2) of both, where they lie."""
    if isinstance(positive, np.ndarray):
        return np.concatenate([1 - positive, positive], axis=1)
    backend, rows = backend_of(positive), positive.shape[0]
    both, negative = (backend.empty((rows, width), positive.dtype) for width in (2, 1))
    backend.fill(negative, 1.0)
    minus = backend.zeros((), positive.dtype)
    backend.fill(minus, -1.0)
    backend.add_scaled(positive.reshape(-1), minus, negative.reshape(-1))
    backend.gather_rows(negative, None, both[:, :1])
    backend.gather_rows(positive, None, both[:, 1:])
    return both


def _hidden(spec: Any, layers: int) -> list[Activation]:
    """The activation of each hidden layer, from one name for all or a list of names."""
    return [activation(spec)] * layers if isinstance(spec, str) else [activation(s) for s in spec]


def _batch(backend: Backend, x: Any, dtype: np.dtype) -> Any:
    if not sparse.issparse(x):
        return backend.inputs(x, dtype)
    return SparseBatch(x.astype(dtype, copy=False))
