"""CSV (pyarrow.csv) and Parquet (pyarrow.parquet) to feature matrix and targets."""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpubackprop._optional import require
from gpubackprop.data.columns import Names, choose_columns, feature_matrix, target_array
from gpubackprop.data.files import Where, listing, row_from_1, shorten
from gpubackprop.errors import DataError

Array = npt.NDArray[Any]
_BLOCK = 1 << 24  # bytes that pyarrow parses at a time; every line must fit into them
_ENCODING = "utf-8-sig"  # with or without the byte order mark that Excel writes


class Columns(NamedTuple):
    """The parts of a table: x (N, D), y (N,) or (N, K) or None, and their names or None."""

    x: Array
    y: Array | None
    feature_names: tuple[str, ...] | None
    target_names: tuple[str, ...] | None


def read_csv(file: Path, target: Names, features: Names, header: bool) -> Columns:
    """Read a CSV file: UTF-8, separated by commas (.tsv: by tabs); see `load_dataset`.

    Messages name data rows from 1, with the line of the file on which each begins.
    """
    source = str(file)
    separator = "\t" if is_tab_separated(file) else ","
    names = csv_names(file, features, header, separator)
    chosen, targets = choose_columns(names, target, features, source)
    table = parse_csv(file, names, chosen + targets, header, separator)
    where = line_finder(file, len(names), header, separator)
    try:
        x = feature_matrix(table, chosen, where, source)
    except DataError as error:
        if header or "row 1 " not in str(error) or "the text" not in str(error):
            raise
        raise DataError(f"{error}; if line 1 is a header, leave out --no-header") from None
    y = target_array(table, targets, where, source) if targets else None
    if not header:
        return Columns(x, y, None, None)
    return Columns(x, y, tuple(chosen), tuple(targets) or None)


def read_parquet(file: Path, target: Names, features: Names) -> Columns:
    """Read a Parquet file, of which only the columns in use; see `load_dataset`."""
    source = str(file)
    pa = require("pyarrow", "cli", "read Parquet files")
    pq = require("pyarrow.parquet", "cli", "read Parquet files")
    try:
        with open(file, "rb") as opened, pq.ParquetFile(opened) as parquet:
            chosen, targets = choose_columns(parquet.schema_arrow.names, target, features, source)
            table = parquet.read(columns=chosen + targets)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{source} is not a whole Parquet file: {_first_line(error)}; write or copy it again"
        ) from error
    if table.num_rows == 0:
        raise DataError(f"{source} has columns but no rows; one row or more is needed")
    x = feature_matrix(table, chosen, row_from_1, source)
    y = target_array(table, targets, row_from_1, source) if targets else None
    return Columns(x, y, tuple(chosen), tuple(targets) or None)


def is_tab_separated(file: Path) -> bool:
    """Return whether the name of the file says that its columns are separated by tabs."""
    return file.name.lower().endswith((".tsv", ".tsv.gz"))


def line_finder(file: Path, columns: int, header: bool, separator: str) -> Where:
    """Return a function that names a data row, with the line of the file on which it begins."""

    def where(row: int) -> str:
        records = records_of(file, columns, separator)
        try:
            line, _ = next(itertools.islice(records, row + bool(header), None))
        except (StopIteration, csv.Error):  # csv.Error: a cell beyond csv's limit
            return row_from_1(row)
        return f"row {row + 1} (line {line})"

    return where


