"""The data of ``gpubackprop train``: reading, task, split and standardisation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop._optional import require
from gpubackprop.cli.common import check_data_options, has_column_names
from gpubackprop.data import (
    Dataset,
    Standardizer,
    TablePreprocessor,
    check_finite,
    encode_labels,
    load_dataset,
    split_rows,
)
from gpubackprop.data.labels import explain_task
from gpubackprop.data.split import split_groups
from gpubackprop.errors import DataError, GpubackpropError
from gpubackprop.losses import default_loss, loss

Array = np.ndarray
DIGITS = "digits"


@dataclass(frozen=True)
class TrainingData:
    """Rows ready for the trainer.

    Attributes
    ----------
    x : (N, D) array
        Standardised, in the network's dtype; a memory-mapped file as it is.
    targets : (N,) or (N, K) array
        Class indices or numbers; numbers are scaled if `target_scale` says so.
    per_batch : Standardizer or None
        If x is memory-mapped, each batch passes through it.
    train : (M,) int array
        Numbers of the training rows.
    validation : int array
        Numbers of the validation rows.
    test : int array
        Numbers of the test rows.
    standardizer : Standardizer or None
        For raw inputs, fitted on the training rows.
    target_scale : Standardizer or None
        What the targets were standardised with.
    classes : (K,) array or None
        Labels.
    name : str
        For file names.
    source : str
        For people.
    preprocessor : TablePreprocessor or None
        Of a table: what its columns become.
    sample_weight : (N,) array or None
        Weight of each row in training.
    why : str
        Why the task is this one, if it was inferred.
    notes : tuple of str
        What people should know of the data.
    """

    name: str
    source: str
    task: str
    x: Array
    targets: Array
    train: Array
    validation: Array
    test: Array
    standardizer: Standardizer | None
    per_batch: Standardizer | None
    target_scale: Standardizer | None
    classes: Array | None
    feature_names: Sequence[str] | None
    target_names: Sequence[str] | None
    preprocessor: TablePreprocessor | None = None
    sample_weight: Array | None = None
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Number of output units that the targets want."""
        return self.targets.shape[1] if self.classes is None else len(self.classes)

    @property
    def parts(self) -> dict[str, Array]:
        """Row numbers of the parts that have rows, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in parts.items() if len(rows)}

    @property
    def judged(self) -> tuple[str, Array]:
        """The part whose score is the result: test, else validation, else train."""
        return list(self.parts.items())[-1]

    def original_targets(self) -> Array:
        """Return the targets in the file's units."""
        if self.target_scale is None:
            return self.targets
        mean, scale = self.target_scale.mean, self.target_scale.scale
        return (self.targets * scale + mean).astype(self.targets.dtype)


def prepare(args: argparse.Namespace) -> TrainingData:
    """Read, encode, split and standardise the data that the command line names.

    Raises
    ------
    DataError, OptionError, ShapeError, MissingDependencyError, OSError
        The data cannot be read, or an option does not fit them.
    """
    if args.data is not None and has_column_names(args.data):
        from gpubackprop.cli.train_table import prepare_table

        check_usage(args)
        return prepare_table(args)
    name, dataset = read(args)
    task = args.task
    if task == "auto" and args.loss is not None:
        task = loss(args.loss).task
    task, why, targets, classes = encode(task, dataset)
    train, validation, test = split(args, targets, by_class=classes is not None)
    if isinstance(dataset.x, np.memmap):  # `load_dataset` has checked what it read into memory
        check_finite(dataset.x, source=dataset.source)
    mode = args.standardize
    if mode == "auto":
        mode = "whole" if args.data is None or dataset.x.dtype.itemsize == 1 else "columns"
    standardizer = None
    if mode != "none":
        standardizer = Standardizer.fit(dataset.x, train, one_scale=mode == "whole")
    x, per_batch = dataset.x, None
    if isinstance(x, np.memmap):
        per_batch = standardizer
    elif standardizer is not None:
        x = standardizer.transform(x, dtype=args.dtype)
    else:
        x = x.astype(args.dtype)
    target_scale = None
    if task == "regression" and mode != "none":
        scaling = Standardizer.fit(targets, train)
        target_scale = scaling
        targets = scaling.transform(targets, dtype=np.float64)
    return TrainingData(
        name, dataset.source, task, x, targets, train, validation, test, standardizer, per_batch,
        target_scale, classes, dataset.feature_names, dataset.target_names, why=why,
    )  # fmt: skip


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
    if not args.target:
        args.parser.error(
            "DATA wants --target: a column (CSV, Parquet), a key (NPZ) or a file (NPY, IDX)"
        )
    if not has_column_names(args.data) and len(args.target) > 1:
        args.parser.error(f"--target is one key or file for {args.data}, which is no table")


