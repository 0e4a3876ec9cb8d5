"""coefs_ and intercepts_ as a later call finds them: the user may have replaced them.

Training goes on if scikit-learn goes on, and raises if scikit-learn raises. The error names the
layer and comes before anything is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier

from gpubackprop.errors import DtypeError, OptionError, ShapeError
from gpubackprop.layout import ParameterLayout
from gpubackprop.network import MLP

Array = np.ndarray


def widths_of(coefs: Sequence[Array]) -> list[int]:
    return [coefs[0].shape[0], *(coef.shape[1] for coef in coefs)]


def float_dtype(*arrays: Any) -> np.dtype:
    """Return float32 if it holds the numbers of all arrays, else float64."""
    wide = np.result_type(*(array.dtype for array in arrays))
    if wide.kind == "f" and wide.itemsize <= 4:
        return np.dtype(np.float32)
    return np.dtype(np.float64)


def arrays_to_predict(estimator: Any, columns: int) -> tuple[list[Array], list[Array]]:
    """Return coefs_ (fan_in, fan_out) and intercepts_ (fan_out,) for X with `columns`.

    Lists and sparse matrices are taken as arrays; an intercept of one number stands for all units.

    Raises
    ------
    ShapeError
        A layer does not fit X or the layer before it, or the last has several units and the
        estimator two classes: scikit-learn then takes each unit of a row for a row.
    """
    coefs = [_dense(coef) for coef in estimator.coefs_]
    intercepts = [_dense(intercept) for intercept in estimator.intercepts_]
    _check_counts(estimator)
    _check_shapes(coefs, intercepts, columns)
    one = getattr(estimator, "n_outputs_", 0) == 1  # absent where a program made the attributes
    if one and coefs[-1].shape[1] != 1 and is_classifier(estimator):
        raise ShapeError(
            f"{_name('coefs_', len(coefs))} has shape {coefs[-1].shape} but must be "
            f"({coefs[-1].shape[0]}, 1), since the classifier has one output unit"
        )
    for layer, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
        if intercept.shape != coef.shape[1:]:
            intercepts[layer] = np.broadcast_to(intercept, (1, coef.shape[1]))[0]
    return coefs, intercepts


def check_goes_on(estimator: Any, columns: int, hidden: Sequence[int], outputs: int) -> None:
    """Check that a warm start or `partial_fit` can go on from coefs_ and intercepts_.

    Parameters
    ----------
    estimator : BaseMLP
        The estimator.
    columns : int
        Number of features of X.
    hidden : sequence of int
        The sizes that `hidden_layer_sizes` names.
    outputs : int
        Columns of y, as the network learns them.

    Raises
    ------
    AttributeError
        An entry is no array.
    DtypeError
        An entry holds no floating-point numbers, so no update can be added to it.
    ShapeError
        A layer does not fit X, y, `hidden_layer_sizes` or the layer before it.
    OptionError
        An entry is read-only, or two share memory.
    """
    whole = estimator.solver == "lbfgs"  # this solver makes new arrays
    for kind in ("coefs_", "intercepts_"):
        for layer, array in enumerate(getattr(estimator, kind), 1):
            own = isinstance(array, np.ndarray) and array.dtype.kind == "f"
            if not own or not array.flags.writeable:
                _check_addable(array, kind, layer, whole)
    _check_counts(estimator)
    coefs, intercepts = estimator.coefs_, estimator.intercepts_
    _check_shapes(coefs, intercepts, columns)
    for layer, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True), 1):
        if intercept.size != coef.shape[1] or intercept.ndim == 0:
            raise ShapeError(
                f"{_name('intercepts_', layer)} has shape {intercept.shape} but training wants a "
                f"number for each of its {coef.shape[1]} units"
            )
    _check_parameters(estimator, hidden, outputs)
    if not whole:
        _check_apart(estimator)


def _check_addable(array: Any, kind: str, layer: int, whole: bool) -> None:
    """Raise unless updates can be added to `array`, or, if `whole`, training can start from it."""
    name = _name(kind, layer)
    if not isinstance(array, np.ndarray):
        raise AttributeError(
            f"{name} is a {type(array).__name__}, which training cannot go on from; assign a NumPy "
            f"array"
        )
    if array.dtype.kind == "c" or not (whole or np.can_cast(float, array.dtype, "same_kind")):
        raise DtypeError(
            f"{name} has dtype {array.dtype}, which no update can be added to; assign an array of "
            f"floating-point numbers, such as {kind}[{layer - 1}].astype(float)"
        )
    if not whole and not array.flags.writeable:
        raise OptionError(
            f"{name} is read-only, so no update can be added to it; assign a copy, as of what "
            f"joblib has mapped from a file"
        )


def _check_apart(estimator: Any) -> None:
    """Raise OptionError if two entries share memory."""
    for (first, one), (second, other) in combinations(_named(estimator).items(), 2):
        owned = one.base is None and other.base is None and one is not other
        if not owned and np.may_share_memory(one, other) and np.shares_memory(one, other):
            raise OptionError(f"{first} and {second} share memory; assign a copy to one of them")


def _check_parameters(estimator: Any, hidden: Sequence[int], outputs: int) -> None:
    """Raise ShapeError unless the network is what `hidden_layer_sizes` and y ask for.

    The stochastic solvers go on with other sizes if the number of layers is the same, as
    scikit-learn's do.
    """
    widths = widths_of(estimator.coefs_)
    check_width(outputs, widths[-1])
    same = len(hidden) == len(widths) - 2
    if not same or (estimator.solver == "lbfgs" and list(hidden) != widths[1:-1]):
        raise ShapeError(
            f"hidden_layer_sizes={estimator.hidden_layer_sizes!r} was set but the network that "
            f"goes on has hidden layers of {tuple(widths[1:-1])} units; fit anew with "
            f"warm_start=False"
        )


def check_width(found: int, wanted: int) -> None:
    """Raise ShapeError unless y has as many columns as the network has output units."""
    if found != wanted:
        raise ShapeError(
            f"y has {found} column{'s' * (found != 1)} but the network that goes on has "
            f"{wanted} output unit{'s' * (wanted != 1)}; pass y of the width of the first call, or "
            f"fit anew"
        )


def _check_counts(estimator: Any) -> None:
    layers = estimator.n_layers_ - 1
    for name in ("coefs_", "intercepts_"):
        found = len(getattr(estimator, name))
        if found != layers:
            raise ShapeError(f"{name} has {found} entries but the network has {layers} layers")


def _check_shapes(coefs: Sequence[Array], intercepts: Sequence[Array], columns: int) -> None:
    width = columns
    for layer, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True), 1):
        if coef.ndim != 2 or coef.shape[0] != width or not coef.shape[1]:
            before = f"layer {layer - 1} has {width} units"
            if layer == 1:
                before = f"X has {width} features"
            raise ShapeError(
                f"{_name('coefs_', layer)} has shape {coef.shape} but must be ({width}, units), "
                f"since {before}"
            )
        width = coef.shape[1]
        if intercept.shape != (width,) and not _broadcasts(intercept.shape, (1, width)):
            raise ShapeError(
                f"{_name('intercepts_', layer)} has shape {intercept.shape} but "
                f"coefs_[{layer - 1}] has shape {coef.shape}; it must be ({width},)"
            )


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False


def _name(kind: str, layer: int) -> str:
    return f"{kind}[{layer - 1}] of layer {layer}"


def _named(estimator: Any) -> dict[str, Any]:
    return {
        _name(kind, layer): array
        for kind in ("coefs_", "intercepts_")
        for layer, array in enumerate(getattr(estimator, kind), 1)
    }


def _dense(array: Any) -> Array:
    if isinstance(array, np.ndarray):
        return array
    return array.toarray() if sparse.issparse(array) else np.asarray(array)


# -- between the estimator and its network --------------------------------------------------------


def read_parameters(estimator: Any, network: MLP) -> None:
    """Set the network's parameters from coefs_ and intercepts_, which may have been edited.

    Raises
    ------
    ShapeError
        One was replaced by an array of another shape since the network was made.
    """
    shapes, found = _shapes(network), [*map(np.shape, (*estimator.coefs_, *estimator.intercepts_))]
    if found != shapes:
        for (name, array), shape in zip(_named(estimator).items(), shapes, strict=True):
            row = np.shape(array) == (1, *shape) and len(shape) == 1
            if np.shape(array) != shape and not row:
                raise ShapeError(f"{name} has shape {np.shape(array)} but must be {shape}")
    backend = network.backend
    flat = network.parameters
    if backend.asynchronous:
        flat = np.zeros(network.layout.size, network.dtype)
    W, b = network.layout.views(flat)
    for view, coef in zip(W, estimator.coefs_, strict=True):
        view[...] = coef.T
    for view, intercept in zip(b, estimator.intercepts_, strict=True):
        view[...] = intercept.reshape(-1)
    backend.from_host(flat, network.parameters)


def _shapes(network: MLP) -> list[tuple[int, ...]]:
    """List the shapes of the coefs_, then of the intercepts_."""
    pairs = network.layout.shapes
    return [*((columns, rows) for rows, columns in pairs), *((rows,) for rows, _ in pairs)]


def write_parameters(estimator: Any, network: MLP) -> None:
    """Write the network's parameters into the arrays of coefs_ and intercepts_."""
    W, b = network.layout.views(network.backend.to_host(network.parameters))
    for old, view in zip(estimator.coefs_, W, strict=True):
        np.copyto(old, view.T, "same_kind")
    for old, view in zip(estimator.intercepts_, b, strict=True):
        np.copyto(old, view.reshape(old.shape), "same_kind")


