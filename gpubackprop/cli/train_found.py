"""What is known of the table of ``gpubackprop train`` before its features are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpubackprop.cli.train_rows import TrainingData, split
from gpubackprop.data import Standardizer, TablePreprocessor
from gpubackprop.data.table_file import FileTable
from gpubackprop.data.targets import Targets, warnings_of
from gpubackprop.errors import DataError, GpubackpropError
from gpubackprop.losses import default_loss

Array = np.ndarray
ROLES = ("weights", "group")


class Chosen(Protocol):
    """The columns that the command line names: `gpubackprop.cli.train_table.Choice`."""

    test_file: str | None
    target_names: list[str]

    def targets(self, table: FileTable) -> tuple[Targets, Array, list[str]]: ...
    def known_targets(self, table: FileTable, trained: Targets) -> tuple[Array, Array]: ...
    def role(self, table: FileTable, name: str, rows: Array) -> Array | None: ...


def found_in(args: argparse.Namespace, choice: Chosen, table: FileTable) -> Found:
    """Return the targets of a table, and its rows."""
    targets, kept, notes = choice.targets(table)
    targets = targets._replace(values=checked_values(targets, table.source, choice.target_names))
    weights, groups = (choice.role(table, name, kept) for name in ROLES)
    rows = split(args, targets.values, by_class=targets.classes is not None, groups=groups)
    return Found(
        targets, kept, weights, *rows, parts=[(str(args.data), kept)], notes=[*table.notes, *notes]
    )


@dataclass
class Found:
    """What is known of a table before its features are read.

    Attributes
    ----------
    targets : Targets
        Of the rows that have one, of all files.
    kept : int array
        The numbers of these rows in the training file.
    weights : array or None
        A weight for each of these rows.
    train, validation, test : int arrays
        Numbers among these rows.
    parts : list of (path, int array)
        The files, and which of their rows are used.
    notes : list of str
        For people.
    """

    targets: Targets
    kept: Array
    weights: Array | None
    train: Array
    validation: Array
    test: Array
    parts: list[tuple[str, Array]]
    notes: list[str]

    def with_test(self, choice: Chosen, table: FileTable) -> Found:
        """Return the same with the rows of the test file, all for the test."""
        values, rows = choice.known_targets(table, self.targets)
        assert choice.test_file is not None
        weights = self.weights
        if weights is not None:
            weights = np.concatenate([weights, np.ones(len(rows))])
        return replace(
            self, weights=weights, parts=[*self.parts, (choice.test_file, rows)],
            test=np.arange(len(self.kept), len(self.kept) + len(rows)),
            targets=self.targets._replace(values=np.concatenate([self.targets.values, values])),
        )  # fmt: skip

    def data(
        self, args: argparse.Namespace, choice: Chosen, table: FileTable,
        prepared: TablePreprocessor, x: Any,
    ) -> TrainingData:  # fmt: skip
        """Return the rows ready for the trainer; x are their inputs."""
        targets, train = self.targets, self.train
        values, scale = scaled_values(args, targets, train)
        return TrainingData(
            name=Path(args.data).name.split(".")[0] or "data", source=table.source,
            task=targets.task, x=x, targets=values, train=train, validation=self.validation,
            test=self.test, standardizer=prepared.standardizer, per_batch=None, target_scale=scale,
            classes=targets.classes, feature_names=prepared.input_names,
            target_names=None if args.no_header else choice.target_names, preprocessor=prepared,
            sample_weight=self.weights, why=targets.why,
            notes=(*self.notes, *warnings_of(targets, train)),
        )  # fmt: skip


def checked_values(targets: Targets, source: str, names: Sequence[str]) -> Array:
    """Return targets as the loss of their task wants them, or raise."""
    values = targets.values
    if targets.classes is not None:
        return values
    try:
        return default_loss(task=targets.task).check_targets(
            values, rows=values.shape[0], units=values.shape[1], dtype=values.dtype
        )
    except GpubackpropError as error:
        raise DataError(f"{source}, target {', '.join(names)}: {error}") from error


def scaled_values(
    args: argparse.Namespace, targets: Targets, train: Array
) -> tuple[Array, Standardizer | None]:
    """Return the targets, those of a regression standardised, and their standardisation."""
    if targets.task != "regression" or args.standardize == "none":
        return targets.values, None
    scale = Standardizer.fit(targets.values, train)
    return scale.transform(targets.values, dtype=np.float64), scale
