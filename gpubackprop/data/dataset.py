"""One entrance for all file formats: `load_dataset`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.data.arrays import load_npy, load_npz
from gpubackprop.data.columns import Names
from gpubackprop.data.files import check_file
from gpubackprop.data.finite import require_finite
from gpubackprop.data.idx import is_idx_name, load_idx
from gpubackprop.data.tables import read_csv, read_parquet
from gpubackprop.errors import DataError
from gpubackprop.ops.display import names, size

Array = npt.NDArray[Any]
KNOWN = ".csv, .csv.gz, .tsv, .tsv.gz, .parquet, .npz, .npy, and IDX (.idx, *-idx3-ubyte; also .gz)"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and raw targets of one file.

    Parameters
    ----------
    x : (N, D) array
        Numbers, N > 0 and D > 0. CSV and Parquet give float64, or float32 if that is exact. NPY and
        uncompressed IDX give a read-only memmap of the file's dtype; IDX and some NPY files are
        big-endian: cast batches, or let `Standardizer.transform` do it.
    y : array or None
        Numbers, booleans or strings, (N,) or (N, K); None if no target was asked for.
    feature_names : tuple of D str, or None
        Names of the inputs' columns; None if the file has none.
    target_names : tuple of K str, or None
        Names of the targets' columns; None if the file has none.
    source : str
        The path, for messages.

    Examples
    --------
    >>> np.savez("data.npz", x=np.eye(3), y=np.arange(3))
    >>> load_dataset("data.npz", target="y")
    Dataset(data.npz: x (3, 3) float64; y (3,) int64)
    """

    x: Array
    y: Array | None
    feature_names: tuple[str, ...] | None
    target_names: tuple[str, ...] | None
    source: str

    def __repr__(self) -> str:
        shown = [f"x {size(self.x)}", f"y {size(self.y)}"]
        shown += [] if self.feature_names is None else [f"features {names(self.feature_names)}"]
        shown += [] if self.target_names is None else [f"targets {names(self.target_names)}"]
        return f"Dataset({self.source}: {'; '.join(shown)})"


def load_dataset(
    path: str | os.PathLike[str],
    *,
    target: Names = None,
    features: str | Sequence[str] | None = None,
    header: bool = True,
) -> Dataset:
    """Read a data file; its suffix says the format.

    Parameters
    ----------
    path : path
        A file .csv, .tsv, .parquet, .npz, .npy, or IDX (MNIST's names, .idx); text and IDX also
        with .gz.
    target : str, int, sequence or None
        CSV and Parquet: a column name, or several in a sequence or separated by commas. CSV without
        header: column indices ("0", "-1"). NPZ: the key of the targets. NPY and IDX: the path of an
        NPY or IDX file with the targets. If None, y is None.
    features : str, sequence of str, or None
        CSV and Parquet: the columns to use, in that order; others are ignored. If None, all but the
        targets. NPZ: the key of the inputs; if None, "x" or else the only other array. NPY and IDX
        have no names: it must be None.
    header : bool
        Whether line 1 of a CSV file names the columns; other formats ignore it.

    Returns
    -------
    Dataset
        Everything that was read into memory has been checked for NaN and infinities. A
        memory-mapped x has not: `Standardizer.fit` or `check_finite` checks it in batches.

    Raises
    ------
    DataError
        The file is unreadable, damaged or does not fit; the message names file, row and column.
    MissingDependencyError
        CSV or Parquet is to be read without pyarrow.

    Examples
    --------
    >>> np.save("inputs.npy", np.ones((4, 2)))
    >>> load_dataset("inputs.npy").x.shape
    (4, 2)
    """
    file = check_file(path)
    kind = _format(file)
    if kind in ("csv", "parquet"):
        if kind == "csv":
            table = read_csv(file, target, features, header)
        else:
            table = read_parquet(file, target, features)
        return Dataset(*table, source=str(file))
    if kind == "npz":
        x, y, key = load_npz(file, target, features)
        x = _as_inputs(x, f"{file}, array {key!r}")
        if y is not None:
            y = _as_targets(y, f"{file}, array {target!r}")
        require_finite(x, source=f"{file}, array {key!r}")
        return _paired(x, y, str(file), str(file))
    if features is not None:
        raise DataError(f"{file} has no column names to choose features from; pass features=None")
    x = _as_inputs(_load_array(file, kind), str(file))
    if target is None:
        return _paired(x, None, str(file), "")
    target_file, target_kind = _target_file(target, file)
    y = _as_targets(_load_array(target_file, target_kind), str(target_file))
    return _paired(x, y, str(file), str(target_file))


