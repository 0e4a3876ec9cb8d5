"""CSV and Parquet files as tables whose columns may hold text, dates and missing values.

Every cell of a CSV file is read as text first. The kind of a column is then found over the whole
file, and labels stay as they were written.
"""

from __future__ import annotations

import contextlib
import csv
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
    arrow : pyarrow.Table
        The columns as they were read.
    first : int
        The number in the file of its first row.
    """

    notes: Sequence[str] = ()
    first = 0
    arrow: Any = None

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
    return open_table(path, header=header, separator=separator, decimal=decimal, used=used).load(
        opener
    )


def open_table(
    path: str | os.PathLike[str],
    *,
    header: bool = True,
    separator: str | None = None,
    decimal: str | None = None,
    used: Callable[[list[str]], list[str]] | None = None,
) -> CsvSource | ParquetSource:
    """Return a file whose table can be read whole, or in batches; see `load_table`."""
    file = check_file(path)
    if file.name.lower().endswith(".parquet"):
        return ParquetSource(file, used)
    return CsvSource(file, header, separator, decimal, used)


class CsvSource:
    """A CSV file: its names, and how its cells are read."""

    def __init__(
        self,
        file: Path,
        header: bool,
        separator: str | None,
        decimal: str | None,
        used: Callable[[list[str]], list[str]] | None,
    ) -> None:
        self.file, self.header = file, header
        self.mark = separator or _separator_of(file)
        self.cells = tables.csv_names(file, None, header, self.mark)
        line = next(line for line, _ in tables.records_of(file, 2, self.mark))
        self.skip = line if header else 0
        self.names, self.notes = clean_names(self.cells, self.mark) if header else (self.cells, [])
        self.used = self.names if used is None else used(self.names)
        self.comma = self.mark != "," if decimal is None else decimal == ","
        self.dot = decimal != ","

    def load(self, opener: Callable[[Path], Any] | None = None) -> FileTable:
        """Return the whole table, without columns that have neither a name nor a value."""
        arrow = tables.parse_csv(
            self.file, self.names, self.used, self.header, self.mark, skip=self.skip,
            as_text=True, opener=opener,
        )  # fmt: skip
        named = {n for n, cell in zip(self.names, self.cells, strict=True) if cell.strip()}
        used = [n for n in self.used if n in named or arrow[n].null_count < arrow.num_rows]
        return self.table(arrow.select(used))

    def batches(self) -> Iterator[FileTable]:
        """Yield the rows as tables, a block of the file at a time."""
        first = 0
        for arrow in tables.stream_csv(
            self.file, self.names, self.used, self.header, self.mark, self.skip
        ):
            yield self.table(arrow, first)
            first += arrow.num_rows

    def part(self, index: int, count: int) -> Iterator[tuple[int, FileTable]]:
        """Yield part `index` of `count` of the rows, as tables with the number of their first row.

        The parts are blocks of the file in turn. Where a block begins is known only when those in
        front of it are parsed, so that every part costs the parsing of the whole file; the cells of
        the others are not looked at.
        """
        for number, table in enumerate(self.batches()):
            if number % count == index:
                yield table.first, table

    def held(self, table: FileTable, name: str) -> Column:
        """Return of a column of a batch what `joined` wants."""
        return table.as_written(name)

    def joined(self, columns: Sequence[Sequence[Column]]) -> FileTable:
        """Return the whole table from what was held of each column, batch by batch."""
        pa = require("pyarrow", "cli", "read CSV files")
        written = [typed.joined(parts) for parts in columns]

        def read(place: int) -> Column:
            codes, texts = written[place].codes, list(written[place].texts)
            indices = pa.array(codes, mask=codes < 0)
            strings = pa.DictionaryArray.from_arrays(indices, pa.array(texts, pa.large_string()))
            return typed_text(strings.dictionary_decode(), comma=self.comma, dot=self.dot)

        table = FileTable(
            self.used, len(written[0]), read, str(self.file), self._finder(0),
            read_text=lambda place: written[place],
        )  # fmt: skip
        table.notes = self.notes
        return table

    def _finder(self, first: int) -> Where:
        find = tables.line_finder(self.file, len(self.names), self.header, self.mark)
        return lambda row: find(first + row)

    def table(self, arrow: Any, first: int = 0) -> FileTable:
        """Return an Arrow table of bytes, whose first row is the file's row `first`, as a table."""
        source, names, where = str(self.file), arrow.column_names, self._finder(first)

        def strings(place: int) -> Any:
            return plain_column(arrow.column(place), names[place], where, source)

        table = FileTable(
            names, arrow.num_rows,
            lambda place: typed_text(strings(place), comma=self.comma, dot=self.dot),
            source, where, read_text=lambda place: encoded_arrow(strings(place)),
        )  # fmt: skip
        table.notes, table.arrow, table.first = self.notes, arrow, first
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


