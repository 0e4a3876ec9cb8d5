"""Tables of ``gpubackprop train`` that do not fit memory: read in batches, into a mapped file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop._optional import require
from gpubackprop.data import TablePreprocessor
from gpubackprop.data.any_table import Table
from gpubackprop.data.coded import CodedInputs
from gpubackprop.data.table_file import CsvSource, FileTable, ParquetSource

Array = np.ndarray
Open = Callable[[str], CsvSource | ParquetSource]
SAMPLE_CELLS = 50_000_000  # of the rows from which the columns are learnt
_CELLS, _CELLS_ZIPPED = 6, 30  # bytes of memory for a byte of a file


def exceeds_memory(path: str) -> bool:
    """Return whether the cells of a file may take more than half of the free memory."""
    file = Path(path)
    if not file.is_file():
        return False
    zipped = file.name.lower().endswith((".gz", ".parquet"))
    return file.stat().st_size * (_CELLS_ZIPPED if zipped else _CELLS) > free_memory() / 2


def free_memory() -> float:
    """Return the bytes that this process may still take; infinite if nobody says."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024.0
    return float("inf")


def sample(open_file: Open, path: str, rows: Array, seed: int) -> FileTable:
    """Return some of these rows of a file, as many as have SAMPLE_CELLS cells, in order."""
    pa = require("pyarrow", "cli", "read CSV and Parquet files")
    source = open_file(path)
    most = max(1000, SAMPLE_CELLS // len(source.used))
    if len(rows) > most:
        rows = np.random.default_rng(seed).choice(rows, most, replace=False)
    rows, parts, first = np.sort(rows), [], 0
    for batch in source.batches():
        inside = rows[(rows >= first) & (rows < first + len(batch))] - first
        parts.append(batch.arrow.take(inside))
        first += len(batch)
    return source.table(pa.concat_tables(parts, promote_options="default"))


def encoded_in_batches(
    open_file: Open, prepared: TablePreprocessor, parts: Sequence[tuple[str, Array]], dtype: Any
) -> Any:
    """Return the inputs of these rows of these files, mapped from files that have no name."""
    count, done = sum(len(rows) for _, rows in parts), 0
    x: Any = None
    for path, rows in parts:
        first = 0
        for batch in open_file(path).batches():
            inside = rows[(rows >= first) & (rows < first + len(batch))] - first
            encoded = prepared.inputs(Table.take(batch, inside), dtype)
            x = _mapped_like(encoded, count) if x is None else x
            pairs = [(x, encoded)]
            if isinstance(encoded, CodedInputs):
                pairs = [(x.dense, encoded.dense), (x.codes, encoded.codes)]
            for whole, part in pairs:
                whole[done : done + len(inside)] = part
            first, done = first + len(batch), done + len(inside)
    return x


def _mapped_like(encoded: Any, rows: int) -> Any:
    """Return memory of a file for so many rows of the same columns."""
    if isinstance(encoded, CodedInputs):
        dense, codes = (_mapped_like(part, rows) for part in (encoded.dense, encoded.codes))
        return encoded.with_arrays(dense, codes)
    shape = rows, encoded.shape[1]
    if 0 in shape:
        return np.empty(shape, encoded.dtype)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, encoded.dtype, "w+", shape=shape)