def _format(file: Path) -> str:
    """Return the format that the file's name says: csv, parquet, npz, npy or idx."""
    name = file.name.lower()
    if is_idx_name(name):
        return "idx"
    for suffix in (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".npz", ".npy"):
        if name.endswith(suffix):
            return suffix.split(".")[1].replace("tsv", "csv")
    got = f"the suffix {file.suffix!r}" if file.suffix else "no suffix"
    raise DataError(f"{file} has {got}, which says no known format; known are {KNOWN}")


def _target_file(target: Names, file: Path) -> tuple[Path, str]:
    """Return file and format of the targets of an NPY or IDX file."""
    if not isinstance(target, str | os.PathLike):
        raise DataError(
            f"target is {target!r}; for {file} it must be the path of an NPY or IDX file that "
            "holds the targets"
        )
    target_file = check_file(target)
    kind = _format(target_file)
    if kind not in ("npy", "idx"):
        raise DataError(
            f"{target_file} cannot hold the targets of {file}; use an NPY or IDX file for them"
        )
    return target_file, kind


def _load_array(file: Path, kind: str) -> Array:
    return load_npy(file) if kind == "npy" else load_idx(file)


def _as_inputs(x: Array, source: str) -> Array:
    """Return `x` as (N, D) numbers without a copy; booleans are viewed as uint8."""
    if x.dtype.kind not in "biuf":
        raise DataError(
            f"{source} has dtype {x.dtype}; features must be real numbers: save them as float32"
        )
    if x.ndim < 2:
        raise DataError(
            f"{source} has shape {x.shape} but features want (rows, columns); save "
            "x.reshape(-1, 1) for one feature, x.reshape(1, -1) for one row"
        )
    if x.size == 0:
        what = "rows" if x.shape[0] == 0 else "columns"
        raise DataError(f"{source} has shape {x.shape}: no {what}; one or more is needed")
    if x.ndim > 2:
        if not x.flags.c_contiguous:  # reshape would copy the whole file into memory
            raise DataError(
                f"{source} has shape {x.shape} in Fortran order, which cannot be flattened in "
                "place; save numpy.ascontiguousarray(x), or x.reshape(len(x), -1)"
            )
        x = x.reshape(x.shape[0], -1)
    return x.view(np.uint8) if x.dtype == np.bool_ else x


def _as_targets(y: Array, source: str) -> Array:
    """Return `y` as (N,) or (N, K) numbers, booleans or strings."""
    if y.dtype.kind not in "biufUS":
        raise DataError(
            f"{source} has dtype {y.dtype}; targets are real numbers, booleans or strings"
        )
    if y.ndim not in (1, 2) or 0 in y.shape[1:]:
        raise DataError(f"{source} has shape {y.shape}; targets want (N,) or (N, K)")
    require_finite(y, source=source)
    return y


def _paired(x: Array, y: Array | None, x_source: str, y_source: str) -> Dataset:
    """Compare the lengths and return a Dataset without names."""
    if y is not None and x.shape[0] != y.shape[0]:
        raise DataError(
            f"x has {x.shape[0]} rows ({x_source}) but y has {y.shape[0]} ({y_source}); "
            "inputs and targets must be of the same set and order"
        )
    return Dataset(x, y, None, None, x_source)
