"""What all native operations share: which arrays they take, parts for threads, and the call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from gpubackprop.backends.native import library as libraries
from gpubackprop.backends.native.arguments import CODES, Record, address, record, record_type
from gpubackprop.backends.native.library import Library
from gpubackprop.backends.numpy import NumpyBackend, blocks
from gpubackprop.backends.numpy.recorded_calls import (
    WORKERS,
    Call,
    RecordedCalls,
    get_num_threads,
    run_now,
)
from gpubackprop.dtypes import compute_dtype

Array = np.ndarray
Part = tuple[int, int]  # rows or elements [first, last)

_codes: dict[np.dtype, int] = {}


def code_of(array: Array) -> int:
    """Return the number of the array's dtype; -1 if the host kernels do not read it."""
    dtype = array.dtype
    code = _codes.get(dtype)
    if code is None:
        name = "uint8" if dtype.name == "bool" else dtype.name
        code = _codes[dtype] = CODES.get(name, -1) if dtype.isnative else -1
    return code


def row_stride(matrix: Array) -> int:
    """Return the elements from a row of (N, D) to the next; -1 if D has gaps, or memory does."""
    row, column = matrix.strides
    itemsize = matrix.itemsize
    if (column != itemsize and matrix.shape[1] > 1) or not matrix.flags.aligned:
        return -1
    if len(matrix) < 2:
        return matrix.shape[1]
    stride, rest = divmod(row, itemsize)
    return stride if not rest and stride >= 0 else -1


def rows_of(*matrices: Array | None) -> list[int] | None:
    """Return the `row_stride` of each (0 for None), or None if one of them has gaps."""
    strides = []
    for matrix in matrices:
        strides.append(0 if matrix is None else row_stride(matrix))
    return None if -1 in strides else strides


def is_vector(*vectors: Array | None) -> bool:
    """Return whether the elements of each stand side by side."""
    for vector in vectors:
        if vector is not None and not (vector.flags.c_contiguous and vector.flags.aligned):
            return False
    return True


def compute_of(array: Array) -> np.dtype:
    """Return the dtype in which numbers of the array are computed."""
    return compute_dtype(array.dtype)


def same_formula(known: Any, entry: Any, functions: Sequence[str]) -> bool:
    """Return whether `entry` has the functions of the registry's entry of its name."""
    return known is entry or all(
        getattr(known, name, None) is getattr(entry, name) for name in functions
    )


def is_native(call: Call) -> bool:
    """Return whether a recorded call is one of a host kernel."""
    return hasattr(call[0], "address")


def joined(library: Library, calls: list[Call]) -> list[Call]:
    """Return the calls with host kernels that follow one another as one call of the library."""
    result: list[Call] = []
    for native, group in groupby(calls, is_native):
        some = list(group)
        result += [_run(library, some)] if native and len(some) > 1 else some
    return result


def _run(library: Library, calls: list[Any]) -> Call:
    """Return the call that makes these calls of host kernels."""
    records = [args[0]._obj for _, args in calls]
    addresses = ctypes.c_void_p * len(calls)
    functions = addresses(*(function.address for function, _ in calls))
    arguments = addresses(*map(ctypes.addressof, records))
    made = record_type("run")()
    made.functions, made.arguments = ctypes.addressof(functions), ctypes.addressof(arguments)
    made.count = len(calls)
    made.arrays = {"functions": functions, "arguments": arguments, "records": records}
    return library.run, (ctypes.byref(made),)


class NativeCalls(NumpyBackend):
    """The mechanism of the native operations; see `NativeBackend`."""

    device = "cpu"

    def same_start(self, a: Array, b: Array) -> bool:
        return address(a) == address(b)

    def _native(self, name: str) -> Library | None:
        """Return the library, or None if NumPy computes what the kernel of that name would."""
        if self.device != "cpu":
            return None
        found = (libraries._path or libraries.host_path()).library
        return found if found is not None and name in found.has else None

    def _planned(self, recorded: RecordedCalls) -> Callable[[], None]:
        library = self._native("run")
        if library is None:
            return super()._planned(recorded)
        recorded.calls = joined(library, recorded.calls)
        if len(recorded.calls) == 1 and is_native(recorded.calls[0]):
            function, args = recorded.calls[0]
            return partial(function, *args)
        return recorded.run

    def _parts(self, rows: int, nbytes: int, chunk: int = 1) -> list[Part]:
        """Cut `rows` rows of `nbytes` bytes in all into a part for each thread, if that pays.

        Parts begin at multiples of `chunk` rows.
        """
        now = self._call is run_now
        enough = blocks.THREAD_BYTES if now else blocks.PLANNED_THREAD_BYTES
        chunks = -(-rows // chunk)
        threads = min(get_num_threads(), chunks) if nbytes >= enough else 1
        if threads < 2:
            return [(0, rows)]
        bounds = [min(rows, chunks * number // threads * chunk) for number in range(threads + 1)]
        return list(pairwise(bounds))

    def _issue(
        self,
        function: Any,
        name: str,
        values: Mapping[str, Any],
        parts: Sequence[Part] | None = None,
    ) -> None:
        """Issue a call of a host kernel, or a call for each part, side by side."""
        if parts is None:
            self._call_native(function, record(name, values))
            return
        records = [record(name, {**values, "first": first, "last": last}) for first, last in parts]
        if len(records) == 1:
            self._call_native(function, records[0])
            return
        calls: list[list[Call]] = [[(function, (ctypes.byref(made),))] for made in records]
        self._call(WORKERS.run, calls)

    def _call_native(self, function: Any, made: Record) -> None:
        if self._call is run_now:  # a host kernel gives no float warnings
            function(ctypes.byref(made))
        else:
            self._call(function, ctypes.byref(made))

    def _copied(self, array: Array, dtype: Any, number: int) -> Array:
        """Return a contiguous copy of another dtype: now, or whenever the plan runs."""
        if self._call is run_now:
            return array.astype(dtype, order="C")
        copy = self._scratch().take(0, number, array.shape, np.dtype(dtype))
        self._call(np.copyto, copy, array, "unsafe")
        return copy
