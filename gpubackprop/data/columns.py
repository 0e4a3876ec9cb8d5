"""Columns of an Arrow table: the choice of features and targets, and their values as arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop._optional import require
from gpubackprop.data.files import Where, listing, shorten
from gpubackprop.data.finite import require_finite
from gpubackprop.data.names import check_names, check_present
from gpubackprop.errors import DataError

Array = npt.NDArray[Any]
Names = str | int | os.PathLike[str] | Sequence[str | int] | None

_WHAT_TO_DO = (
    "features are numbers: encode the column as numbers, name it as the target, or leave it out "
    "by naming the columns to use with features"
)

# What pyarrow reads as a number. One other cell makes the whole column text.
_NUMBER = r"^\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|(?i:inf|infinity|nan))\s*$"


def choose_columns(
    names: Sequence[str], target: Names, features: Names, source: str
) -> tuple[list[str], list[str]]:
    """Return the feature and the target columns among `names`, each in the order of the request.

    A string that is no column is split at its commas. Without `features`, all columns are features
    except the targets and the index that pandas writes into Parquet (__index_level_0__).

    Raises
    ------
    DataError
        A name is there twice, a column is absent, or a column is feature and target.
    """
    check_names(names, source)
    if len(names) == 1 and features is None:
        _check_separator(names[0], source)
    targets = _as_names(target, names)
    check_present(targets, names, "target", source)
    is_target = set(targets)
    if features is None:
        chosen = [n for n in names if n not in is_target and not n.startswith("__index_level_")]
        if "" in chosen:
            raise DataError(
                f"{source}: column {names.index('') + 1} has no name (the index that pandas writes "
                "without index=False, or a comma at the end of the lines); remove it, or name the "
                "columns to use with features"
            )
    else:
        chosen = _as_names(features, names)
        check_present(chosen, names, "feature", source)
    both = [name for name in chosen if name in is_target]
    if both:
        raise DataError(f"{source}: {listing(both)} is both feature and target; choose one")
    if not chosen:
        raise DataError(f"{source}: no feature column is left beside the target {listing(targets)}")
    return chosen, targets


def _as_names(request: Names, names: Sequence[str]) -> list[str]:
    """Return a request for columns as a list of names.

    -1 and "-1" count from the end if the columns have no names.
    """
    if request is None:
        return []
    if isinstance(request, str | int | os.PathLike):
        text = os.fspath(request) if isinstance(request, os.PathLike) else str(request)
        asked = [text] if text in names else [part.strip() for part in text.split(",")]
    else:
        asked = [str(part) for part in request]
    numbered = list(names) == [str(i) for i in range(len(names))]
    if numbered:
        back = {str(i - len(names)): name for i, name in enumerate(names)}
        asked = [back.get(name, name) for name in asked]
    return asked


def _check_separator(name: str, source: str) -> None:
    """Raise DataError if the only column name looks like several with another separator."""
    for mark in (";", "\t", "|"):
        if mark in name:
            raise DataError(
                f"{source}: line 1 has no comma but {mark!r}; columns must be separated by commas: "
                f"convert it, e.g. pandas.read_csv(old, sep={mark!r}).to_csv(new, index=False)"
            )


def feature_matrix(table: Any, names: Sequence[str], where: Where, source: str) -> Array:
    """Return columns of an Arrow table as a C-contiguous (N, D) matrix without missing values.

    The dtype is float32 if that holds every column's type exactly (float16, float32, integers of 8
    and 16 bits, booleans as 0 and 1), else float64. Numbers in a CSV file are int64 or float64, so
    that a column like 1e8 + small keeps its digits until the Standardizer has subtracted the mean.

    Raises
    ------
    DataError
        A column holds a missing value, text, dates, nested values, NaN or infinity; row and column
        are named.
    """
    pa = require("pyarrow", "cli", "read CSV and Parquet files")
    columns = [plain_column(table.column(name), name, where, source) for name in names]
    for name, column in zip(names, columns, strict=True):
        _check_feature(name, column, where, source)
    float32_suffices = all(
        pa.types.is_float16(c.type)
        or pa.types.is_float32(c.type)
        or pa.types.is_boolean(c.type)
        or (pa.types.is_integer(c.type) and c.type.bit_width <= 16)
        for c in columns
    )
    x = np.empty((table.num_rows, len(names)), dtype=np.float32 if float32_suffices else np.float64)
    for j, column in enumerate(columns):
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        row = 0
        for chunk in column.chunks:
            x[row : row + len(chunk), j] = chunk.to_numpy(zero_copy_only=False)
            row += len(chunk)
    require_finite(x, source=source, names=names, where=where)
    return x


def target_array(table: Any, names: Sequence[str], where: Where, source: str) -> Array:
    """Return target columns as (N,), or (N, K) for several: numbers, booleans, strings (dates too).

    Raises
    ------
    DataError
        A column holds a missing value, NaN or nested values, or text stands beside numbers in
        several columns.
    """
    columns = [_target_column(table.column(name), name, where, source) for name in names]
    if len(columns) == 1:
        return columns[0]
    if len({column.dtype.kind == "U" for column in columns}) > 1:
        text = [n for n, c in zip(names, columns, strict=True) if c.dtype.kind == "U"]
        raise DataError(
            f"{source}: target columns {listing(text)} hold text and the others numbers; "
            "train on one kind at a time"
        )
    return np.stack(columns, axis=1)


def _target_column(column: Any, name: str, where: Where, source: str) -> Array:
    """Return one target column as (N,) numbers, booleans or strings."""
    pa = require("pyarrow", "cli", "read CSV and Parquet files")
    column = plain_column(column, name, where, source)
    _check_not_missing(name, column, where, source)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.string())
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if _is_text(column.type, pa):
        labels = column.to_numpy().astype(str)
        if (labels == "").any():
            row = int(np.flatnonzero(labels == "")[0])
            raise DataError(
                f"{source}: {where(row)}, target column {name!r} is empty text; drop the row"
            )
        return labels
    if not _is_number(column.type, pa):
        raise DataError(
            f"{source}: target column {name!r} has the type {column.type}; "
            "targets are numbers, booleans or UTF-8 text"
        )
    values: Array = column.to_numpy()
    require_finite(values, source=f"{source}, target column {name!r}", where=where)
    return values


def plain_column(column: Any, name: str, where: Where, source: str) -> Any:
    """Decode a dictionary-encoded column; return string_view and bytes in UTF-8 as string."""
    pa = require("pyarrow", "cli", "read CSV and Parquet files")
    while pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())  # pyarrow's functions that are used here do not take it
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        try:  # pyarrow reads a CSV column as binary when it is not UTF-8
            column = column.cast(pa.large_string())
        except pa.ArrowInvalid:
            row = next(i for i, cell in enumerate(column) if not _is_utf8(cell.as_py()))
            raise DataError(
                f"{source}: {where(row)}, column {name!r} holds bytes that are not UTF-8 text, "
                f"{shorten(column[row].as_py())}; save the file in UTF-8"
            ) from None
    return column


def _is_utf8(cell: bytes | None) -> bool:
    try:
        (cell or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_text(kind: Any, pa: Any) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind)


def _is_number(kind: Any, pa: Any) -> bool:
    types = pa.types
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
    )


def _check_feature(name: str, column: Any, where: Where, source: str) -> None:
    """Raise DataError unless the column holds a number or boolean in every row."""
    pa = require("pyarrow", "cli", "read CSV and Parquet files")
    if _is_text(column.type, pa):
        pc = require("pyarrow.compute", "cli", "read CSV and Parquet files")
        text = pc.invert(pc.match_substring_regex(column, _NUMBER))
        row = pc.index(text, True).as_py()
        if row >= 0 and column[row].as_py().strip():
            raise DataError(
                f"{source}: {where(row)}, column {name!r} holds the text "
                f"{shorten(column[row].as_py())}; {_WHAT_TO_DO} (text that stands for a missing "
                "value: drop the row or fill it in)"
            )
        if row >= 0:
            raise DataError(_missing(name, row, where, source))
    _check_not_missing(name, column, where, source)
    if not _is_number(column.type, pa):
        value = shorten(str(column[0].as_py()))
        raise DataError(
            f"{source}: {where(0)}, column {name!r} holds {value} of type {column.type}; "
            f"{_WHAT_TO_DO}"
        )


def _check_not_missing(name: str, column: Any, where: Where, source: str) -> None:
    """Raise DataError at the first null of a column."""
    if column.null_count:
        pc = require("pyarrow.compute", "cli", "read CSV and Parquet files")
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(_missing(name, row, where, source, column.null_count))


def _missing(name: str, row: int, where: Where, source: str, count: int = 1) -> str:
    total = f" ({count} rows of this column)" if count > 1 else ""
    return (
        f"{source}: {where(row)}, column {name!r} has a missing value{total} (an empty cell, NA, "
        "NaN or null); drop the row, or fill the value in, e.g. with the column's median"
    )
