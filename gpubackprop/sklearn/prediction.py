"""The output of a fitted estimator for new rows.

Repeated predictions of a few rows are planned at the second call of a kind. A plan reads coefs_ and
intercepts_ in place, so it sees what is written into them. If they are replaced, the plan is made
anew. It is kept beside the estimator and not in it, because a prediction must leave the estimator
as it was. A call takes the plan out of the store and puts it back afterwards, so two threads that
predict at once never share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy import sparse

from gpubackprop import backends
from gpubackprop.backends import Backend, devices
from gpubackprop.formulas import Activation, activation
from gpubackprop.passes import Layers, Units, emit_forward
from gpubackprop.sklearn.arrays import backend_of, device_of, on_gpu
from gpubackprop.sklearn.host import SparseBatch, host_backend
from gpubackprop.sklearn.members import mean_of
from gpubackprop.sklearn.objective import Objective
from gpubackprop.sklearn.stored import arrays_to_predict

Array = Any
BATCH_ROWS = 16384  # so many rows have their hidden units in memory at a time
FEW = 1 << 14  # the most numbers in all units of all rows for which a plan is made
PARAMETERS = 1 << 17  # the most parameters: a plan keeps replaced ones alive until it is made anew
FLOATS = (np.dtype(np.float64), np.dtype(np.float32))


def outputs(estimator: Any, x: Any) -> Array:
    """Return yhat (N, K), computed from the present coefs_ and intercepts_; of members, the mean.

    Parameters
    ----------
    estimator : BaseMLP
        The fitted estimator.
    x : (N, D_0) array
        Checked inputs: a NumPy array, a CSR matrix, or an array of a GPU, where the result then is.
    """
    members = vars(estimator).get("members_")
    if members is not None:
        return mean_of([outputs(member, x) for member in members])
    key = kind_of(estimator, x)
    if key is None:
        return _outputs(estimator, x)
    plan = _take(estimator, key)
    if plan is None:
        result = _outputs(estimator, x)
        _begin(estimator, x, key)
        return result
    if plan.replay is None:
        e, kind = estimator, Objective(estimator.out_activation_, plan.result_width).output
        hidden = hidden_activations(e.activation, len(e.coefs_) - 1)
        parameters = [coef.T for coef in e.coefs_], e.intercepts_
        plan.plan(
            host_backend(device_for_host_rows(e)),
            lambda backend, x, out: _emit(backend, x, parameters, hidden, kind, out),
            x,
        )
    result = plan(x)
    _keep(estimator, plan)
    return result


def _outputs(estimator: Any, x: Any) -> Array:
    e, host = estimator, not on_gpu(x)
    if not host:
        own = device_of(x)
    elif sparse.issparse(x):
        own = e.device if devices.is_host(e.device) else "cpu"
    else:
        own = device_for_host_rows(e)
    backend: Backend = host_backend(own) if devices.is_host(own) else backends.get(own)
    coefs, intercepts = arrays_to_predict(e, x.shape[1])
    theirs = np.dtype(e.precision or np.result_type(x.dtype, *(coef.dtype for coef in coefs)))
    dtype = theirs if theirs in (np.float32, np.float64) else np.dtype(np.float64)
    # On the CPU these are views: nothing is copied if the dtype is right.
    W = [backend.inputs(coef, dtype).T for coef in coefs]
    b = [backend.inputs(intercept, dtype) for intercept in intercepts]
    hidden = hidden_activations(e.activation, len(W) - 1)
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
    """Return (N, 2) probabilities of two classes from (N, 1) of the second, on the same device."""
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


def hidden_activations(spec: Any, layers: int) -> list[Activation]:
    """Return the activation of each hidden layer, from one name for all or a list of names."""
    return [activation(spec)] * layers if isinstance(spec, str) else [activation(s) for s in spec]


def _batch(backend: Backend, x: Any, dtype: np.dtype) -> Any:
    if not sparse.issparse(x):
        return backend.inputs(x, dtype)
    return SparseBatch(x.astype(dtype, copy=False))


# -- a few rows, again and again ------------------------------------------------------------------


class FewRows:
    """One kind of call, and its plan from the second call on.

    Parameters
    ----------
    estimator : BaseMLP
        The fitted estimator; only its parameters are kept.
    key : tuple
        What `kind_of` returned for the call.
    """

    def __init__(self, estimator: Any, key: tuple[Any, ...]) -> None:
        self.key, self.parameters = key, _parameters(estimator)
        self.shapes = [array.shape for array in self.parameters]
        self.replay: Callable[[], None] | None = None
        self.x = self.result = np.empty(0)

    def fits(self, estimator: Any, key: tuple[Any, ...]) -> bool:
        """Return whether the next call is of this kind, with these arrays of parameters."""
        now = _parameters(estimator)
        return (
            key == self.key
            and all(map(_is, now, self.parameters))
            and [array.shape for array in now] == self.shapes
        )

    @property
    def result_width(self) -> int:
        return int(self.parameters[-1].shape[0])

    def plan(
        self, backend: Backend, emit: Callable[[Backend, Array, Array], None], x: Array
    ) -> None:
        """Record the calls that `emit` issues from rows like x to a result."""
        self.x = backend.empty(x.shape, x.dtype)
        self.result = backend.empty((len(x), self.result_width), x.dtype)
        self.replay = backend.plan(lambda recorder: emit(recorder, self.x, self.result))

    def __call__(self, x: Array) -> Array:
        assert self.replay is not None
        np.copyto(self.x, x)
        self.replay()
        return self.result.copy()


_KEPT: WeakKeyDictionary[Any, FewRows] = WeakKeyDictionary()


def device_for_host_rows(e: Any) -> str:
    """Return the device for rows of the host; "auto" predicts on the CPU if it fitted there."""
    if e.device == "auto" and getattr(e, "device_", "").partition(",")[0] == "cpu":
        return "cpu"
    return devices.chosen(e.device)[0]


def kind_of(estimator: Any, x: Any) -> tuple[Any, ...] | None:
    """Return what a plan for x depends on beside the parameters; None if no plan is made."""
    e = estimator
    if type(x) is not np.ndarray or x.dtype not in FLOATS or not x.flags.c_contiguous:
        return None
    if e.precision is not None or not isinstance(e.activation, str):
        return None
    device = device_for_host_rows(e)
    if not devices.is_host(device) or len(e.coefs_) != len(e.intercepts_):
        return None
    return x.shape, x.dtype, device, e.activation, e.out_activation_, e.n_layers_, len(e.coefs_)


def _take(estimator: Any, key: tuple[Any, ...]) -> FewRows | None:
    """Return the estimator's plan if it fits; it is the caller's alone until it is kept again."""
    kept = _KEPT.pop(estimator, None)
    return kept if kept is not None and kept.fits(estimator, key) else None


def _keep(estimator: Any, plan: FewRows) -> None:
    _KEPT[estimator] = plan


def _begin(estimator: Any, x: Array, key: tuple[Any, ...]) -> None:
    """Note a call, so that the next one of its kind is planned, if that is worth it."""
    own = _parameters(estimator)
    if not all(type(array) is np.ndarray and array.dtype == x.dtype for array in own):
        return
    units = sum(array.shape[-1] for array in own if array.ndim == 1)
    pairs = zip(estimator.coefs_, estimator.intercepts_, strict=True)
    plain = all(b.shape == W.shape[1:] for W, b in pairs)
    if plain and len(x) * (units + x.shape[1]) <= FEW and sum(a.size for a in own) <= PARAMETERS:
        _keep(estimator, FewRows(estimator, key))


def _parameters(estimator: Any) -> list[Any]:
    return [*estimator.coefs_, *estimator.intercepts_]


def _is(one: Any, other: Any) -> bool:
    return one is other
