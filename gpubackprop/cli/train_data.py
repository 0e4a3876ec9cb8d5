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
from gpubackprop.cli.streams import from_shell
from gpubackprop.data import (
    Dataset,
    Standardizer,
    check_finite,
    encode_labels,
    infer_task,
    load_dataset,
    split_rows,
)
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
    name, dataset = read(args)
    task = args.task
    if task == "auto" and args.loss is not None:
        task = loss(args.loss).task
    task, targets, classes = encode(task, dataset)
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
        target_scale, classes, dataset.feature_names, dataset.target_names,
    )  # fmt: skip


def read(args: argparse.Namespace) -> tuple[str, Dataset]:
    """Return a name for the output directory, and the data."""
    if args.data is None:
        for option in ("target", "features", "no_header"):
            if getattr(args, option):
                args.parser.error(
                    f"--{option.replace('_', '-')} is about DATA, which is missing; without both, "
                    "train learns the bundled digits"
                )
        return DIGITS, bundled_digits()
    check_data_options(args)
    if args.target is None:
        args.parser.error(
            "DATA wants --target: a column (CSV, Parquet), a key (NPZ) or a file (NPY, IDX)"
        )
    target, features = args.target, args.features
    if has_column_names(args.data):
        target, features = from_shell(target), features and from_shell(features)
    dataset = load_dataset(args.data, target=target, features=features, header=not args.no_header)
    return Path(args.data).name.split(".")[0] or "data", dataset


def bundled_digits() -> Dataset:
    """Return scikit-learn's 1797 handwritten digits of 8x8 pixels, from 0 to 16."""
    module = require(
        "sklearn.datasets", "sklearn", "train without DATA, on its bundled handwritten digits"
    )
    digits = module.load_digits()
    names = tuple(str(name) for name in digits.feature_names)
    return Dataset(digits.data, digits.target, names, ("digit",), "scikit-learn's bundled digits")


def encode(task: str, dataset: Dataset) -> tuple[str, Array, Array | None]:
    """Return the task ("auto" resolved), targets for its loss, and the classes or None."""
    y = dataset.y
    assert y is not None  # `read` asked for targets
    names = dataset.target_names
    where = f"{dataset.source}, target {', '.join(names)}" if names else dataset.source
    try:
        if task == "auto":
            task = infer_task(y)
        if task == "classification":
            indices, classes = encode_labels(y)
            return task, indices, classes
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
    return task, checked, None


def split(
    args: argparse.Namespace, targets: Array, *, by_class: bool
) -> tuple[Array, Array, Array]:
    """Return row numbers for training, validation (a share of what --test leaves) and test."""
    rows, nothing = np.arange(len(targets)), np.zeros(0, np.int64)

    def cut(kept: Array, option: str) -> tuple[Array, Array]:
        share = getattr(args, option)
        if not share:
            return kept, nothing
        classes = targets[kept] if by_class else None
        try:
            first, second = split_rows(len(kept), share, args.seed, classes)
        except GpubackpropError as error:
            raise DataError(f"--{option} {share:g}: {error}; --{option} 0 does without") from error
        return kept[first], kept[second]

    rest, test = cut(rows, "test")
    train, validation = cut(rest, "validation")
    return train, validation, test


def batches(data: TrainingData, rows: Array, dtype: Any, size: int = 4096) -> Any:
    """Yield x of these rows as the network wants it, in batches."""
    for start in range(0, len(rows), size):
        batch = data.x[rows[start : start + size]]
        if data.per_batch is not None:
            batch = data.per_batch.transform(batch, dtype=dtype)
        yield batch
