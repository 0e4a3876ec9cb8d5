"""The table of the storage dtypes against NumPy, ml_dtypes, PyTorch and the CUDA sources."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from gpubackprop import dtypes
from gpubackprop.dtypes import BY_SUFFIX, BYTES, INTEGERS, SIXTEEN_BIT, STORAGES, SUFFIXES
from gpubackprop.errors import MissingDependencyError

ROOT = Path(__file__).parents[1]
EACH = pytest.mark.parametrize("row", STORAGES.values(), ids=STORAGES)


@EACH
def test_a_row_says_what_numpy_ml_dtypes_and_pytorch_say(row):
    theirs, numpys = getattr(torch, row.name), row.numpy()
    assert numpys.name == row.name
    assert numpys.itemsize == theirs.itemsize == row.bytes == BYTES[row.suffix]
    assert row.epsilon == float(ml_dtypes.finfo(numpys).eps) == torch.finfo(theirs).eps
    assert row.compute == ("float64" if row.bytes == 8 else "float32")
    assert row.sixteen_bit == (row.bytes == 2) == (row.name in SIXTEEN_BIT)


@EACH
def test_a_dtype_is_found_by_every_object_that_stands_for_it(row):
    for spelled in (row.name, row.numpy(), row.numpy().type, getattr(torch, row.name)):
        assert dtypes.storage(spelled) is row
        assert dtypes.compute_dtype(spelled) == np.dtype(row.compute)
    assert BY_SUFFIX[row.suffix] is row
    assert dtypes.is_number(row.numpy())


def test_other_dtypes_are_no_storage():
    for dtype in (np.int64, np.uint8, np.bool_, np.longdouble, np.complex64, "U3", torch.int8):
        assert dtypes.storage(dtype) is None
    assert [dtypes.is_number(np.dtype(kind)) for kind in (bool, "u1", "U3", complex)] == [
        True, True, False, False,
    ]  # fmt: skip


@EACH
def test_the_cuda_sources_have_the_type_and_the_entries_of_a_row(row):
    """The numbers are those of cudaDataType_t in CUDA's library_types.h."""
    types = (ROOT / "kernels/include/types.cuh").read_text()
    assert f"using {row.suffix} = {row.cuda};" in types
    entries = "".join(path.read_text() for path in (ROOT / "kernels").rglob("*.cuh"))
    assert re.search(rf"ENTRY\(\w+, {row.suffix}\)", entries)
    numbers = {"CUDA_R_32F": 0, "CUDA_R_64F": 1, "CUDA_R_16F": 2, "CUDA_R_16BF": 14}
    kind = "16BF" if row.name == "bfloat16" else f"{8 * row.bytes}F"
    assert row.cublas == numbers[f"CUDA_R_{kind}"]


def test_integers_have_a_suffix_and_their_bytes():
    assert {BYTES[suffix] for suffix in INTEGERS.values()} == {8, 4, 1}
    assert {name: row.suffix for name, row in STORAGES.items()} | INTEGERS == SUFFIXES


def test_bfloat16_without_ml_dtypes_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    row = dtypes.Storage("bfloat17", "bf17", 2, "float32", "none", 0, 1.0)
    with pytest.raises(MissingDependencyError, match="pip install ml_dtypes"):
        row.numpy()


# Figures of one place each: what the benchmarks' comparisons allow.
OWN = {("gpubackprop/bench/problems.py", "float16")}


def test_no_other_table_of_the_package_is_by_the_names_of_the_storage_dtypes():
    found = set()
    for path in sorted((ROOT / "gpubackprop").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            strings = {part.value for part in parts if isinstance(part, ast.Constant)}
            if max(len(strings & set(STORAGES)), len(strings & set(BY_SUFFIX))) > 2:
                found.add((str(path.relative_to(ROOT)), "float16" if "float16" in strings else ""))
    assert found == OWN