def _zipped(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def _open_text(file: Path) -> IO[str]:
    """Open a CSV file as text, decompressed if its name ends in .gz.

    Bytes that are not UTF-8 become U+FFFD.
    """
    if _zipped(file):
        return gzip.open(file, "rt", encoding=_ENCODING, errors="replace", newline="")
    return open(file, encoding=_ENCODING, errors="replace", newline="")


def records_of(
    file: Path, columns: int, separator: str = ",", strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which it begins, cells) of each record, counted as pyarrow counts.

    An empty line is a missing value in a file of one column, and skipped in others.
    """
    with _open_text(file) as text:
        reader = csv.reader(text, strict=strict, delimiter=separator)
        line = 1
        for cells in reader:
            if cells or (columns == 1 and line > 1):
                yield line, cells
            line = reader.line_num + 1


def csv_names(file: Path, features: Names, header: bool, separator: str) -> list[str]:
    """Return column names of a CSV file: its first record, or "0" .. "D-1" if it has no header."""
    try:
        records = records_of(file, 2, separator)
        first = next((cells for _, cells in records), None)
        second = next(records, None)
    except (csv.Error, EOFError, OSError, zlib.error) as error:  # OSError: also a bad gzip header
        raise DataError(f"{file} cannot be read as CSV: {_first_line(error)}") from error
    if first and any("\ufffd" in cell or "\0" in cell for cell in first):
        raise DataError(
            f"{file}: line 1 is not UTF-8 text but {shorten(','.join(first))}; save the file as "
            "CSV in UTF-8 (a compressed file wants the suffix .csv.gz)"
        )
    if first is None:
        raise DataError(f"{file} holds only empty lines; a CSV file wants a header and data rows")
    if not header:
        return [str(i) for i in range(len(first))]
    if _looks_headerless(first) and not _all_named(features, first):
        raise DataError(
            f"{file}: line 1 holds only numbers ({listing(first, 5)}), so it looks like data and "
            "not like a header; pass --no-header (header=False), or give the columns names"
        )
    if second is None:
        raise DataError(f"{file} has a header but no data rows; one row or more is needed")
    return first


def _looks_headerless(cells: list[str]) -> bool:
    """Return whether all cells are numbers, but not 0, 1, 2, 3, ...

    pandas writes 0, 1, 2, 3, ... for columns without names.
    """
    if len(cells) > 3 and cells == [str(i) for i in range(len(cells))]:
        return False
    try:
        return all(np.isfinite(float(cell)) for cell in cells)
    except ValueError:
        return False


def _all_named(features: Names, cells: list[str]) -> bool:
    """Return whether the caller's list of features proves that the first line is a header."""
    if features is None or isinstance(features, str | int) or not hasattr(features, "__iter__"):
        return False
    return all(str(name) in cells for name in features)


def parse_csv(
    file: Path,
    names: list[str],
    used: list[str] | None,
    header: bool,
    separator: str,
    *,
    skip: int = 0,
    as_text: bool = False,
    opener: Callable[[Path], Any] | None = None,
) -> Any:
    """Return the used columns (None: all) as an Arrow table.

    Types are inferred over the whole file, or all columns are the bytes that the file has.

    Parameters
    ----------
    file : Path
        The file.
    names : list of str
        Names of all columns.
    used : list of str or None
        Names of the columns to return.
    header : bool
        Whether the first record names the columns.
    separator : str
        What stands between two cells.
    skip : int
        Number of lines and records to skip, header included, if `names` are not the header's.
    as_text : bool
        Whether to return bytes.
    opener : callable or None
        Opens the file to read bytes; `open` by default.
    """
    pa = require("pyarrow", "cli", "read CSV files")
    pc = require("pyarrow.csv", "cli", "read CSV files")
    read = pc.ReadOptions(
        block_size=_BLOCK,
        column_names=names if skip or not header else None,
        skip_rows_after_names=skip,
    )
    parse = pc.ParseOptions(
        newlines_in_values=True, ignore_empty_lines=len(names) > 1, delimiter=separator
    )
    convert = pc.ConvertOptions(
        include_columns=used,
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        column_types={name: pa.binary() for name in names} if as_text else None,
    )
    try:
        _check_quotes(file, len(names), separator)
        # Python opens the file, because Arrow cannot open names that are not UTF-8.
        with (
            (opener or partial(open, mode="rb"))(file) as opened,
            pa.input_stream(opened, compression="gzip" if _zipped(file) else None) as stream,
        ):
            table = pc.read_csv(
                stream, read_options=read, parse_options=parse, convert_options=convert
            )
    except (pa.ArrowException, EOFError, OSError, zlib.error) as error:
        _explain_ragged(file, len(names), header, separator)
        raise DataError(
            f"{file} cannot be read as CSV: {_first_line(error)}; write or copy it again"
        ) from error
    if table.num_rows == 0:
        raise DataError(f"{file} has a header but no data rows; one row or more is needed")
    return table


def _explain_ragged(file: Path, columns: int, header: bool, separator: str) -> None:
    """Raise DataError for the first line with another number of cells; return if there is none."""
    try:
        for i, (line, cells) in enumerate(records_of(file, columns, separator)):
            if len(cells) != columns and not (columns == 1 and not cells):
                row = i if header else i + 1
                wanted = "the header" if header else "line 1"
                raise DataError(
                    f"{file}: row {row} (line {line}) has {len(cells)} cells but {wanted} has "
                    f"{columns}; look for a missing or extra comma, or text with a comma that "
                    "wants quotes"
                )
    except (csv.Error, EOFError, OSError, zlib.error):
        return  # the caller reports pyarrow's own error


def _check_quotes(file: Path, columns: int, separator: str) -> None:
    """Raise DataError for a quote that is never closed.

    pyarrow takes everything from the quote to the end of the file as one cell. If that column is
    not used, rows would be lost silently. An odd number of quotes is the cheap sign.
    """
    opener = gzip.open if _zipped(file) else open
    count = 0
    with opener(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            count += chunk.count(b'"')
    if count % 2 == 0:
        return
    line = 1
    try:
        for line, cells in records_of(file, columns, separator, strict=True):
            line += sum(cell.count("\n") for cell in cells) + 1
    except csv.Error as error:
        if "unexpected end" in str(error) or "field limit" in str(error):
            raise DataError(
                f"{file}: a quote opened near line {line} is never closed, so that the rest of the "
                "file would be one cell; close it, or the file was cut off"
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
