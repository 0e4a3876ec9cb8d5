"""Data: files to arrays, standardisation, label encoding and splits. Everything here is NumPy.

load_dataset      CSV, Parquet, NPZ, NPY and IDX files to a `Dataset`; NPY and IDX stay mapped
table_rows        a Parquet or CSV file beyond memory to rows of a mapped file, by several ranks
TablePreprocessor text, categories, dates and gaps of any table to inputs of a network
Standardizer      x -> (x - mean) / scale, fitted in one streaming pass
encode_labels     labels of any kind to class indices
balanced_weights  a weight for each class, with which all classes count alike
infer_task        classification, regression or several labels, from the targets
split_rows        seeded training and test rows, stratified if asked
split_groups      the same with all rows of a group in one part
check_finite      raises at the first NaN or infinity, naming row and column

pyarrow is imported only when a CSV or Parquet file, or a frame of pyarrow's own, is read; narwhals
only when a data frame is read as a table.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpubackprop.data.dataset import Dataset, load_dataset
    from gpubackprop.data.frames import check_finite
    from gpubackprop.data.labels import balanced_weights, encode_labels, infer_task
    from gpubackprop.data.mapped_table import TableRows, table_rows
    from gpubackprop.data.preprocessor import TablePreprocessor
    from gpubackprop.data.split import split_groups, split_rows
    from gpubackprop.data.standardize import Standardizer

# Loaded at first use: a network needs only the frames, not the readers of files.
_HOME = {
    "Dataset": "dataset",
    "load_dataset": "dataset",
    "check_finite": "frames",
    "balanced_weights": "labels",
    "encode_labels": "labels",
    "infer_task": "labels",
    "split_groups": "split",
    "split_rows": "split",
    "Standardizer": "standardize",
    "TablePreprocessor": "preprocessor",
    "TableRows": "mapped_table",
    "table_rows": "mapped_table",
}

__all__ = [
    "Dataset",
    "Standardizer",
    "TablePreprocessor",
    "TableRows",
    "balanced_weights",
    "check_finite",
    "encode_labels",
    "infer_task",
    "load_dataset",
    "split_groups",
    "split_rows",
    "table_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