def replace_parameters(estimator: Any, coefs: list[Array], intercepts: list[Array]) -> None:
    """coefs_ and intercepts_ = these arrays, in the lists that are there: a shallow copy of the
    estimator holds the same ones."""
    for name, arrays in (("coefs_", coefs), ("intercepts_", intercepts)):
        held = getattr(estimator, name)
        if isinstance(held, list):
            held[:] = arrays
        else:
            setattr(estimator, name, arrays)


def rounded_views(estimator: Any, network: MLP) -> list[tuple[Any, Any]]:
    """Return (view of the parameters, array of their stored dtype) for each narrower stored dtype.

    scikit-learn adds each update to the stored array, so its parameters are rounded in every step.
    """
    W, b = network.layout.views(network.parameters)
    views = [*W, *(view.reshape(1, -1) for view in b)]
    return [
        (view, network.backend.empty(view.shape, stored.dtype))
        for view, stored in zip(views, [*estimator.coefs_, *estimator.intercepts_], strict=True)
        if stored.dtype.kind == "f" and stored.dtype.itemsize < network.dtype.itemsize
    ]


def moved(flat: Array, widths: Sequence[int], network: MLP, fill: float = 0.0) -> Array:
    """Return a host buffer of a network with these widths in `network`'s layout and dtype.

    The numbers are moved layer by layer, because their places depend on the size of an element.
    """
    result = np.full(network.layout.size, fill, network.dtype)
    ParameterLayout(widths, flat.dtype).copy(flat, network.layout, result)
    return result
