"""CSV and Parquet files as tables whose columns may hold text, dates and missing values.

Every cell of a CSV file is read as text first. The kind of a column is then found over the whole
file, and labels stay as they were written.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop._optional import require
from gpubackprop.data import tables, typed
from gpubackprop.data.any_table import Table, encoded_arrow, of_series
from gpubackprop.data.columns import plain_column
from gpubackprop.data.files import Where, check_file, listing, row_from_1
from gpubackprop.data.names import repeated
from gpubackprop.data.typed import Column
from gpubackprop.errors import DataError

SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 50  # records that tell the separator
_LEADING_ZERO = r"^\s*[+-]?0\d+\s*$"


class FileTable(Table):
    """The columns of a file.

    Attributes
    ----------
    notes : list of str
        What was done to read it, for people.
    """

    notes: Sequence[str] = ()

    def as_written(self, name: str) -> Column:
        """Return a column of a CSV file as the texts that it holds; of a Parquet file as it is."""
        return (
            self.column(name) if self._read_text is None else self.text_at(self.names.index(name))
        )


def load_table(
    path: str | os.PathLike[str],
    *,
    header: bool = True,
    separator: str | None = None,
    decimal: str | None = None,
    used: Callable[[list[str]], list[str]] | None = None,
    opener: Callable[[Path], Any] | None = None,
) -> FileTable:
    """Read a CSV or Parquet file.

    Parameters
    ----------
    path : path
        The file; the suffix says the format.
    header : bool
        Whether the first record of a CSV file names the columns; else they are "0" to "D-1".
    separator : str or None
        What stands between the cells of a CSV file; found from its first records if None.
    decimal : str or None
        "." or "," before decimals; None is "." in columns where that gives numbers, else "," if it
        is not the separator.
    used : callable or None
        Chooses among the names the columns to read; None reads all.
    opener : callable or None
        Opens the file to read bytes.

    Raises
    ------
    DataError
        The file cannot be read; file, row and line are named.
    """
    file = check_file(path)
    if file.name.lower().endswith(".parquet"):
        return _load_parquet(file, used)
    return _load_csv(file, header, separator, decimal, used, opener)


def _load_csv(
    file: Path,
    header: bool,
    separator: str | None,
    decimal: str | None,
    used: Callable[[list[str]], list[str]] | None,
    opener: Callable[[Path], Any] | None,
) -> FileTable:
    mark = separator or _separator_of(file)
    cells = tables.csv_names(file, None, header, mark)
    line = next(line for line, _ in tables.records_of(file, 2, mark))
    names, notes = clean_names(cells, mark) if header else (cells, [])
    chosen = names if used is None else used(names)
    arrow = tables.parse_csv(
        file, names, chosen, header, mark, skip=line if header else 0, as_text=True, opener=opener
    )
    where = tables.line_finder(file, len(names), header, mark)
    nameless = [n for n, cell in zip(names, cells, strict=True) if n in chosen and not cell.strip()]
    chosen = [n for n in chosen if n not in nameless or arrow[n].null_count < arrow.num_rows]
    comma = mark != "," if decimal is None else decimal == ","

    def strings(name: str) -> Any:
        return plain_column(arrow.column(name), name, where, str(file))

    def read(place: int) -> Column:
        return typed_text(strings(chosen[place]), comma=comma, dot=decimal != ",")

    table = FileTable(
        chosen, arrow.num_rows, read, str(file), where,
        read_text=lambda place: encoded_arrow(strings(chosen[place])),
    )  # fmt: skip
    table.notes = notes
    return table


def typed_text(strings: Any, *, comma: bool, dot: bool) -> Column:
    """Return Arrow strings as the kind of values that they are."""
    pa = require("pyarrow", "cli", "read CSV files")
    pc = require("pyarrow.compute", "cli", "read CSV files")
    if dot:
        try:  # the quick way, which most columns go
            floats = pc.cast(pc.utf8_trim_whitespace(strings), pa.float64())
        except pa.ArrowInvalid:
            pass
        else:
            coded = pc.any(pc.match_substring_regex(strings, _LEADING_ZERO)).as_py()
            if not coded:
                return typed.numbers(floats.to_numpy())
    return typed.written(encoded_arrow(strings), decimal_comma=comma)


def _separator_of(file: Path) -> str:
    """Return the mark that gives all of the first records one number of cells, above 1."""
    if tables.is_tab_separated(file):
        return "\t"
    counts: dict[str, int] = {}
    for mark in SEPARATORS:
        try:
            found = set()
            for number, (_, cells) in enumerate(tables.records_of(file, 2, mark)):
                found.add(len(cells))
                if number >= _SAMPLE:
                    break
        except (csv.Error, EOFError, OSError, zlib.error):
            return ","  # the reader explains it
        if len(found) == 1 and max(found) > 1:
            counts[mark] = max(found)
    if "," in counts or not counts:
        return ","
    return max(counts, key=lambda mark: counts[mark])


def clean_names(cells: Sequence[str], separator: str = ",") -> tuple[list[str], list[str]]:
    """Return distinct names of all columns, and notes of what was changed.

    >>> clean_names(["a", " b", "", "a"])[0]
    ['a', 'b', 'unnamed', 'a (2)']
    """
    names = [cell.strip() or "unnamed" for cell in cells]
    notes = []
    if separator != ",":
        notes.append(f"columns are separated by {separator!r}")
    if doubled := [name for name in repeated(names) if name != "unnamed"]:
        notes.append(f"column names that are there twice were numbered: {listing(doubled)}")
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        fresh = name if seen[name] == 1 else f"{name} ({seen[name]})"
        while fresh in result:
            seen[name] += 1
            fresh = f"{name} ({seen[name]})"
        result.append(fresh)
    return result, notes


def _load_parquet(file: Path, used: Callable[[list[str]], list[str]] | None) -> FileTable:
    source = str(file)
    pa = require("pyarrow", "cli", "read Parquet files")
    pq = require("pyarrow.parquet", "cli", "read Parquet files")
    try:
        with open(file, "rb") as opened, pq.ParquetFile(opened) as parquet:
            names = [n for n in parquet.schema_arrow.names if not n.startswith("__index_level_")]
            if doubled := repeated(names):
                raise DataError(f"{source}: duplicate column names {listing(doubled)}; rename them")
            chosen = names if used is None else used(parquet.schema_arrow.names)
            arrow = parquet.read(columns=chosen)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{source} is not a whole Parquet file: {tables._first_line(error)}; write or copy it "
            "again"
        ) from error
    if arrow.num_rows == 0:
        raise DataError(f"{source} has columns but no rows; one row or more is needed")
    narwhals: Any = require("narwhals", "cli", "read Parquet files")

    def read(place: int) -> Column:
        column = plain_column(arrow.column(chosen[place]), chosen[place], row_from_1, source)
        return of_series(narwhals.from_native(column, series_only=True))

    return FileTable(chosen, arrow.num_rows, read, source, row_from_1)


def rows_with(columns: Sequence[Column]) -> np.ndarray:
    """Return the rows in which none of these columns has a missing value."""
    missing = np.zeros(len(columns[0]), bool)
    for column in columns:
        missing |= column.missing
    return np.flatnonzero(~missing)


__all__ = ["FileTable", "Where", "clean_names", "load_table", "rows_with"]
