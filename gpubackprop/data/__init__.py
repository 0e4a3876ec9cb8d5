"""Data: files to arrays, standardisation, label encoding and splits. Everything here is NumPy.

load_dataset    CSV, Parquet, NPZ, NPY and IDX files to a `Dataset`; NPY and IDX stay memory-mapped
Standardizer    x -> (x - mean) / scale, fitted in one streaming pass
encode_labels   labels of any kind to class indices
infer_task      classification or regression, from the targets
split_rows      seeded training and test rows, stratified if asked
check_finite    the first NaN or infinity, by row and column

pyarrow is imported by the CSV and Parquet readers only when they run.
"""

from gpubackprop.data.dataset import Dataset, load_dataset
from gpubackprop.data.finite import check_finite
from gpubackprop.data.labels import encode_labels, infer_task
from gpubackprop.data.split import split_rows
from gpubackprop.data.standardize import Standardizer

__all__ = [
    "Dataset",
    "Standardizer",
    "check_finite",
    "encode_labels",
    "infer_task",
    "load_dataset",
    "split_rows",
]
