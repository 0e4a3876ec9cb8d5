"""Checks of arguments: an error says what is wrong, what was got and wanted, what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpubackprop.backends import HOST, backend_for
from gpubackprop.backends.memory import Array, Memory
from gpubackprop.dtypes import STORAGES, is_number, storage
from gpubackprop.errors import DtypeError, OptionError, ShapeError, TargetRangeError

maximum_reduce: Any = np.maximum.reduce
# For each integer dtype in this machine's byte order, the unsigned dtype of its size.
_UNSIGNED = {
    np.dtype(f"{kind}{size}"): np.dtype(f"u{size}") for kind in "iu" for size in (1, 2, 4, 8)
}


def compute_dtype(dtype: np.dtype, name: str, op: str) -> type:
    """Return float64 for float64, float32 for 32 bits and less; raise DtypeError for the rest."""
    row = storage(dtype)
    if row is not None and dtype.isnative:
        return np.dtype(row.compute).type
    *most, last = STORAGES
    raise DtypeError(
        f"{name} has dtype {dtype} but {op} wants {', '.join(most)} or {last}; "
        f"convert it with {name}.astype(np.float32)"
    )


def as_array(values: Any, name: str, op: str, memory: Memory, dtype: Any = None) -> Array:
    """Return `values` as an ndarray of the memory in which they are.

    `dtype` is for the host: a GPU's arrays keep theirs.

    Raises
    ------
    DtypeError
        They are no array, such as lists of unequal lengths.
    """
    if type(values) is np.ndarray and (dtype is None or values.dtype == dtype):
        return values
    try:
        return memory.as_ndarray(values, dtype)
    except (TypeError, ValueError) as error:
        raise DtypeError(
            f"{name} is no array of numbers for {op} ({error}); give numbers, every row of one "
            f"length"
        ) from None


def float_matrix(
    array: Any, name: str, op: str, memory: Memory, columns: int | None = None
) -> Array:
    """Return `array` as a 2-D float array of its memory, without a copy if it is one."""
    if type(array) is not np.ndarray:
        array = as_array(array, name, op, memory)
    if array.dtype == object:
        raise DtypeError(
            f"{name} has dtype object but {op} wants numbers; a ragged list or mixed types? "
            f"build it with np.array(..., dtype=np.float32)"
        )
    compute_dtype(array.dtype, name, op)
    if array.ndim != 2:
        hint = " for one sample pass x[None, :]" if array.ndim == 1 else ""
        raise ShapeError(f"{name} has shape {array.shape} but {op} wants (rows, columns);{hint}")
    if columns is not None and array.shape[1] != columns:
        raise ShapeError(f"{name} has shape {array.shape} but {op} wants (N, {columns})")
    return array


def row_vector(array: Any, name: str, op: str, length: int, memory: Memory) -> Array:
    """Return `array` as (length,) numbers: float64 on the host, any real dtype on a GPU."""
    array = as_array(array, name, op, memory, np.float64)
    if not is_number(array.dtype):
        raise DtypeError(f"{name} has dtype {array.dtype} but {op} wants real numbers")
    if array.shape != (length,):
        raise ShapeError(f"{name} has shape {array.shape} but {op} wants ({length},)")
    return array


def sample_weights(
    weights: Any, op: str, rows: int, memory: Memory | None = None, check: bool = False
) -> Array | None:
    """Return finite, non-negative (rows,) weights, or None."""
    memory = memory or backend_for(op, sample_weight=weights)
    return non_negative(weights, "sample_weight", op, rows, memory, check)


def non_negative(
    weights: Any, name: str, op: str, length: int, memory: Memory, check: bool
) -> Array | None:
    """Return finite, non-negative (length,) weights, or None.

    On a GPU the values are checked only with `check`.
    """
    if weights is None:
        return None
    weights = row_vector(weights, name, op, length, memory)
    values = memory.values(weights, check)
    if values is None:
        return weights
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if bad.size:
        raise OptionError(
            f"{name}[{bad[0]}] is {values[bad[0]]} but {op} wants finite weights of at least 0"
        )
    return weights


RELATIVE = ("mean", "elementwise_mean")  # reductions that divide by the sum of the weights
NEAR = 32  # products and sums of weights within 2^-32 to 2^32 stay in the range of float32


def near_one(weights: Any, reduction: str) -> Any:
    """Return weights that float32 can hold, with their products and sums, if only ratios count.

    Too large or too small weights are multiplied by a power of two. None, other weights and weights
    on a GPU are returned as they are.
    """
    if reduction not in RELATIVE or not isinstance(weights, np.ndarray) or not weights.size:
        return weights
    exponent = math.frexp(float(weights.max()))[1]
    if abs(exponent) <= NEAR:
        return weights
    return np.ldexp(weights.astype(np.float64, copy=False), -exponent)


def output_array(out: Any, like: Array, name: str, op: str, memory: Memory = HOST) -> Array:
    """Return the array to write into: a new one if `out` is None, `like` if both are one view."""
    if out is None:
        return memory.new(like.shape, like.dtype)
    if memory.asynchronous:
        out = memory.as_ndarray(out)
    known = memory.is_ndarray(out)
    if not known or out.shape != like.shape or out.dtype != like.dtype:
        got = f"{out.dtype} {out.shape}" if known else type(out).__name__
        raise ShapeError(
            f"out is {got} but {op} writes {like.dtype} {like.shape}; pass np.empty_like({name})"
        )
    if not _writeable(out):
        raise OptionError(f"out is read-only; {op} needs an array that it may write into")
    if _meets_itself(out):
        raise OptionError(
            f"out has more elements than places in memory (strides {out.strides} for shape "
            f"{out.shape}); pass np.empty_like({name})"
        )
    if out is like or same_view(out, like, memory):
        return like if _writeable(like) else out
    if memory.overlap(out, like):
        raise OptionError(
            f"out overlaps {name} without being the same view; pass {name} itself to work in "
            f"place, or memory of its own"
        )
    return out


def _writeable(array: Array) -> bool:
    return bool(getattr(array.flags, "writeable", True))  # CuPy knows no read-only arrays


def _meets_itself(out: Array) -> bool:
    """Return whether a dimension steps within what smaller steps span, such as a broadcast one."""
    if out.flags.c_contiguous:
        return False
    spanned = int(out.itemsize)
    for stride, size in sorted((abs(s), n) for s, n in zip(out.strides, out.shape, strict=True)):
        if size > 1 and stride < spanned:
            return bool(out.size)
        spanned += stride * (size - 1)
    return False


def no_overlap(out: Array, memory: Memory, **inputs: Any) -> None:
    """Raise OptionError if `out` shares memory with an input that is read after out is written."""
    for name, array in inputs.items():
        if memory.is_ndarray(array) and memory.overlap(out, array):
            raise OptionError(f"out overlaps {name}; give delta memory of its own")


def same_view(a: Array, b: Array, memory: Memory) -> bool:
    """Return whether both arrays are the same elements in the same order."""
    return (
        memory.same_start(a, b)
        and a.strides == b.strides
        and a.shape == b.shape
        and a.dtype == b.dtype
    )


def class_indices(
    targets: Array, rows: int, classes: int, ignore_index: int | None, memory: Memory, check: bool
) -> bool:
    """Check (rows,) integer labels in [0, classes); the error names the first bad row.

    On a GPU the labels are checked only with `check`.

    Returns
    -------
    bool
        Whether every label is known to be a class, and none of them is ignored.
    """
    unsigned = _UNSIGNED.get(targets.dtype)
    if unsigned is not None and not memory.asynchronous:
        # In one pass: a negative label is a large one.
        largest = maximum_reduce(targets.view(unsigned)) if rows else 0
        if largest < classes:
            return ignore_index is None or not 0 <= ignore_index < classes
    if targets.dtype.kind in "USTO":
        raise DtypeError(
            f"targets has dtype {targets.dtype} but class indices are integers; for labels of "
            f"other kinds pass gpubackprop.data.encode_labels(targets)[0]"
        )
    if targets.dtype.kind == "f" and not memory.asynchronous and np.isnan(targets).any():
        row = int(np.argmax(np.isnan(targets)))
        raise DtypeError(
            f"targets[{row}] is NaN, a missing label, but class indices are integers; drop the row"
        )
    if targets.dtype.kind not in "iu":
        raise DtypeError(
            f"targets has dtype {targets.dtype} and shape {targets.shape} but class indices are "
            f"integers; use targets.astype(np.int64), or pass (N, K) probabilities"
        )
    values = memory.values(targets, check)
    if values is None:
        return False
    bad = (values < 0) | (values >= classes)
    if ignore_index is not None:
        bad &= values != ignore_index
    if bad.any():
        row = int(np.argmax(bad))
        raise TargetRangeError(
            f"targets[{row}] is {int(values[row])} but labels must be in [0, {classes}); "
            f"{int(bad.sum())} of {rows} rows are out of range"
            + ("" if values[row] >= 0 else "; to leave rows out pass ignore_index")
        )
    return False


def cross_entropy_targets(
    targets: Any,
    logits: Array,
    ignore_index: int | None,
    memory: Memory = HOST,
    check: bool = False,
) -> tuple[Array, bool]:
    """Check class indices (N,) or probabilities (N, K) for logits (N, K).

    Returns
    -------
    targets : (N,) or (N, K) array
        The checked targets.
    none_ignored : bool
        Whether it is known that no row is ignored; `ignore_index` then has no effect.
    """
    op = "softmax_cross_entropy"
    if type(targets) is not np.ndarray:
        targets = as_array(targets, "targets", op, memory)
    rows, classes = logits.shape
    if targets.shape == (rows,) and targets.ndim == 1:
        return targets, class_indices(targets, rows, classes, ignore_index, memory, check)
    if targets.shape == logits.shape:
        if targets.dtype.kind in "iub":
            raise ShapeError(
                f"targets has shape {targets.shape} and dtype {targets.dtype} but {op} wants "
                f"({rows},) class indices for logits {logits.shape}; for one-hot rows pass "
                f"targets.argmax(1), or targets.astype(np.float32) for probabilities"
            )
        compute_dtype(targets.dtype, "targets", op)
        if ignore_index is not None:
            raise OptionError("ignore_index goes with class indices; targets are probabilities")
        return targets, True
    raise ShapeError(
        f"targets has shape {targets.shape} but {op} wants ({rows},) class indices or "
        f"{logits.shape} probabilities for logits {logits.shape}"
    )


def number(
    value: Any, name: str, low: float, high: float = math.inf, *, whole: bool = False
) -> float:
    """Return `value` as a finite float in [low, high]; if `whole`, 2.5 is an error, and not 2."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    # x - x is 0 only for finite x. torch.compile traces it, but math.isfinite breaks the graph.
    if not (low <= result <= high and result - result == 0):
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise OptionError(f"{name} is {value!r} but must be a number of at least {low:g}{upper}")
    if whole and result != int(result):
        raise OptionError(f"{name} is {value!r} but must be a whole number of at least {low:g}")
    return result


