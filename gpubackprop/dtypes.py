"""The storage dtypes: one row each, with all that the rest of the package knows of them.

A storage dtype is what arrays are held in; sums and functions are computed in its compute type. A
row that is added here still needs the CUDA type of its name in ``kernels/include/types.cuh``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpubackprop.errors import MissingDependencyError


@dataclass(frozen=True)
class Storage:
    """One storage dtype.

    Attributes
    ----------
    name : NumPy's, also PyTorch's. suffix : in the names of kernels' entries.
    bytes : of a number. compute : name of the dtype that is computed in.
    cuda : the C++ type. cublas : CUDA's number of it (library_types.h).
    epsilon : distance from 1 to the next number.
    """

    name: str
    suffix: str
    bytes: int
    compute: str
    cuda: str
    cublas: int
    epsilon: float

    @property
    def sixteen_bit(self) -> bool:
        """Whether it is narrower than what is computed in."""
        return self.name != self.compute

    def numpy(self) -> np.dtype:
        """NumPy's dtype.

        Raises
        ------
        MissingDependencyError : bfloat16, which ml_dtypes brings to NumPy, without that package.
        """
        if hasattr(np, self.name):
            return np.dtype(self.name)
        try:
            return np.dtype(getattr(importlib.import_module("ml_dtypes"), self.name))
        except ImportError:
            raise MissingDependencyError(
                f"{self.name} needs the package ml_dtypes, which brings the type to NumPy; "
                f"run: pip install ml_dtypes"
            ) from None


STORAGES: dict[str, Storage] = {
    row.name: row
    for row in (
        Storage("float64", "f64", 8, "float64", "double", 1, 2.0**-52),
        Storage("float32", "f32", 4, "float32", "float", 0, 2.0**-23),
        Storage("float16", "f16", 2, "float32", "float16", 2, 2.0**-10),
        Storage("bfloat16", "bf16", 2, "float32", "bfloat16", 14, 2.0**-7),
    )
}
SIXTEEN_BIT = tuple(name for name, row in STORAGES.items() if row.sixteen_bit)
COMPUTE = tuple(name for name, row in STORAGES.items() if not row.sixteen_bit)
# Integers that kernels read, beside the storage dtypes: name, suffix.
INTEGERS = {"int64": "i64", "int32": "i32", "uint8": "u8"}
SUFFIXES = {name: row.suffix for name, row in STORAGES.items()} | INTEGERS
BYTES = {row.suffix: row.bytes for row in STORAGES.values()} | {
    suffix: np.dtype(name).itemsize for name, suffix in INTEGERS.items()
}
BY_SUFFIX = {row.suffix: row for row in STORAGES.values()}


def name_of(dtype: Any) -> str:
    """NumPy's name of a dtype of NumPy or of PyTorch, or of a name."""
    name = getattr(dtype, "name", None)
    if isinstance(name, str):
        return name
    text = str(dtype)
    return text.removeprefix("torch.") if text.startswith("torch.") else np.dtype(dtype).name


@lru_cache(256)
def storage(dtype: Any) -> Storage | None:
    """The row of a dtype; None where arrays of it are no storage."""
    return STORAGES.get(name_of(dtype))


def compute_dtype(dtype: Any) -> np.dtype:
    """What is computed in for arrays of `dtype`: float64 for float64, else float32."""
    row = storage(dtype)
    return np.dtype("float32" if row is None else row.compute)


def is_number(dtype: np.dtype) -> bool:
    """Whether it is a real number type: a float of any width, an integer or a truth value."""
    return dtype.kind in "fiub" or dtype.name in STORAGES
