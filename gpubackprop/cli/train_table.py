"""The data of ``gpubackprop train`` from a CSV or Parquet file, text and gaps included."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from gpubackprop.cli.common import check_data_options, has_column_names
from gpubackprop.cli.streams import from_shell
from gpubackprop.cli.train_batches import InBatches, exceeds_memory
from gpubackprop.cli.train_found import ROLES, checked_values, found_in
from gpubackprop.cli.train_rows import TrainingData
from gpubackprop.data import TablePreprocessor
from gpubackprop.data.any_table import Table
from gpubackprop.data.coded import stacked
from gpubackprop.data.columns import choose_columns
from gpubackprop.data.files import listing
from gpubackprop.data.names import check_present
from gpubackprop.data.table_file import CsvSource, FileTable, ParquetSource, open_table
from gpubackprop.data.targets import Target, Targets, known_labels, read_targets
from gpubackprop.distributed import Communicator
from gpubackprop.errors import DataError, GpubackpropError
from gpubackprop.losses import loss

Array = np.ndarray
LARGE_FILE = 64 << 20  # bytes; reading a larger one shows a bar
TABLE_OPTIONS = (
    "drop", "include", "categorical", "separator", "decimal", "weights", "group",
)  # fmt: skip


def check_usage(args: argparse.Namespace) -> None:
    """Report wrong usage (exit 2) if an option does not belong to DATA, or --target lacks."""
    if args.data is None:
        for option in ("target", "features", "no_header", *TABLE_OPTIONS):
            if getattr(args, option):
                args.parser.error(
                    f"--{option.replace('_', '-')} is about DATA, which is missing; without both, "
                    "train learns the bundled digits"
                )
        return
    check_data_options(args)
    if not has_column_names(args.data):
        for option in TABLE_OPTIONS:
            if getattr(args, option):
                args.parser.error(
                    f"--{option} is for tables (CSV, Parquet), which {args.data} is not; leave it "
                    "out"
                )
        if isinstance(args.test, str):
            args.parser.error(f"--test FILE is for tables, which {args.data} is not; give a share")
    if args.group is not None and args.validation_last is not None:
        args.parser.error("--group and --validation-last split the rows in two ways; choose one")
    if not args.target:
        args.parser.error(
            "DATA wants --target: a column (CSV, Parquet), a key (NPZ) or a file (NPY, IDX)"
        )
    if not has_column_names(args.data) and len(args.target) > 1:
        args.parser.error(f"--target is one key or file for {args.data}, which is no table")


def prepare_table(args: argparse.Namespace, ranks: Communicator) -> TrainingData:
    """Read, encode, split and standardise the table that the command line names.

    All ranks call this. A table that does not fit memory is read by all of them together.

    Raises
    ------
    DataError, OptionError, ShapeError, MissingDependencyError, OSError
        The file cannot be read, or an option does not fit it.
    """
    if not ranks.any(args.low_memory or exceeds_memory(args.data)):
        return ranks.all_succeed(lambda: _prepare_whole(args))
    choice = Choice(args)
    files = InBatches(choice.open, ranks)

    def beside(path: str) -> FileTable:
        if ranks.size == 1:  # with a bar
            return choice.load(path, targets_only=True)
        return files.beside(path, lambda path: choice.open(path, targets_only=True))

    table = beside(str(args.data))
    found = ranks.all_succeed(lambda: found_in(args, choice, table))
    if choice.test_file is not None:
        more = beside(choice.test_file)
        first = found
        found = ranks.all_succeed(lambda: first.with_test(choice, more))
    learnt = files.sample(str(args.data), found.kept[found.train], args.seed)
    prepared = ranks.all_succeed(lambda: fit_preprocessor(args, choice, learnt, None))
    x = files.encoded(prepared, learnt, found.parts, args.dtype)
    found.notes.append(
        f"read in batches, into a temporary file of {x.nbytes / 1e6:,.0f} MB; the columns are "
        f"learnt from {len(learnt):,} of {len(found.train):,} training rows"
    )
    return ranks.all_succeed(lambda: found.data(args, choice, table, prepared, x))


def _prepare_whole(args: argparse.Namespace) -> TrainingData:
    """Do `prepare_table` with the whole table in memory."""
    choice = Choice(args)
    table = choice.load(args.data)
    found = found_in(args, choice, table)
    if choice.test_file is not None:
        found = found.with_test(choice, choice.load(choice.test_file, targets_only=True))
    features = Table.take(table, found.kept)
    prepared = fit_preprocessor(args, choice, features, found.train)
    x = prepared.inputs(features, args.dtype)
    if choice.test_file is not None:
        whole = Table.take(choice.load(choice.test_file), found.parts[1][1])
        x = stacked([x, prepared.inputs(whole, args.dtype)])
    return found.data(args, choice, table, prepared, x)


class Choice:
    """The columns that the command line names, of the training file and of the test file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.test_file = args.test if isinstance(args.test, str) else None
        self.target_names: list[str] = []
        self.feature_names: list[str] = []
        self.all_named = args.features is not None
        self.targets_only = False
        self.others = {
            name: from_shell(value) for name in ROLES if (value := getattr(args, name)) is not None
        }

    def open(self, path: str, *, targets_only: bool = False) -> CsvSource | ParquetSource:
        """Return the file with the columns that are used, or with those beside the features."""
        args, self.targets_only = self.args, targets_only
        return open_table(
            path, header=not args.no_header, separator=args.separator, decimal=args.decimal,
            used=lambda names: self._used(names, path),
        )  # fmt: skip

    def load(self, path: str, *, targets_only: bool = False) -> FileTable:
        """Read the columns that are used, or those beside the features."""
        with _reading(path, self.args.quiet) as opener:
            return self.open(path, targets_only=targets_only).load(opener)

    def _used(self, names: list[str], path: str) -> list[str]:
        """Return the columns to read, and note which are targets and which features."""
        args = self.args
        wanted = None if args.features is None else from_shell(args.features)
        asked = [from_shell(text) for text in args.target]
        target: Any = asked if len(asked) > 1 else asked[0]
        if args.no_header:
            back = {str(j - len(names)): name for j, name in enumerate(names)}
            self.others = {role: back.get(name, name) for role, name in self.others.items()}
        for role, name in self.others.items():
            check_present([name], names, role, path)
        visible = [name for name in names if name not in self.others.values()]
        self.feature_names, self.target_names = choose_columns(visible, target, wanted, path)
        beside = [*self.target_names, *self.others.values()]
        return beside if self.targets_only else [*self.feature_names, *beside]

    def named(self, option: str) -> list[str]:
        """Return the columns of an option that may be given several times or with commas."""
        return [
            name.strip() for text in getattr(self.args, option)
            for name in from_shell(text).split(",") if name.strip()
        ]  # fmt: skip

    def target_columns(self, table: FileTable) -> list[Target]:
        return [
            Target(name, table.column(name), table.as_written(name)) for name in self.target_names
        ]

    def targets(self, table: FileTable) -> tuple[Targets, Array, list[str]]:
        """Return the targets, the rows that have one, and notes on those that have none."""
        args, columns = self.args, self.target_columns(table)
        kept, notes = _rows_with_target(columns, table)
        task = args.task
        if task == "auto" and args.loss is not None:
            task = loss(args.loss).task
        try:
            found = read_targets([column.take(kept) for column in columns], task)
        except GpubackpropError as error:
            raise DataError(f"{table.source}: {error}") from error
        for column in columns:
            if found.classes is None and np.isinf(column.column.values).any():
                row = int(np.flatnonzero(np.isinf(column.column.values))[0])
                raise DataError(
                    f"{table.source}: {table.where(row)}, target column {column.name!r} holds "
                    f"{column.column.values[row]}; targets must be finite"
                )
        return found, kept, notes

    def known_targets(self, table: FileTable, trained: Targets) -> tuple[Array, Array]:
        """Return the targets of the test file as those of training, and its rows that have one."""
        columns = self.target_columns(table)
        rows, _ = _rows_with_target(columns, table)
        picked = [column.take(rows) for column in columns]
        if trained.classes is None or len(picked) > 1:
            found = read_targets(picked, trained.task)
            return checked_values(found, table.source, self.target_names), rows
        from gpubackprop.data.classes import class_indices

        try:
            labels = known_labels(picked[0].written, trained.classes)
            return class_indices(labels, trained.classes), rows
        except DataError as error:
            raise DataError(f"{table.source}: {error}") from error

    def role(self, table: FileTable, name: str, rows: Array) -> Array | None:
        """Return the column of the weights or of the groups, if there is one."""
        if name not in self.others:
            return None
        column = table.column(self.others[name]).take(rows)
        place = f"{table.source}: column {self.others[name]!r} of --{name}"
        if column.missing.any():
            row = int(rows[np.flatnonzero(column.missing)[0]])
            raise DataError(f"{place} has no value in {table.where(row)}; fill it in")
        if name == "group":
            return column.as_text().codes
        if column.kind != "number" or (column.values < 0).any() or np.isinf(column.values).any():
            raise DataError(f"{place} must hold numbers of at least 0")
        return column.values


