"""The rows of ``gpubackprop train``, ready for the trainer, and their split into parts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.data import Standardizer, TablePreprocessor, split_rows
from gpubackprop.data.folds import fold_numbers
from gpubackprop.data.split import split_groups
from gpubackprop.errors import DataError, GpubackpropError

Array = np.ndarray


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
    x: Any
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


def split(
    args: argparse.Namespace, targets: Array, *, by_class: bool, groups: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return row numbers for training, validation (a share of what --test leaves) and test.

    Rows of one group are in one part. With --validation-last, the parts follow one another in the
    order of the file. If `args.fold` is a number of --folds, the rows of that fold are for test.
    """
    rows, nothing = np.arange(len(targets)), np.zeros(0, np.int64)
    last = args.validation_last
    fold = getattr(args, "fold", None)

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

    if fold is not None:
        classes = targets if by_class else None
        in_fold = fold_numbers(len(rows), args.folds, args.seed, classes, groups) == fold
        rest, test = rows[~in_fold], rows[in_fold]
    else:
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