class ParquetSource:
    """A Parquet file."""

    def __init__(self, file: Path, used: Callable[[list[str]], list[str]] | None) -> None:
        self.file, source = file, str(file)
        with self._opened() as parquet:
            names = parquet.schema_arrow.names
        if doubled := repeated(names):
            raise DataError(f"{source}: duplicate column names {listing(doubled)}; rename them")
        named = [name for name in names if not name.startswith("__index_level_")]
        self.used = named if used is None else used(names)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        pa = require("pyarrow", "cli", "read Parquet files")
        pq = require("pyarrow.parquet", "cli", "read Parquet files")
        try:
            with open(self.file, "rb") as opened, pq.ParquetFile(opened) as parquet:
                yield parquet
        except MemoryError:  # Arrow's is an ArrowException, too
            raise
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.file} is not a whole Parquet file: {tables._first_line(error)}; write or "
                "copy it again"
            ) from error

    def load(self, opener: Callable[[Path], Any] | None = None) -> FileTable:
        """Return the whole table."""
        with self._opened() as parquet:
            arrow = parquet.read(columns=self.used)
        if arrow.num_rows == 0:
            raise DataError(f"{self.file} has columns but no rows; one row or more is needed")
        return self.table(arrow.select(self.used))

    def batches(self) -> Iterator[FileTable]:
        """Yield the rows as tables of some ten thousand rows."""
        for _, table in self.part(0, 1):
            yield table

    def part(self, index: int, count: int) -> Iterator[tuple[int, FileTable]]:
        """Yield part `index` of `count` of the rows, as tables with the number of their first row.

        A part is neighbouring row groups; no other is decoded.
        """
        pa = require("pyarrow", "cli", "read Parquet files")
        with self._opened() as parquet:
            groups, first = row_groups(parquet.metadata, index, count)
            for group in groups:  # several at once take memory for all of them
                for batch in parquet.iter_batches(
                    row_groups=[group], columns=self.used, use_threads=count == 1
                ):
                    yield first, self.table(pa.Table.from_batches([batch]).select(self.used), first)
                    first += batch.num_rows

    def held(self, table: FileTable, name: str) -> Column:
        """Return of a column of a batch what `joined` wants."""
        return table.column(name)

    def joined(self, columns: Sequence[Sequence[Column]]) -> FileTable:
        """Return the whole table from what was held of each column, batch by batch."""
        whole = [typed.joined(parts) for parts in columns]
        return FileTable(self.used, len(whole[0]), whole.__getitem__, str(self.file), row_from_1)

    def table(self, arrow: Any, first: int = 0) -> FileTable:
        """Return an Arrow table, whose first row is the file's row `first`, as a table."""
        narwhals: Any = require("narwhals", "cli", "read Parquet files")

        def where(row: int) -> str:
            return row_from_1(first + row)

        def read(place: int) -> Column:
            column = plain_column(arrow.column(place), names[place], where, str(self.file))
            return of_series(narwhals.from_native(column, series_only=True))

        names = arrow.column_names
        table = FileTable(names, arrow.num_rows, read, str(self.file), where)
        table.arrow, table.first = arrow, first
        return table


def row_groups(metadata: Any, index: int, count: int) -> tuple[list[int], int]:
    """Return the row groups of a part of a Parquet file, and the number of its first row.

    A row group belongs to the part in which its middle row would be if the rows were divided.
    """
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    groups: list[int] = []
    first = before = 0
    for group, size in enumerate(sizes):
        part = (2 * before + size) * count // max(1, 2 * metadata.num_rows)
        if min(part, count - 1) == index:  # an empty group may be behind the last row
            first = first if groups else before
            groups.append(group)
        before += size
    return groups, first