def _rows_with_target(columns: Sequence[Target], table: FileTable) -> tuple[Array, list[str]]:
    missing = np.any([column.missing for column in columns], axis=0)
    rows = np.flatnonzero(~missing)
    names = listing(column.name for column in columns)
    if not len(rows):
        raise DataError(f"{table.source}: no row has a target {names}")
    without = int(missing.sum())
    if not without:
        return rows, []
    first = table.where(int(np.flatnonzero(missing)[0]))
    have = f"{without:,} rows have" if without > 1 else "1 row has"
    return rows, [f"{have} no target {names} ({first}{' first' if without > 1 else ''}): left out"]


def fit_preprocessor(
    args: argparse.Namespace, choice: Choice, table: Table, train: Array | None
) -> TablePreprocessor:
    """Learn from the training rows what the columns become."""
    places = [j for j, name in enumerate(table.names) if name in set(choice.feature_names)]
    features = table.select(places)
    include = features.names if choice.all_named else choice.named("include")
    return TablePreprocessor.fit(
        features,
        train,
        drop=choice.named("drop"),
        include=include,
        categorical=choice.named("categorical"),
        max_categories=args.max_categories,
        standardize=args.standardize != "none",
        one_scale=args.standardize == "whole",
    )


@contextlib.contextmanager
def _reading(path: str, quiet: bool) -> Iterator[Any]:
    """Give the function that opens a large file so that a bar on stderr shows its reading."""
    size = Path(path).stat().st_size if Path(path).is_file() else 0
    if quiet or size < LARGE_FILE:
        yield None
        return
    with tqdm(
        total=size, unit="B", unit_scale=True, desc=f"reading {Path(path).name}", leave=False,
        disable=None,
    ) as bar:  # fmt: skip
        yield lambda file: _Counted(file, bar)


class _Counted:
    """A binary file whose reads move a bar."""

    def __init__(self, file: Path, bar: Any) -> None:
        self._file: IO[bytes] = open(file, "rb")  # noqa: SIM115 (closed by __exit__)
        self._bar = bar

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._bar.update(len(content))
        return content
