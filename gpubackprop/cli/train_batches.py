"""Tables of ``gpubackprop train`` that do not fit memory: read in batches, into a mapped file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.data import TablePreprocessor
from gpubackprop.data.shared_table import SharedTable, mapped, some_rows
from gpubackprop.data.table_file import CsvSource, FileTable, ParquetSource
from gpubackprop.distributed import Communicator

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


class InBatches:
    """The files of a training, of which no process holds the whole: the ranks read them together.

    All ranks call every method.

    Parameters
    ----------
    open_file : callable
        ``open_file(path)`` returns the file with the columns that are used.
    ranks : Communicator
        The ranks.
    """

    def __init__(self, open_file: Open, ranks: Communicator) -> None:
        self._open, self.ranks = open_file, ranks
        self._files: dict[str, SharedTable] = {}

    def _file(self, path: str) -> SharedTable:
        if path not in self._files:
            self._files[path] = SharedTable(path, self.ranks, one_disk=False)
        return self._files[path]

    def _source(self, path: str) -> CsvSource | ParquetSource:
        return self.ranks.all_succeed(lambda: self._open(path))

    def beside(self, path: str, open_file: Open) -> FileTable:
        """Return the columns beside the features, which `open_file` opens, of all rows."""
        return self._file(path).table(self.ranks.all_succeed(lambda: open_file(path)))

    def sample(self, path: str, rows: Array, seed: int) -> FileTable:
        """Return some of these rows, as many as have SAMPLE_CELLS cells, in order."""
        source = self._source(path)
        most = max(1000, SAMPLE_CELLS // len(source.used))
        return self._file(path).sample(source, some_rows(rows, most, seed))

    def encoded(
        self,
        prepared: TablePreprocessor,
        learnt: FileTable,
        parts: Sequence[tuple[str, Array]],
        dtype: Any,
    ) -> Any:
        """Return the inputs of these rows of these files, mapped from files that have no name."""
        files = [(self._file(path), self._source(path), rows) for path, rows in parts]
        return mapped(files, prepared, learnt, np.dtype(dtype))
