"""A table beyond memory as rows of a mapped file, which one process or several ranks make."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.data.columns import Names, choose_columns
from gpubackprop.data.files import listing
from gpubackprop.data.preprocessor import TablePreprocessor
from gpubackprop.data.shared_table import SharedTable, mapped, some_rows
from gpubackprop.data.split import split_rows
from gpubackprop.data.table_file import CsvSource, ParquetSource, open_table
from gpubackprop.data.targets import Target, Targets, read_targets
from gpubackprop.distributed.contract import Communicator
from gpubackprop.distributed.launch import join
from gpubackprop.errors import DataError, GpubackpropError, OptionError
from gpubackprop.ops.display import names

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class TableRows:
    """What `table_rows` returns: ``Trainer.fit(rows.x, rows.targets, rows=rows.train)``.

    Parameters
    ----------
    x : (N, D) memory map, or CodedInputs of two
        The inputs of all rows that have a target.
    targets : (N,) int64 or (N, K) float64 array
        Class indices, or numbers.
    train : (M,) int array
        Numbers of the rows from which the columns were learnt, for ``Trainer.fit(rows=...)``.
    validation : (N - M,) int array
        Numbers of the others.
    preprocessor : TablePreprocessor
        What the columns become, for `Model`.
    classes : (K,) array or None
        Labels of the class indices, for `Model`.
    task : str
        "classification", "regression" or "multilabel".
    target_names : tuple of str
        The target columns, for `Model`.
    file_rows : (N,) int array
        The number of each row in the file.
    decoded : tuple of pairs of int
        For each batch of the file that this rank has decoded its first row, and behind the last.
    learnt_rows : int
        From how many rows the columns were learnt.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("sizes.csv").write_text("width,length\\n1,2\\n2,4\\n3,6\\n,8\\n")
    >>> rows = table_rows("sizes.csv", "length", task="regression")
    >>> print(rows.x.round(2), rows.targets.ravel(), rows.preprocessor.output_names)
    [[-1.41  0.  ]
     [ 0.    0.  ]
     [ 1.41  0.  ]
     [ 0.    1.  ]] [2. 4. 6. 8.] ['width', 'width: missing']
    """

    x: Any
    targets: Array
    train: Array
    validation: Array
    preprocessor: TablePreprocessor
    classes: Array | None
    task: str
    target_names: tuple[str, ...]
    file_rows: Array = field(repr=False)
    decoded: tuple[tuple[int, int], ...] = field(repr=False)
    learnt_rows: int = 0

    def __repr__(self) -> str:
        return (
            f"TableRows({len(self.targets):,} rows of {len(self.preprocessor.output_names)} "
            f"inputs, {self.task} of {names(self.target_names)})"
        )


def table_rows(
    path: str | os.PathLike[str],
    target: Names,
    *,
    columns: Sequence[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    distributed: str | Communicator | None = "auto",
    task: str = "auto",
    validation: float = 0.0,
    seed: int = 0,
    learn_rows: int = 100_000,
    dtype: npt.DTypeLike = np.float32,
    drop: Iterable[str] = (),
    include: Iterable[str] = (),
    categorical: Iterable[str] = (),
    max_categories: int = 100,
    separator: str | None = None,
    decimal: str | None = None,
) -> TableRows:
    """Encode a Parquet or CSV file once, into a mapped file of which training reads rows.

    The file is read in batches, three times: for the targets, for a sample from which the columns
    are learnt, and for the inputs. Under several ranks each reads its part alone: of a Parquet file
    its own row groups (a file with fewer row groups than ranks leaves some idle). All ranks call
    this, and the result does not depend on their number. Of a CSV file each rank parses all records
    and takes every so many blocks. Targets and row numbers of all rows are in every rank's memory.

    Parameters
    ----------
    path : path
        The file; every rank can read it.
    target : str or sequence of str
        The target column, or several. Rows without a target are left out.
    columns : sequence of str or None
        The columns to learn from; None is all but the targets.
    directory : path or None
        Where the mapped file is written, and stays: ``<name of the file>.x.npy``. All ranks see it.
        None is a file of each machine without a name, in its temporary directory (TMPDIR), which
        is gone when the program ends.
    distributed : {"auto", "mpi", "torchrun"}, Communicator or None
        The ranks, as for `Trainer`.
    task : str
        "classification", "regression", "multilabel", or "auto" to infer it from the targets.
    validation : float
        Share of the rows from which nothing is learnt.
    seed : int
        Of the split and of the sample.
    learn_rows : int
        From at most so many of the training rows, drawn at random, the columns are learnt.
    dtype : dtype
        Of the inputs: float32 or float64.
    drop : iterable of str
        As for `TablePreprocessor.fit`.
    include : iterable of str
        As for `TablePreprocessor.fit`.
    categorical : iterable of str
        As for `TablePreprocessor.fit`.
    max_categories : int
        As for `TablePreprocessor.fit`.
    separator : str or None
        What stands between the cells of a CSV file; found from its first records if None.
    decimal : str or None
        "." or "," before decimals of a CSV file; found if None.

    Returns
    -------
    TableRows
        The mapped inputs, the targets, and what a `Model` needs.

    Raises
    ------
    DataError
        The file cannot be read or does not fit, or the mapped file is there already.
    OptionError
        An option is out of range.
    DistributedError
        Some ranks alone have failed; it names them.
    MissingDependencyError
        pyarrow is missing.
    OSError
        The disk has no room for the mapped file.

    Examples
    --------
    >>> from pathlib import Path
    >>> from gpubackprop import MLP, Trainer
    >>> lines = [f"{i % 7},{'ab'[i % 2]},{i % 2}" for i in range(100)]
    >>> _ = Path("table.csv").write_text("\\n".join(["size,kind,good", *lines]))
    >>> rows = table_rows("table.csv", "good", validation=0.2)
    >>> rows
    TableRows(100 rows of 3 inputs, classification of good)
    >>> trainer = Trainer(MLP([3, 2], seed=0), distributed="auto")
    >>> history = trainer.fit(
    ...     rows.x, rows.targets, rows=rows.train, validation=rows.validation, epochs=1
    ... )
    """
    kept_dtype = _checked_dtype(dtype)
    if learn_rows < 1:
        raise OptionError(f"learn_rows is {learn_rows} but must be 1 or more")
    ranks = join(distributed)
    table = SharedTable(str(path), ranks, one_disk=directory is not None)
    wanted = None if columns is None else list(columns)

    def source(kind: str) -> CsvSource | ParquetSource:
        def used(there: list[str]) -> list[str]:
            features, targets = choose_columns(there, target, wanted, str(path))
            return features if kind == "features" else targets

        return open_table(path, separator=separator, decimal=decimal, used=used)

    def agreed(kind: str) -> CsvSource | ParquetSource:
        return ranks.all_succeed(lambda: source(kind))

    beside = table.table(agreed("targets"))
    found = [Target(name, beside.column(name), beside.as_written(name)) for name in beside.names]
    rows, targets = ranks.all_succeed(lambda: with_targets(found, task, str(path)))
    train, held_out = np.arange(len(rows)), np.zeros(0, np.int64)
    if validation:
        by_class = targets.values if targets.classes is not None else None
        train, held_out = ranks.all_succeed(
            lambda: split_rows(len(rows), validation, seed, by_class)
        )
    features = agreed("features")
    learnt = table.sample(features, some_rows(rows[train], learn_rows, seed))
    prepared = ranks.all_succeed(
        lambda: TablePreprocessor.fit(
            learnt, columns=wanted, drop=drop, include=include, categorical=categorical,
            max_categories=max_categories,
        )
    )  # fmt: skip
    folder = None if directory is None else Path(directory)
    x = mapped([(table, features, rows)], prepared, learnt, kept_dtype, folder)
    decoded = tuple(sorted(set(table.decoded)))
    return TableRows(
        x, targets.values, train, held_out, prepared, targets.classes, targets.task,
        tuple(column.name for column in found), rows, decoded, len(learnt),
    )  # fmt: skip


def with_targets(found: Sequence[Target], task: str, source: str) -> tuple[Array, Targets]:
    """Return the numbers of the rows that have all targets, and these targets.

    Raises
    ------
    DataError
        There is no such row, or a target does not fit the task.
    """
    rows = np.flatnonzero(~np.any([column.missing for column in found], axis=0))
    if not len(rows):
        wanted = listing(column.name for column in found)
        raise DataError(f"{source}: no row has a target {wanted}")
    try:
        targets = read_targets([column.take(rows) for column in found], task)
    except GpubackpropError as error:
        raise DataError(f"{source}: {error}") from error
    if targets.classes is None and not np.isfinite(targets.values).all():
        row, column = np.argwhere(~np.isfinite(targets.values))[0]
        raise DataError(
            f"{source}: row {rows[row] + 1}, target column {found[column].name!r} holds "
            f"{targets.values[row, column]}; targets must be finite"
        )
    return rows, targets


def _checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    found = np.dtype(dtype)
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise OptionError(f"dtype is {found} but must be float32 or float64")
    return found
