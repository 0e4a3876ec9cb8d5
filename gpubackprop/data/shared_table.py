"""A CSV or Parquet file that several ranks read: each its part, and all get what they need.

What is small (the targets, a sample of the rows) goes to all ranks. The encoded rows go into a file
that is mapped into memory: each rank writes those of its part, and reads any afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gpubackprop._optional import require
from gpubackprop.data.any_table import Table
from gpubackprop.data.coded import CodedInputs
from gpubackprop.data.preprocessor import TablePreprocessor
from gpubackprop.data.table_file import CsvSource, FileTable, ParquetSource
from gpubackprop.distributed.contract import Communicator
from gpubackprop.errors import DataError

Array = npt.NDArray[Any]
Open = Callable[[], CsvSource | ParquetSource]
T = TypeVar("T")


class SharedTable:
    """A file of which each rank reads a part. All ranks call every method.

    Parameters
    ----------
    path : str
        The file, for messages.
    ranks : Communicator
        The ranks.
    one_disk : bool
        Whether all ranks see the directory in which the mapped file is. Otherwise the ranks of each
        machine read the whole file together, and have a mapped file of their own.

    Attributes
    ----------
    peers : list of int
        The ranks that read the file together with this one.
    decoded : list of (int, int)
        For each batch that this rank has decoded its first row, and behind the last one.
    """

    def __init__(self, path: str, ranks: Communicator, *, one_disk: bool) -> None:
        self.path, self.ranks = path, ranks
        machines = ranks.gather("" if one_disk else socket.gethostname())
        self.peers = [rank for rank, name in enumerate(machines) if name == machines[ranks.rank]]
        self.index = self.peers.index(ranks.rank)
        self.decoded: list[tuple[int, int]] = []

    def together(self, make: Callable[[], T]) -> list[T]:
        """Return what ``make()`` returns on each of the peers; an error on one rank stops all."""
        each = self.ranks.gather(self.ranks.all_succeed(make))
        return [each[rank] for rank in self.peers]

    def table(self, source: CsvSource | ParquetSource) -> FileTable:
        """Return the columns of a source, whole, on every rank: those of the targets."""

        def read() -> list[tuple[int, list[Any]]]:
            return [
                (first, [source.held(table, name) for name in source.used])
                for first, table in self.part(source)
            ]

        parts = sorted((part for own in self.together(read) for part in own), key=lambda p: p[0])
        if not parts:
            raise DataError(f"{self.path} has columns but no rows; one row or more is needed")
        by_column = [[columns[place] for _, columns in parts] for place in range(len(source.used))]
        return self.ranks.all_succeed(lambda: source.joined(by_column))

    def sample(self, source: CsvSource | ParquetSource, rows: Array) -> FileTable:
        """Return these rows, which are in ascending order, on every rank."""
        pa = require("pyarrow", "cli", "read CSV and Parquet files")

        def read() -> list[tuple[int, Any]]:
            return [
                (first, table.arrow.take(_inside(rows, first, table)))
                for first, table in self.part(source)
            ]

        parts = sorted((part for own in self.together(read) for part in own), key=lambda p: p[0])
        return source.table(
            pa.concat_tables([arrow for _, arrow in parts], promote_options="default")
        )

    def part(self, source: CsvSource | ParquetSource) -> Iterator[tuple[int, FileTable]]:
        """Yield this rank's part of a source, and note what is decoded. Each rank for itself."""
        for first, table in source.part(self.index, len(self.peers)):
            self.decoded.append((first, first + len(table)))
            yield first, table


def _inside(rows: Array, first: int, table: Table) -> Array:
    """Return which of a batch's rows are among `rows`, which are in ascending order."""
    start, stop = np.searchsorted(rows, (first, first + len(table)))
    return np.asarray(rows[start:stop] - first)


def _pieces(inputs: Any) -> dict[str, Array]:
    if isinstance(inputs, CodedInputs):
        return {"x": inputs.dense, "codes": inputs.codes}
    return {"x": inputs}


Part = tuple[SharedTable, Any, Array]  # a file, its source with the features, and rows of it


