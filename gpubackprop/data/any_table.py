"""Anything with named columns as a `Table`: data frames, mappings, structured and plain arrays.

Data frames are read through narwhals, one column at a time: pandas (NumPy, nullable, Arrow-backed,
categorical columns), polars, pyarrow, Modin, cuDF, DuckDB and what else it knows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from gpubackprop.data import typed
from gpubackprop.data.files import Where, row_from_1
from gpubackprop.data.names import check_names
from gpubackprop.data.typed import Column
from gpubackprop.errors import DataError, DtypeError, ShapeError


class Table:
    """Named columns of one length, each read when it is asked for.

    Parameters
    ----------
    names : sequence of str
        Names of the columns.
    rows : int
        Number of rows.
    read : callable
        ``read(place)`` gives the column at this place.
    source : str
        What messages call the table.
    where : callable
        ``where(row)`` names a row in a message, given its index from 0.
    positional : bool
        Whether the columns have no names of their own, and are taken as they come.
    read_text : callable or None
        ``read_text(place)`` gives the column as the texts that a file has; None if there is none.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: int,
        read: Callable[[int], Column],
        source: str = "the table",
        where: Where = row_from_1,
        positional: bool = False,
        read_text: Callable[[int], Column] | None = None,
    ) -> None:
        self.names, self.rows, self.source, self.where = list(names), rows, source, where
        self.positional = positional
        self._read, self._read_text = cache(read), read_text

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"Table({self.source}: {self.rows:,} rows, {len(self.names)} columns)"

    def column(self, name: str) -> Column:
        """Return the column of this name."""
        return self._read(self.names.index(name))

    def at(self, place: int) -> Column:
        """Return the column at this place, from 0."""
        return self._read(place)

    def text_at(self, place: int) -> Column:
        """Return the column at this place as text: as the file has it, if it is of one."""
        return self.at(place).as_text() if self._read_text is None else self._read_text(place)

    def take(self, rows: Any) -> Table:
        """Return the table of these rows: indices or a slice."""
        numbers, where = np.arange(self.rows)[rows], self.where
        return Table(
            self.names, len(numbers), lambda place: self._read(place).take(rows), self.source,
            lambda row: where(int(numbers[row])), self.positional,
            lambda place: self.text_at(place).take(rows),
        )  # fmt: skip

    def select(self, places: Sequence[int], *, positional: bool = False) -> Table:
        """Return the table of the columns at these places."""
        return Table(
            [self.names[j] for j in places], self.rows, lambda j: self.at(places[j]), self.source,
            self.where, positional, lambda j: self.text_at(places[j]),
        )  # fmt: skip


def as_table(x: Any, name: str = "the table") -> Table:
    """Return `x` as a table.

    Parameters
    ----------
    x : data frame, mapping from names to columns, or array
        An array (N, D) has no names: its columns are called "0" to "D-1", and are taken as they
        come.
    name : str
        What messages call it.

    Raises
    ------
    DataError
        A name is there twice, or columns have several lengths.
    DtypeError
        `x` is no table.
    ShapeError
        An array is not (N, D).
    """
    if isinstance(x, Table):
        return x
    if isinstance(x, np.ndarray):
        return _of_array(x, name)
    if isinstance(x, Mapping):
        return _of_mapping(x, name)
    if len(getattr(x, "shape", (0, 0))) == 1:
        raise ShapeError(
            f"{name} has shape {x.shape} but a table is (N, D); for one row of a data frame pass "
            "frame.iloc[[i]], for one column frame[[name]]"
        )
    frame = _narwhals_frame(x, name)
    if frame is not None:
        names = [str(column) for column in frame.columns]
        check_names(names, name)
        held = list(frame.iter_columns())
        return Table(names, len(frame), lambda place: of_series(held[place]), name)
    if isinstance(x, list | tuple):
        return _of_array(np.array(x, dtype=object), name)
    if hasattr(type(x), "__array__") or hasattr(type(x), "__dlpack__"):
        from gpubackprop.data.frames import as_array

        return _of_array(as_array(x), name)
    raise DtypeError(
        f"{name} is a {type(x).__name__}, which is no table; pass a data frame, a mapping from "
        "names to columns, or an array (N, D)"
    )


def _narwhals_frame(x: Any, name: str) -> Any:
    """Return `x` as narwhals' data frame, or None if it is none."""
    kind = type(x)
    if hasattr(kind, "collect") and hasattr(kind, "lazy"):
        raise DtypeError(f"x is a {kind.__name__}, not yet computed; pass x.collect()")
    nw = importlib.import_module("narwhals")
    try:
        frame = nw.from_native(x, pass_through=True)
    except nw.exceptions.DuplicateError as error:
        raise DataError(f"{name}: duplicate column names ({error}); rename them") from error
    if hasattr(frame, "iter_columns"):
        return frame
    if hasattr(frame, "collect") and frame is not x:
        return frame.collect()
    if hasattr(kind, "__arrow_c_stream__"):
        return nw.from_native(importlib.import_module("pyarrow").table(x))
    return None


