"""The data of ``gpubackprop train``: reading, task, split and standardisation."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gpubackprop._optional import require
from gpubackprop.cli.common import has_column_names
from gpubackprop.cli.train_rows import TrainingData, split
from gpubackprop.cli.train_table import check_usage, prepare_table
from gpubackprop.data import (
    Dataset,
    Standardizer,
    check_finite,
    encode_labels,
    load_dataset,
)
from gpubackprop.data.labels import explain_task
from gpubackprop.distributed import Alone, Communicator
from gpubackprop.errors import DataError, GpubackpropError
from gpubackprop.losses import default_loss, loss

Array = np.ndarray
DIGITS = "digits"


def prepare(args: argparse.Namespace, ranks: Communicator | None = None) -> TrainingData:
    """Read, encode, split and standardise the data that the command line names.

    All ranks call this; None is this process alone.

    Raises
    ------
    DataError, OptionError, ShapeError, MissingDependencyError, OSError
        The data cannot be read, or an option does not fit them.
    """
    ranks = Alone() if ranks is None else ranks
    if args.data is not None and has_column_names(args.data):
        ranks.all_succeed(lambda: check_usage(args))
        return prepare_table(args, ranks)
    return ranks.all_succeed(lambda: prepare_arrays(args))


def prepare_arrays(args: argparse.Namespace) -> TrainingData:
    """Do `prepare` for a file of arrays, and for the bundled digits."""
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
