"""Class labels of any kind to indices, and the guess whether targets are classes or quantities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpubackprop.data.files import listing, row_from_1, shorten
from gpubackprop.data.frames import as_inputs, as_targets
from gpubackprop.data.objects import kind_of
from gpubackprop.errors import DataError, DtypeError, ShapeError

Labels = npt.NDArray[Any]
_FEW, _SHARE = 20, 0.1  # above so many distinct numbers, or this share of the rows: quantities
_EXACT = 2.0**53  # above it float64 skips integers, so a float is no label


def encode_labels(
    y: npt.ArrayLike, classes: npt.ArrayLike | None = None
) -> tuple[npt.NDArray[np.int64], Labels]:
    """Return class indices of labels, and the labels that the indices stand for.

    classes[indices[i]] == y[i]. Whole floats become int64 labels, so that 3.0 and 3 are one class.

    Parameters
    ----------
    y : (N,) or (N, 1) array-like
        Strings, bytes in UTF-8, booleans, integers or whole floats; an array, a list, or a column
        of a data frame.
    classes : (K,) array-like or None
        Distinct labels in the order of the indices, as an earlier call returned them; y may then
        hold one class only. None stands for the sorted distinct labels of y.

    Returns
    -------
    indices : (N,) int64 array
        Class indices in [0, K).
    classes : (K,) str, bool or int array
        The labels.

    Raises
    ------
    ShapeError
        y is no vector.
    DtypeError
        y has a dtype that no label has.
    DataError
        A label is missing, is no label, or is not among `classes`; text stands beside numbers;
        bytes are not UTF-8 (row and label are named); floats have fractions (regression is
        suggested); y holds one class only, or no rows.

    Examples
    --------
    >>> indices, classes = encode_labels(np.array(["no", "yes", "no"]))
    >>> print(indices, classes)
    [0 1 0] ['no' 'yes']
    """
    labels = _as_labels(y, "y")
    if labels.size == 0:
        raise DataError("y holds no labels; a classifier wants one row or more")
    if classes is not None:
        known = _as_labels(classes, "classes")
        return _look_up(labels, known), known
    distinct, indices = np.unique(labels, return_inverse=True)
    if distinct.size < 2:
        raise DataError(
            f"y holds one class only ({shorten(distinct[0].item())} in all {labels.size} rows); "
            "a classifier wants two or more: check the target column, or train a regression"
        )
    return indices.astype(np.int64, copy=False), distinct


def balanced_weights(indices: npt.ArrayLike, classes: int) -> npt.NDArray[np.float64]:
    """Return a weight for each class with which all classes count alike: N / (K rows of the class).

    It is meant for ``SoftmaxCrossEntropy(class_weight=...)``. Pass only the rows that are trained
    on: validation rows must not decide. A class without a row is treated as if it had one.

    Parameters
    ----------
    indices : (N,) int array-like
        Class indices in [0, K), as `encode_labels` gives them.
    classes : int
        Number of classes K.

    Returns
    -------
    (K,) float64 array
        The weights.

    References
    ----------
    G. King and L. Zeng, "Logistic regression in rare events data", 2001; scikit-learn's
    ``class_weight="balanced"``.

    Examples
    --------
    >>> print(balanced_weights([0, 0, 0, 1], 2).round(3))
    [0.667 2.   ]
    """
    counts = np.bincount(np.asarray(indices, np.int64), minlength=classes)
    return np.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)))


Task = Literal["classification", "regression", "multilabel"]


def infer_task(y: npt.ArrayLike) -> Task:
    """Guess whether targets are classes or quantities.

    - Strings and booleans: classification.
    - Integers, and floats that are all whole, with k distinct values: classification if k <= 2, or
      if k <= 20 and k is at most a tenth of the rows; else regression.
    - Other floats: regression.
    - (N, K) with K > 1: classification if every row has one 1 and else 0 (one-hot), multilabel if
      all are 0 and 1, else regression.

    The rule cannot tell a few counts or ages from classes: for those, ask for "regression".

    Parameters
    ----------
    y : (N,) or (N, K) array-like
        Targets, N > 0.

    Returns
    -------
    str
        "classification", "regression" or "multilabel".

    Raises
    ------
    ShapeError
        y is neither a vector nor a matrix.
    DtypeError
        y has a dtype that no target has.
    DataError
        y has no rows, a NaN or a missing label (the row is named), or several columns of text.

    Examples
    --------
    >>> infer_task(np.array([0, 1, 2] * 10)), infer_task(np.array([0.5, 1.5]))
    ('classification', 'regression')
    """
    return explain_task(y)[0]


def explain_task(y: npt.ArrayLike) -> tuple[Task, str]:
    """Return what `infer_task` guesses, and why in a few words."""
    array = _as_array(y, "y")
    if array.ndim == 2 and array.shape[1] > 1:
        return _task_of_columns(array)
    values = _as_vector(array, "y")
    if values.size == 0:
        raise DataError("y holds no targets; pass one row or more")
    if values.dtype.kind in "Ub":
        return "classification", "text" if values.dtype.kind == "U" else "booleans"
    if values.dtype.kind == "f" and np.any(values != np.trunc(values)):
        return "regression", "numbers with fractions"
    k = np.unique(values).size
    if k <= 2 or (k <= _FEW and k <= _SHARE * values.size):
        return "classification", f"only {k} distinct whole number{'' if k == 1 else 's'}"
    return "regression", f"{k} distinct numbers in {values.size:,} rows"


def _task_of_columns(array: Labels) -> tuple[Task, str]:
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"y has {array.shape[1]} columns of {array.dtype}; text can only be one column of "
            "class labels: name one target column"
        )
    if not np.isin(array, (0, 1)).all():
        return "regression", f"{array.shape[1]} columns of numbers"
    if (array.sum(axis=1) == 1).all():
        return "classification", f"{array.shape[1]} columns with a single 1 in every row"
    return "multilabel", f"{array.shape[1]} columns of 0 and 1"


def training_targets(y: Any, name: str = "targets", wanted: Sequence[str] | None = None) -> Labels:
    """Return `y` as numbers or text in an array, for a loss to check.

    A frame gives its columns, or those that are `wanted`; objects must all be numbers or all be
    text.

    Raises
    ------
    DataError
        A value is missing, or an object is neither; row (and column) are named.
    DtypeError
        `y` is no array, or a sparse matrix.
    """
    array = as_targets(y, name, wanted)
    if array.dtype.kind not in "OT":
        return array
    return _from_objects(array, name) if array.ndim == 1 else as_inputs(array, name).array


def _as_array(y: npt.ArrayLike, name: str) -> Labels:
    """Return `y` as NumPy has it, but a list with text in it as objects.

    NumPy would silently turn everything else in such a list into text.
    """
    array = as_targets(y, name)
    if array.dtype.kind in "US" and isinstance(y, list | tuple) and array.ndim:
        return np.array(y, dtype=object)
    return array


def _as_vector(y: npt.ArrayLike, name: str) -> Labels:
    """Return `y` as (N,) of str, bool, integer or finite float; objects are resolved."""
    array = _as_array(y, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ShapeError(
            f"{name} has shape {array.shape}; class labels want (N,): "
            "for one-hot rows pass y.argmax(1)"
        )
    array = resolve_labels(array, name)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(
            f"{name}: {row_from_1(row)} is {array[row]}; every row wants a target: drop the row"
        )
    return array


def resolve_labels(array: Labels, name: str) -> Labels:
    """Return (N,) labels of any dtype as str, bool, integer or float.

    Raises
    ------
    DtypeError
        No label has this dtype.
    DataError
        An object or bytes are no label; the row is named.
    """
    if array.dtype.kind in "OT":
        array = _from_objects(array, name)
    if array.dtype.kind == "S":
        return _decoded(array, name)
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32)  # it holds their values, and the bounds that follow here
    if array.dtype.kind in "Mm":
        raise DtypeError(f"{name} has dtype {array.dtype}; for dates as labels pass y.astype(str)")
    if array.dtype.kind not in "Ubiuf":
        raise DtypeError(
            f"{name} has dtype {array.dtype}; labels are text, booleans, integers or whole floats"
        )
    return array


def _as_labels(y: npt.ArrayLike, name: str) -> Labels:
    """Return `y` as (N,) of str, bool or integer; whole floats become int64."""
    array = _as_vector(y, name)
    if array.dtype.kind != "f":
        return array
    not_label = (array != np.trunc(array)) | (np.abs(array) > _EXACT)
    if not_label.any():
        row = int(np.flatnonzero(not_label)[0])
        raise DataError(
            f"{name}: {row_from_1(row)} is {array[row]}, which is no class label; "
            "train a regression for such targets, or round them to classes first"
        )
    return array.astype(np.int64)


def _from_objects(array: Labels, name: str) -> Labels:
    """Return (N,) Python objects, all text, all bytes or all numbers, as an array of that kind."""
    values = array.tolist()
    kinds = [kind_of(value) for value in values]
    for row, (value, kind) in enumerate(zip(values, kinds, strict=True)):
        if kind == "missing":
            raise DataError(f"{name}: {row_from_1(row)} has no label ({value}); drop the row")
        if kind == "other":
            raise DataError(
                f"{name}: {row_from_1(row)} is the {type(value).__name__} {shorten(value)}, which "
                "is no label; a label is text, a boolean or a number: for one-hot rows pass "
                "np.argmax of each, else turn the values into text"
            )
        if kind != kinds[0]:
            raise DataError(
                f"{name}: {row_from_1(row)} is {shorten(value)} but row 1 is "
                f"{shorten(values[0])}; labels must be all text or all numbers"
            )
    if not values:
        return np.empty(0, dtype=str)
    exact = kinds[0] != "number" or all(isinstance(v, int | np.integer | np.bool_) for v in values)
    result = np.array(values if exact else [float(value) for value in values])
    if exact and result.dtype.kind not in "USbiu":
        row = max(range(len(values)), key=lambda i: abs(int(values[i])))
        raise DataError(
            f"{name}: {row_from_1(row)} is {shorten(values[row])}, beyond 64 bits; for such labels "
            "pass text"
        )
    return result


def _decoded(array: Labels, name: str) -> Labels:
    """Return (N,) bytes as text; raise DataError at the first that are not UTF-8."""
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError:
        for row, value in enumerate(array.tolist()):
            try:
                value.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name}: {row_from_1(row)} is {shorten(value)}, bytes that are not UTF-8 "
                    f"({error.reason}); decode them first, e.g. "
                    f'np.char.decode({name}, "latin-1")'
                ) from None
        raise


def _look_up(labels: Labels, known: Labels) -> npt.NDArray[np.int64]:
    """Return the positions of `labels` in `known`; raise DataError for an unknown label."""
    order = np.argsort(known, kind="stable")
    if known.size == 0 or np.any(known[order][1:] == known[order][:-1]):
        raise DataError(f"classes {listing(known)} must be distinct and one or more")
    if (labels.dtype.kind == "U") != (known.dtype.kind == "U"):
        kinds = ["text" if a.dtype.kind == "U" else "numbers" for a in (labels, known)]
        raise DataError(
            f"y holds {kinds[0]} (row 1: {shorten(labels[0].item())}) but the classes are "
            f"{kinds[1]}: {listing(known)}; convert y to the kind used in training"
        )
    place = np.searchsorted(known, labels, sorter=order)
    indices = order[np.minimum(place, known.size - 1)]
    unknown = known[indices] != labels
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise DataError(
            f"y: {row_from_1(row)} has the label {shorten(labels[row].item())}, which is not among "
            f"the {known.size} classes {listing(known)}; drop the row, or train again with it"
        )
    return indices.astype(np.int64, copy=False)