def no_own_methods(thing: Any, names: Sequence[str], lost: str) -> None:
    """Raise OptionError if `thing` has one of these methods in a version that a program has put.

    Parameters
    ----------
    thing : object
        An instance of a class of this package, or of a subclass.
    names : sequence of str
        Names of the methods.
    lost : str
        What would become of them; it ends the error's message.
    """
    kind = type(thing)
    base = next(base for base in kind.__mro__ if base.__module__.startswith("gpubackprop."))
    own = [
        name
        for name in names
        if name in vars(thing) or getattr(kind, name, None) is not getattr(base, name, None)
    ]
    if own:
        raise OptionError(f"{kind.__name__} has {', '.join(own)} of its own, which {lost}")


def functions(values: Mapping[Any, Any], name: str) -> None:
    """Raise OptionError unless all values can be called, before training and not after an epoch.

    Parameters
    ----------
    values : mapping
        The functions.
    name : str
        Name of the option, for the error.
    """
    for key, value in values.items():
        if not callable(value):
            raise OptionError(
                f"{name}[{key!r}] is {value!r}, which cannot be called; pass a function"
            )


def choice(value: Any, name: str, options: tuple[str, ...]) -> str:
    if value not in options:
        raise OptionError(f"{name} is {value!r} but must be one of {', '.join(map(repr, options))}")
    return value