def _of_array(x: np.ndarray, name: str) -> Table:
    if x.dtype.names is not None and x.ndim == 1:
        names = list(x.dtype.names)
        return Table(names, len(x), lambda j: typed.of_array(x[names[j]], names[j]), name)
    if x.ndim != 2:
        raise ShapeError(f"{name} has shape {x.shape} but a table is (N, D)")
    names = [str(j) for j in range(x.shape[1])]
    return Table(names, len(x), lambda j: typed.of_array(x[:, j], names[j]), name, positional=True)


def _of_mapping(x: Mapping[Any, Any], name: str) -> Table:
    names = [str(key) for key in x]
    check_names(names, name)
    columns = list(x.values())
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise DataError(f"{name} has columns of {sorted(lengths)} rows; all want the same number")

    def read(place: int) -> Column:
        column = columns[place]
        if isinstance(column, np.ndarray):
            return typed.of_array(column, names[place])
        return typed.of_objects(list(column), names[place])

    return Table(names, lengths.pop() if lengths else 0, read, name)


# -- columns of narwhals --------------------------------------------------------------------------


def of_series(series: Any) -> Column:
    """Return a series of narwhals as a column."""
    nw = importlib.import_module("narwhals")
    native, kind = series.to_native(), series.dtype
    if type(native).__module__.startswith("pyarrow"):
        series = _decoded(nw, native, series)
        native, kind = series.to_native(), series.dtype
    if kind.is_numeric() or kind == nw.Boolean:
        if kind.is_integer() and not series.is_null().any():
            return typed.numbers(series.to_numpy())
        values = np.array(series.cast(nw.Float64).to_numpy(), np.float64)  # a copy
        values[np.asarray(series.is_null().to_numpy(), bool)] = np.nan
        return typed.numbers(values, "boolean" if kind == nw.Boolean else "number")
    if kind in (nw.String, nw.Categorical, nw.Enum):
        return _of_texts(series, native)
    if kind in (nw.Date, nw.Datetime):
        if kind == nw.Datetime and kind.time_zone is not None:
            series = series.dt.replace_time_zone(None)
        missing = np.asarray(series.is_null().to_numpy(), bool)
        stamps = series.cast(nw.Datetime("us")).dt.timestamp("us").cast(nw.Float64).to_numpy()
        return typed.numbers(np.where(missing, np.nan, stamps / 1e6), "date")
    if kind == nw.Duration:
        missing = np.asarray(series.is_null().to_numpy(), bool)
        microseconds = series.dt.total_microseconds().cast(nw.Float64).to_numpy()
        return typed.numbers(np.where(missing, np.nan, microseconds / 1e6))
    if kind == nw.Time or kind == nw.Object or kind == nw.Binary or kind == nw.Unknown:
        values = series.to_list()
        if all(value is None for value in values):
            return typed.numbers(np.full(len(values), np.nan))
        return typed.of_objects(values, str(series.name))
    return typed.unreadable(len(series), f"values of the type {kind}")


def _decoded(nw: Any, native: Any, series: Any) -> Any:
    """Return a series of Arrow without types of which narwhals cannot make numbers or text."""
    from gpubackprop.data.columns import plain_column

    if str(native.type).startswith(("dictionary", "binary", "large_binary", "string_view")):
        native = plain_column(native, series.name, row_from_1, "the table")
    elif str(native.type) == "null":
        native = native.cast("double")
    elif str(native.type) == "halffloat":
        native = native.cast("float")
    else:
        return series
    return nw.from_native(native, series_only=True)


def _of_texts(series: Any, native: Any) -> Column:
    if hasattr(native, "dictionary_encode"):  # pyarrow, whose encoding is much quicker than a loop
        return encoded_arrow(native)
    values = series.to_list()
    kinds = {type(value) for value in values}
    if kinds <= {str, type(None)}:
        return typed.text(values)
    return typed.of_objects(values, str(series.name)).as_text()  # categories that are numbers


def encoded_arrow(column: Any) -> Column:
    """Return a column of Arrow strings as a column of text."""
    encoded = column.dictionary_encode()
    if hasattr(encoded, "combine_chunks"):
        encoded = encoded.unify_dictionaries().combine_chunks()
    if hasattr(encoded, "num_chunks"):
        if not encoded.num_chunks:
            return typed.text([])
        encoded = encoded.chunk(0)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return typed.coded(codes, encoded.dictionary.to_pylist())