def mapped(
    parts: Sequence[Part],
    prepared: TablePreprocessor,
    learnt: Table,
    dtype: Any,
    directory: Path | None = None,
) -> Any:
    """Return the inputs of these rows of these files, (N, D) or coded, mapped from new files.

    All ranks call this.

    Parameters
    ----------
    parts : sequence of Part
        The rows of each are in ascending order.
    prepared : TablePreprocessor
        What the columns become.
    learnt : Table
        Some rows of a file; they say how wide the inputs are.
    dtype : dtype
        Of the inputs.
    directory : Path or None
        Where the files are, named after the first one. None is a directory of each machine, which
        is gone as soon as all ranks see the files.
    """
    first_file, ranks = parts[0][0], parts[0][0].ranks
    if directory is not None:
        ranks.all_succeed(lambda: directory.mkdir(parents=True, exist_ok=True))
        return _mapped(parts, prepared, learnt, dtype, directory)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        first = first_file.together(lambda: own)[0]
        x = _mapped(parts, prepared, learnt, dtype, Path(first))
        ranks.barrier()
    return x


def _mapped(
    parts: Sequence[Part], prepared: TablePreprocessor, learnt: Table, dtype: Any, directory: Path
) -> Any:
    table, ranks = parts[0][0], parts[0][0].ranks
    like = prepared.inputs(Table.take(learnt, slice(0, 1)), dtype)
    pieces, count = _pieces(like), sum(len(rows) for _, _, rows in parts)
    stem = Path(table.path).name.split(".")[0]
    files = {name: directory / f"{stem}.{name}.npy" for name in pieces}

    def create() -> None:
        if table.index == 0:
            for name, piece in pieces.items():
                new_map(files[name], (count, piece.shape[1]), piece.dtype)

    def write() -> None:
        maps, before = {name: opened(file, "r+") for name, file in files.items()}, 0
        for shared, source, rows in parts:
            for first, batch in shared.part(source):
                inside = _inside(rows, first, batch)
                place = before + int(np.searchsorted(rows, first))
                made = prepared.inputs(Table.take(batch, inside), dtype)
                for name, piece in _pieces(made).items():
                    maps[name][place : place + len(inside)] = piece
            before += len(rows)
        for array in maps.values():
            if isinstance(array, np.memmap):
                array.flush()

    ranks.all_succeed(create)
    ranks.all_succeed(write)
    maps = ranks.all_succeed(lambda: {name: opened(files[name]) for name in pieces})
    if isinstance(like, CodedInputs):
        return like.with_arrays(maps["x"], maps["codes"])
    return maps["x"]


def new_map(file: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """Make a .npy file of this shape with all of its room on the disk.

    Writing into a mapped file for which the disk has no room would end the process.

    Raises
    ------
    DataError
        There is such a file already.
    OSError
        There is no room.
    """
    if file.exists():
        raise DataError(f"{file} is there already; delete it, or name another directory")
    if 0 in shape:
        np.save(file, np.empty(shape, dtype))
        return
    np.lib.format.open_memmap(file, "w+", dtype, shape)
    with open(file, "r+b") as written, contextlib.ExitStack() as stack:
        stack.enter_context(_unsupported())
        os.posix_fallocate(written.fileno(), 0, os.fstat(written.fileno()).st_size)


@contextlib.contextmanager
def _unsupported() -> Any:
    """Leave out what the system or the disk does not know."""
    try:
        yield
    except AttributeError:
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def opened(file: Path, mode: Any = "r") -> Any:
    """Return the array of a .npy file, mapped if it has elements."""
    try:
        return np.lib.format.open_memmap(file, mode)
    except ValueError:  # an empty file cannot be mapped
        return np.load(file)


def some_rows(rows: Sequence[int] | Array, most: int, seed: int) -> Array:
    """Return at most so many of these row numbers, drawn at random, in ascending order."""
    picked = np.asarray(rows)
    if len(picked) > most:
        picked = np.random.default_rng(seed).choice(picked, most, replace=False)
    return np.sort(picked)