def read(args: argparse.Namespace) -> tuple[str, Dataset]:
    """Return a name for the output directory, and the data of arrays."""
    check_usage(args)
    if args.data is None:
        return DIGITS, bundled_digits()
    dataset = load_dataset(
        args.data, target=args.target[0], features=args.features, header=not args.no_header
    )
    return Path(args.data).name.split(".")[0] or "data", dataset


def bundled_digits() -> Dataset:
    """Return scikit-learn's 1797 handwritten digits of 8x8 pixels, from 0 to 16."""
    module = require(
        "sklearn.datasets", "sklearn", "train without DATA, on its bundled handwritten digits"
    )
    digits = module.load_digits()
    names = tuple(str(name) for name in digits.feature_names)
    return Dataset(digits.data, digits.target, names, ("digit",), "scikit-learn's bundled digits")


def encode(task: str, dataset: Dataset) -> tuple[str, str, Array, Array | None]:
    """Return the task ("auto" resolved) and why, targets for its loss, and the classes or None."""
    y = dataset.y
    assert y is not None  # `read` asked for targets
    names = dataset.target_names
    where = f"{dataset.source}, target {', '.join(names)}" if names else dataset.source
    why = ""
    try:
        if task == "auto":
            task, reason = explain_task(y)
            why = f"the target has {reason}"
        if task == "classification":
            one_hot = y.ndim == 2 and y.shape[1] > 1
            indices, classes = encode_labels(y.argmax(1) if one_hot else y)
            return task, why, indices, classes
    except GpubackpropError as error:
        raise DataError(f"{where}: {error}") from error
    if y.dtype.kind in "US":
        raise DataError(
            f"{where}: the targets are text (row 1: {str(y.flat[0])!r}) but {task} wants numbers; "
            "choose another target column, or --task classification"
        )
    values = np.asarray(y, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    try:
        checked = default_loss(task=task).check_targets(
            values, rows=values.shape[0], units=values.shape[1], dtype=values.dtype
        )
    except GpubackpropError as error:
        raise DataError(f"{where}: {error}") from error
    return task, why, checked, None


def split(
    args: argparse.Namespace, targets: Array, *, by_class: bool, groups: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return row numbers for training, validation (a share of what --test leaves) and test.

    Rows of one group are in one part. With --validation-last, the parts follow one another in the
    order of the file.
    """
    rows, nothing = np.arange(len(targets)), np.zeros(0, np.int64)
    last = args.validation_last

    def cut(kept: Array, option: str) -> tuple[Array, Array]:
        share = getattr(args, option)
        if not share or isinstance(share, str):
            return kept, nothing
        if last is not None:
            count = round(len(kept) * share)
            if not 0 < count < len(kept):
                raise DataError(f"--{option} {share:g} of {len(kept)} rows leaves a part empty")
            return kept[:-count], kept[-count:]
        if groups is not None:
            try:
                first, second = split_groups(groups[kept], share, args.seed)
            except GpubackpropError as error:
                raise DataError(
                    f"--{option} {share:g} with --group: {error}; --{option} 0 does without"
                ) from error
            return kept[first], kept[second]
        classes = targets[kept] if by_class else None
        try:
            first, second = split_rows(len(kept), share, args.seed, classes)
        except GpubackpropError as error:
            raise DataError(f"--{option} {share:g}: {error}; --{option} 0 does without") from error
        return kept[first], kept[second]

    rest, test = cut(rows, "test")
    train, validation = cut(rest, "validation" if last is None else "validation_last")
    return train, validation, test


def batches(data: TrainingData, rows: Array, dtype: Any, size: int = 4096) -> Any:
    """Yield x of these rows as the network wants it, in batches."""
    for start in range(0, len(rows), size):
        batch = data.x[rows[start : start + size]]
        if data.per_batch is not None:
            batch = data.per_batch.transform(batch, dtype=dtype)
        yield batch
