"""The classes of a model: a checked vector of labels, and its values for a file and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.data.files import listing, row_from_1, shorten
from gpubackprop.data.frames import as_targets
from gpubackprop.data.labels import encode_labels, resolve_labels
from gpubackprop.errors import DataError, DtypeError, ShapeError

Labels = npt.NDArray[Any]
_KINDS = "USTbiufMmO"  # a file can hold every value of these kinds exactly
_TEXT = "T"  # the name of NumPy's variable-width text, which has no dtype.str


def check_classes(classes: Any) -> Labels:
    """Return `classes` as a (K,) array of a dtype that comes back from a file exactly.

    They are text, bytes in UTF-8, booleans, integers, floats of up to 64 bits, dates or durations;
    or objects that are all text, all booleans, all integers or all floats.

    Raises
    ------
    ShapeError
        The classes are no vector.
    DtypeError
        The dtype is another one.
    DataError
        A value is missing, a label is there twice, objects are of several kinds, or bytes are not
        UTF-8; the place is named.
    """
    array = _checked(classes)
    first: dict[Any, int] = {}
    for place, label in enumerate(array.tolist()):
        if first.setdefault(label, place) != place:
            raise DataError(
                f"classes[{place}] is {shorten(label)} as classes[{first[label]}] is; every output "
                f"unit wants a class of its own"
            )
    return array


def _checked(classes: Any) -> Labels:
    array = as_targets(classes, "classes")
    if array.ndim != 1:
        raise ShapeError(f"classes has shape {array.shape}; it wants one label per class, (K,)")
    if isinstance(classes, list | tuple):
        _same_values(classes, array)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in _KINDS or (kind == "f" and size > 8):
        raise DtypeError(
            f"classes has dtype {array.dtype}; classes are text, booleans, integers, floats of up "
            "to 64 bits, or dates"
        )
    if kind in "OTS":
        resolve_labels(array, "classes")
    if kind == "O":
        return _plain_objects(array)
    missing = np.flatnonzero(array != array) if kind in "fMm" else np.zeros(0, np.intp)
    if missing.size:
        raise DataError(f"classes[{missing[0]}] is {array[missing[0]]}; a class wants a label")
    return array


def _same_values(classes: Sequence[Any], array: Labels) -> None:
    """Raise DataError if NumPy has turned the values of a list into other labels."""
    if array.dtype.kind in "US":  # NumPy turns anything beside text into text
        resolve_labels(np.array(classes, dtype=object), "classes")
    if array.dtype.kind == "f":  # and integers into floats if no integer type holds them all
        for place, (given, label) in enumerate(zip(classes, array.tolist(), strict=True)):
            if isinstance(given, int | np.integer) and int(given) != label:
                raise DataError(
                    f"classes[{place}] is {given}, which no type holds together with the others; "
                    f"for such labels pass text"
                )


def _plain_objects(array: Labels) -> Labels:
    """Return objects of one Python type that JSON has, or raise DataError."""
    values = [value.item() if isinstance(value, np.generic) else value for value in array]
    kinds = [type(value) for value in values]
    for place, kind in enumerate(kinds):
        if kind not in (str, bool, int, float) or kind is not kinds[0]:
            raise DataError(
                f"classes[{place}] is {shorten(values[place])}, {kind.__name__}, and classes[0] "
                f"{shorten(values[0])}, {kinds[0].__name__}; objects must all be str, bool, int or "
                "float: pass np.array(classes, dtype=str)"
            )
    plain = np.empty(len(values), dtype=object)
    plain[:] = values
    return plain


def class_indices(y: Any, classes: Labels) -> npt.NDArray[np.int64]:
    """Return the (N,) positions of labels among checked classes; an unknown one is a DataError."""
    if classes.dtype.kind not in "fMm":
        return encode_labels(y, classes)[0]
    labels = np.asarray(as_targets(y, "y")).reshape(-1)
    found = labels[:, None] == classes
    unknown = np.flatnonzero(~found.any(axis=1))
    if unknown.size:
        raise DataError(
            f"y: {row_from_1(int(unknown[0]))} has the label {labels[unknown[0]]}, which is not "
            f"among the {classes.size} classes {listing(classes)}; drop the row"
        )
    return found.argmax(axis=1)


def classes_to_values(classes: Labels) -> tuple[list[Any], str]:
    """Return checked classes as JSON values, and the name of their dtype."""
    kind = classes.dtype.kind
    if kind in "Mm":
        return classes.astype(np.int64).tolist(), classes.dtype.str
    if kind == "S":
        return [value.decode() for value in classes.tolist()], classes.dtype.str
    return classes.tolist(), _TEXT if kind == "T" else classes.dtype.str


def classes_from_values(values: Any, dtype: Any) -> Labels:
    """Return what `classes_to_values` was given.

    If the values did not come from there, NumPy's own error is raised, whichever it is.
    """
    if not isinstance(dtype, str):
        raise TypeError(f"dtype is {dtype!r}")
    kind = np.dtype(dtype)
    if kind.kind in "Mm":
        return np.array(values, np.int64).astype(kind)
    if kind.kind == "S":
        return np.array([value.encode() for value in values], kind)
    if kind.kind == "O":
        objects = np.empty(len(values), dtype=object)
        objects[:] = values
        return objects
    return np.array(values, kind)


def as_text(label: Any) -> str:
    """Return a label as text for a header or a table; bytes are decoded."""
    return label.decode() if isinstance(label, bytes) else str(label)
