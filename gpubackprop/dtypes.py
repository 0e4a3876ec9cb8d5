"""The storage dtypes: one row each, with all that the rest of the package knows of it.

Arrays are held in a storage dtype; sums and functions are computed in its compute dtype. A new row
also wants the CUDA type of its name in ``kernels/include/types.cuh``.
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
    name : str
        NumPy's name, which is also PyTorch's.
    suffix : str
        Suffix in the names of kernels' entries.
    bytes : int
        Bytes of a number.
    compute : str
        Name of the compute dtype.
    cuda : str
        The C++ type.
    cublas : int
        CUDA's number of the type (library_types.h).
    epsilon : float
        Distance from 1 to the next number.
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
        """Whether it is narrower than its compute dtype."""
        return self.name != self.compute

    def numpy(self) -> np.dtype:
        """Return NumPy's dtype.

        Raises
        ------
        MissingDependencyError
            bfloat16 is wanted without the package ml_dtypes, which brings it to NumPy.
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
# Integer dtypes that kernels read: name, suffix.
INTEGERS = {"int64": "i64", "int32": "i32", "uint8": "u8"}
SUFFIXES = {name: row.suffix for name, row in STORAGES.items()} | INTEGERS
BYTES = {row.suffix: row.bytes for row in STORAGES.values()} | {
    suffix: np.dtype(name).itemsize for name, suffix in INTEGERS.items()
}
BY_SUFFIX = {row.suffix: row for row in STORAGES.values()}


def name_of(dtype: Any) -> str:
    """Return NumPy's name of a dtype, which may be NumPy's, PyTorch's or a name."""
    name = getattr(dtype, "name", None)
    if isinstance(name, str):
        return name
    text = str(dtype)
    return text.removeprefix("torch.") if text.startswith("torch.") else np.dtype(dtype).name


@lru_cache(256)
def storage(dtype: Any) -> Storage | None:
    """Return the row of a dtype; None if it is no storage dtype."""
    return STORAGES.get(name_of(dtype))


def compute_dtype(dtype: Any) -> np.dtype:
    """Return the compute dtype for arrays of `dtype`: float64 for float64, else float32."""
    row = storage(dtype)
    return np.dtype("float32" if row is None else row.compute)


def is_number(dtype: np.dtype) -> bool:
    """Return whether it is a dtype of real numbers: floats of any width, integers or booleans."""
    return dtype.kind in "fiub" or dtype.name in STORAGES
