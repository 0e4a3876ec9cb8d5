"""Data frames, tables and everything else that a caller may hand in, as NumPy arrays.

A frame is read column by column. Frames are those of pandas (NumPy, nullable, categorical, sparse
and Arrow columns), polars, pyarrow and everything that offers the Arrow stream (narwhals, DuckDB),
and structured arrays. None of these packages is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpubackprop._optional import require
from gpubackprop.data.files import Where, row_from_1, shorten
from gpubackprop.data.finite import require_finite
from gpubackprop.data.names import check_names, positions
from gpubackprop.data.objects import kind_of
from gpubackprop.dtypes import is_number
from gpubackprop.errors import DataError, DtypeError

Array = npt.NDArray[Any]

_WHAT_TO_DO = (
    "numbers are wanted: encode the table with gpubackprop.data.TablePreprocessor, or leave the "
    "column out"
)


class Inputs(NamedTuple):
    """`array` (N, D), and the `names` of its columns if it was a frame, else None."""

    array: Array
    names: tuple[str, ...] | None


def check_finite(
    x: Any,
    *,
    source: str = "x",
    names: Sequence[str] | None = None,
    where: Where = row_from_1,
) -> None:
    """Raise DataError at the first NaN or infinity of `x`, naming its row and column.

    `load_dataset` calls this for everything that it reads into memory, but not for a memory-mapped
    file, which it does not read through. `Standardizer.fit` finds such values. If you train on such
    a file without standardising, call this first.

    Parameters
    ----------
    x : (N, D) or (N,) array-like
        Numbers, read in batches of about 4 MiB; integers pass unread. Also a data frame, a column
        or a list.
    source : str
        Name of the file or array for the message.
    names : sequence of D str, or None
        Column names for the message; without them columns count from 1.
    where : callable
        ``where(row)`` names a row in the message, given its index from 0.

    Raises
    ------
    DataError
        A value is NaN or infinite.

    Examples
    --------
    >>> check_finite(np.array([[1.0, np.inf]]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    gpubackprop.errors.DataError: x: row 1 (data rows counted from 1), column 2 ... holds inf; ...
    """
    if not isinstance(x, np.ndarray):
        x, found = as_inputs(x, source)
        names = names or found
    require_finite(x, source=source, names=names, where=where)


class _Frame(NamedTuple):
    """Any frame: its own names, its number of rows, and a function from position to column."""

    names: list[Any]
    rows: int
    column: Callable[[int], Any]


def as_inputs(x: Any, name: str = "x", wanted: Sequence[str] | None = None) -> Inputs:
    """Return `x` as an array, with the names of its columns if it is a frame.

    Parameters
    ----------
    x : array or data frame
        An array of any kind keeps its values. The columns of a frame are read one by one. Columns
        of one type keep it; mixed ones become float32 if that is exact (booleans, integers of 8 and
        16 bits, float16), else float64.
    name : str
        What messages call it.
    wanted : sequence of str, or None
        Names of the columns to take, in this order; a frame's other columns are ignored. Names are
        compared as text, so that 0 is "0". Arrays have no names, so they are taken as they are.

    Returns
    -------
    Inputs
        The array (N, D) and its names.

    Raises
    ------
    DataError
        A frame has a column of text, dates or nested values, a missing value, NaN or infinity,
        lacks a wanted column, or has a name twice (numbers may repeat: pandas gives them to columns
        without names). Column and row are named.
    DtypeError
        `x` is a sparse matrix, a lazy frame, or no array at all.
    """
    frame = _frame(x)
    if frame is None:
        array = as_array(x, name)
        return Inputs(_numbers_of_objects(array, name) if array.dtype == object else array, None)
    names = [str(column) for column in frame.names]
    chosen = list(range(len(names)))
    if wanted is None and not _numbered(frame.names):
        check_names(names, name)
    elif wanted is not None:
        chosen = positions(names, wanted, name, numbered=_numbered(frame.names))
    taken = tuple(names[j] for j in chosen)
    columns = [_numbers(frame.column(j), names[j], name) for j in chosen]
    array = np.empty((frame.rows, len(columns)), _common_dtype(columns))
    for j, column in enumerate(columns):
        array[:, j] = column
    require_finite(array, source=name, names=taken)
    return Inputs(array, None if _numbered(frame.names) and wanted is None else taken)


def as_targets(y: Any, name: str = "targets", wanted: Sequence[str] | None = None) -> Array:
    """Return `y` as an array; a frame of one column is (N,), one of several numeric ones (N, K).

    `wanted` names the columns of a frame to take. Objects stay objects: see `encode_labels`.
    """
    frame = _frame(y)
    if frame is None:
        return as_array(y, name)
    names = [str(column) for column in frame.names]
    if wanted is not None and (len(names) > 1 or len(wanted) > 1):
        chosen = positions(names, wanted, name, numbered=_numbered(frame.names))
    else:
        check_names(names, name)
        chosen = list(range(len(names)))
    if len(chosen) == 1:
        return _column(frame.column(chosen[0]), names[chosen[0]], name)
    return as_inputs(y, name, [names[j] for j in chosen]).array


def several_names(y: Any) -> tuple[str, ...] | None:
    """Return the names of a frame's columns if it has several with names, else None."""
    frame = _frame(y)
    if frame is None or len(frame.names) < 2 or _numbered(frame.names):
        return None
    return tuple(str(column) for column in frame.names)


def as_weights(weights: Any, name: str = "sample_weight") -> Any:
    """Return a column of weights, or a frame of one column, as an array; None and lists pass."""
    if isinstance(weights, np.ma.MaskedArray):
        _refuse_masked(weights, name)
    if weights is None or isinstance(weights, np.ndarray | list | tuple | float | int):
        return weights
    return as_targets(weights, name)


def as_array(x: Any, name: str = "x") -> Array:
    """Return `x` as a NumPy array of its own values.

    Raises
    ------
    DtypeError
        `x` means something else than NumPy would make of it: a sparse matrix, a lazy frame.
    DataError
        `x` has masked values.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        _refuse_masked(x, name)
    kind = type(x)
    while kind.__module__.startswith("pyarrow") and hasattr(getattr(x, "type", None), "index_type"):
        x = x.cast(x.type.value_type)  # a dictionary in chunks becomes an array without its nulls
    if hasattr(kind, "toarray") and hasattr(kind, "nnz"):
        also = ", or use the estimators of gpubackprop.sklearn, which take sparse rows"
        raise DtypeError(
            f"{name} is a sparse {kind.__name__} of shape {x.shape}, which has to be dense here; "
            f"pass {name}.toarray(){also if name == 'x' else ''}"
        )
    elif hasattr(kind, "todense") and not isinstance(x, np.ndarray):
        raise DtypeError(f"{name} is a sparse {kind.__name__}; pass {name}.todense()")
    elif hasattr(kind, "collect") and hasattr(kind, "lazy"):
        raise DtypeError(f"{name} is a {kind.__name__}, not yet computed; pass {name}.collect()")
    try:
        return _from_tensor(x, name) if _is_tensor(x) else np.asarray(x)
    except DtypeError:
        raise
    except Exception as error:  # the library of `x` may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
        raise DtypeError(f"{name} is not an array of numbers: {reason}") from None


# -- kinds of frames ------------------------------------------------------------------------------


def _frame(x: Any) -> _Frame | None:
    """Return how `x` is read, or None if it is no frame."""
    if isinstance(x, np.ndarray):
        names = x.dtype.names
        if names is None or x.ndim != 1:
            return None
        return _Frame(list(names), len(x), lambda j: x[names[j]])
    kind = type(x)
    if hasattr(kind, "iloc") and hasattr(x, "columns"):  # pandas, and what is like it
        return _Frame(list(x.columns), len(x), lambda j: x.iloc[:, j])
    if hasattr(kind, "get_columns") and hasattr(kind, "to_series"):  # polars
        return _Frame(list(x.columns), len(x), x.to_series)
    if hasattr(kind, "__arrow_c_stream__") and any(
        hasattr(kind, name) for name in ("column_names", "columns", "schema")
    ):
        pa = require("pyarrow", "cli", f"read a {kind.__name__}")
        table = pa.table(x)
        return _Frame(table.column_names, table.num_rows, table.column)
    return None


def _numbered(names: Sequence[Any]) -> bool:
    """Return whether all names are numbers, which pandas gives to columns without names."""
    return all(isinstance(name, int | np.integer) for name in names)


# -- columns --------------------------------------------------------------------------------------


def _column(column: Any, name: str, source: str) -> Array:
    """Return a frame's column as (N,); it holds objects if NumPy has no type for its values."""
    if hasattr(type(column), "combine_chunks"):  # pyarrow
        from gpubackprop.data.columns import plain_column

        column = plain_column(column, name, row_from_1, source)
    values = as_array(column, f"{source}, column {name!r},")
    if values.ndim != 1:
        raise DataError(
            f"{source}: column {name!r} holds {values.ndim - 1}-dimensional values; give every "
            "number a column of its own"
        )
    return values


def _numbers(column: Any, name: str, source: str) -> Array:
    """Return a frame's column as (N,) numbers or booleans."""
    values = _column(column, name, source)
    if is_number(values.dtype):
        return values
    if values.dtype.kind in "OUST":
        return _from_objects(values.astype(object), f"column {name!r}", source)
    kind = getattr(column, "dtype", values.dtype)
    raise DataError(f"{source}: column {name!r} has the type {kind}; {_WHAT_TO_DO}")


def _from_objects(values: Array, column: str, source: str) -> Array:
    """Return (N,) Python objects as float64; raise DataError at the first that is no number."""
    for row, value in enumerate(values):
        kind = kind_of(value)
        if kind == "number":
            continue
        place = f"{source}: {row_from_1(row)}, {column}"
        if kind == "missing":
            raise DataError(
                f"{place} has a missing value ({value}); drop the row, or fill the value in, e.g. "
                "with the column's median, as gpubackprop.data.TablePreprocessor does"
            )
        what = "the text " if kind in ("text", "bytes") else f"a {type(value).__name__}, "
        raise DataError(f"{place} holds {what}{shorten(value)}; {_WHAT_TO_DO}")
    return np.array([float(value) for value in values], np.float64)


def _common_dtype(columns: Sequence[Array]) -> np.dtype[Any]:
    """Return the dtype that all columns share, or float32 if that is exact, or else float64."""
    kinds = {column.dtype for column in columns}
    if len(kinds) == 1:
        return kinds.pop()
    float32_suffices = all(
        dtype.kind == "b"
        or (dtype.kind in "iu" and dtype.itemsize <= 2)
        or (dtype.kind in "fV" and dtype.itemsize <= 4)
        for dtype in kinds
    )
    return np.dtype(np.float32 if float32_suffices else np.float64)


# -- arrays ---------------------------------------------------------------------------------------


def _numbers_of_objects(array: Array, name: str) -> Array:
    """Return an array of Python objects, which must be numbers, as float64."""
    if array.ndim == 0:
        raise DtypeError(
            f"{name} is a {type(array.item()).__name__}, which is no array of numbers; pass rows "
            "of numbers, (N, D)"
        )
    if array.ndim != 2:
        return _from_objects(array.ravel(), "this value", name).reshape(array.shape)
    columns = [
        _from_objects(array[:, j], f"column {j + 1} (counted from 1)", name)
        for j in range(array.shape[1])
    ]
    return np.stack(columns, axis=1) if columns else np.empty(array.shape)


def _refuse_masked(x: np.ma.MaskedArray, name: str) -> None:
    """Raise DataError if a value is masked: NumPy would use the number beneath the mask."""
    masked = np.argwhere(np.ma.getmaskarray(x))
    if len(masked):
        place = ", ".join(map(str, masked[0]))
        raise DataError(
            f"{name}[{place}] is masked ({len(masked)} such values), so it has no value; drop the "
            f"row, or fill the value in with {name}.filled(...)"
        )


def _is_tensor(x: Any) -> bool:
    """Return whether `x` is a tensor of PyTorch."""
    return type(x).__module__.partition(".")[0] == "torch" and hasattr(x, "detach")


def _from_tensor(x: Any, name: str) -> Array:
    """Return a PyTorch tensor on the host, without its graph; bfloat16 as float32, which holds it.

    It is taken by DLPack: `Tensor.numpy` would forbid that the tensor's storage is ever resized.
    """
    if str(x.layout) != "torch.strided":
        raise DtypeError(f"{name} is a sparse tensor; pass {name}.to_dense()")
    x = x.detach().cpu().resolve_conj().resolve_neg()
    return np.from_dlpack(x.float() if str(x.dtype) == "torch.bfloat16" else x)
