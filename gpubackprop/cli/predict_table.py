"""Tables of ``gpubackprop predict``: columns by name, what a model was not trained on, targets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop import Model
from gpubackprop.cli.streams import from_shell
from gpubackprop.data import TablePreprocessor
from gpubackprop.data.any_table import Table
from gpubackprop.data.columns import _as_names
from gpubackprop.data.files import listing
from gpubackprop.data.names import check_present
from gpubackprop.data.table_file import FileTable, load_table
from gpubackprop.data.targets import known_labels
from gpubackprop.errors import DataError, OptionError, ShapeError

Array = np.ndarray


class Rows(NamedTuple):
    """What is predicted.

    Attributes
    ----------
    x : Table or array
        Inputs of the model.
    number : int
        Number of rows.
    y : (M,) or (M, K) array or None
        Targets to score with, in the kind of the model's.
    scored : (M,) int array or None
        The rows that have a target.
    kept : mapping from names to lists
        Columns that go to the output as they are.
    notes : list of str
        What people should know.
    """

    x: Any
    number: int
    y: Array | None
    scored: Array | None
    kept: dict[str, list[str]]
    notes: list[str]


def read_table(args: argparse.Namespace, model: Model, prepared: TablePreprocessor) -> Rows:
    """Read DATA, a CSV or Parquet file, for a model with a preprocessor.

    Raises
    ------
    DataError
        A column is absent; it is named.
    OptionError
        --score does not know the targets.
    ShapeError
        A file without column names has another number of columns.
    """
    targets: list[str] = []
    kept: list[str] = []
    unused: list[str] = []

    def used(names: list[str]) -> list[str]:
        targets.extend(_target_names(args, model, names))
        kept.extend(name for text in args.keep for name in _as_names(from_shell(text), names))
        check_present(list(dict.fromkeys(kept)), names, "--keep", args.data)
        check_present(targets, names, "target", args.data)
        if args.no_header:
            return names
        check_present(prepared.input_names, names, "feature", args.data)
        own = {*prepared.names, *targets, *kept, *(model.target_names or ())}
        unused.extend(name for name in names if name not in own)
        return list(dict.fromkeys([*prepared.input_names, *kept, *(targets if args.score else ())]))

    table = load_table(
        args.data, header=not args.no_header, separator=args.separator, decimal=args.decimal,
        used=used,
    )  # fmt: skip
    notes = list(table.notes)
    if unused:
        notes.append(f"columns that the model does not use: {listing(unused, 10)}")
    x: Table = table
    if args.no_header:
        x = _by_place(table, prepared, targets, args)
    y, scored = _targets(table, model, targets) if args.score else (None, None)
    if scored is not None and len(scored) < len(table):
        notes.append(f"{len(table) - len(scored):,} rows have no target and are not scored")
    texts = {name: _texts(table, name) for name in dict.fromkeys(kept)}
    return Rows(x, len(table), y, scored, texts, notes)


def _target_names(args: argparse.Namespace, model: Model, names: Sequence[str]) -> list[str]:
    """Return the target columns: those to score with, or to set aside in a file without header."""
    if args.target is not None:
        return _as_names(from_shell(args.target), names)
    if not args.score:
        return []
    if args.no_header:
        raise OptionError(
            f"--score on {args.data} wants --target: the number of a column (CSV without header)"
        )
    if model.target_names is None:
        raise OptionError("--score wants to know the targets: name the columns with --target")
    return list(model.target_names)


def _by_place(
    table: FileTable, prepared: TablePreprocessor, targets: Sequence[str], args: argparse.Namespace
) -> Table:
    """Return the columns of a file without header, in their order, without names."""
    places = [j for j, name in enumerate(table.names) if name not in targets]
    if len(places) not in (len(prepared.columns), len(prepared.names)):
        wanted, got = len(prepared.names), len(places)
        hint = "; if one of them is the target, name it with --target" if got == wanted + 1 else ""
        raise ShapeError(
            f"{args.data} has {got} feature columns but {args.model} was trained on {wanted}{hint}"
        )
    return table.select(places, positional=True)


def _targets(table: FileTable, model: Model, names: Sequence[str]) -> tuple[Array, Array]:
    """Return the targets of the rows that have them, as the kind that the model has."""
    columns = [table.column(name) for name in names]
    missing = np.any([column.missing for column in columns], axis=0)
    rows = np.flatnonzero(~missing)
    if not len(rows):
        raise DataError(f"{table.source}: no row has a target {listing(names)} to score with")
    if model.classes is not None and len(names) == 1:
        try:
            labels = known_labels(table.as_written(names[0]).take(rows), np.asarray(model.classes))
        except DataError as error:
            raise DataError(f"{table.source}: {error}") from error
        return labels, rows
    for name, column in zip(names, columns, strict=True):
        if column.kind not in ("number", "boolean"):
            raise DataError(
                f"{table.source}: column {name!r} holds {column.kind} but the model predicts "
                "numbers; --target names the targets"
            )
    values = np.stack([column.values[rows] for column in columns], axis=1)
    if model.classes is not None:  # one-hot
        return np.asarray(model.classes)[values.argmax(1)], rows
    return values, rows


def _texts(table: FileTable, name: str) -> list[str]:
    """Return a column as the file has it; a missing value is empty."""
    column = table.as_written(name).as_text()
    return np.array([*column.texts, ""], dtype=object)[column.codes].tolist()
