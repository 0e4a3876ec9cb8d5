"""Launching the kernels: compiled at first use, every argument checked and cast.

CuPy checks neither the types of a raw kernel's arguments nor their count, and passes any view as
the pointer to its first element. So the table below has each entry's parameters, and a launch that
does not fit is an error here instead of a wrong number on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.compiling import Entry, compile_together, compiled
from gpubackprop.backends.cupy.library import explained
from gpubackprop.backends.cupy_launch import DeviceProperties, Launch, plan, suffix_of
from gpubackprop.dtypes import BY_SUFFIX, STORAGES, SUFFIXES, name_of
from gpubackprop.errors import DeviceUnavailable, DtypeError, OptionError, ShapeError

# Parameters of each kernel. With *, arrays: T storage, C compute type, F the type that the formula
# names (the source of a gather), L labels of any type that `LABELS` has, P G N parameters, gradient
# and 16-bit copy, u8 bytes or bool, and plain dtypes. Without, scalars: l int64, i int32, C compute
# type.
_SOFTMAX = "T* L* i C* l T* C* C* i64* u8* C* C* l C* C* C C C l i i i64* l l l l"
PARAMETERS = {
    "affine_epilogue": "N* T* T* T* l l i l l l C",
    "affine_epilogue_dropout": "N* T* T* T* l l i l l l C u64* l C l",
    "activation_backward": "T* T* T* C* l l i l l l C",
    "activation_backward_dropout": "T* T* T* C* l l i l l l C u64* l C l",
    "column_sum": "T* C* l l i l",
    "column_sum_finish": "C* T* l l C* i",
    "pointwise_loss": "T* C* T* C* u8* C* C* l C* l l l l l C",
    "softmax_cross_entropy": f"{_SOFTMAX} f64* i",
    "softmax_cross_entropy_short": _SOFTMAX,
    "row_weights": "F* C* C* l i C l C* l",
    "update": "P* G* C* C* C* N* C* u64* l l",
    "prepare_update": "f64* f64* C* C* C* u64*",
    "update_table": "u64* C* l",
    "prepare_table": "u64* f64* f32* f32* C* l",
    "sum_of_squares": "T* C* C* C* l C* l",
    "sum_of_squares_finish": "C* l C*",
    "gather_rows": "F* i64* T* l l l l l",
    "accumulate": "C* u8* C* C* l f64*",
}
_NAMES = {suffix: name for name, suffix in SUFFIXES.items()} | {"u64": "uint64"}
LABELS = (np.uint8, np.int32, np.int64)
NULL = np.uintp(0)  # a null pointer as CuPy passes it: the eight bytes of a NumPy scalar


def compute_suffix(suffix: str) -> str:
    row = BY_SUFFIX.get(suffix)
    return STORAGES[row.compute if row else "float32"].suffix


def row_stride(array: Any) -> int:
    """Elements from one row of a matrix to the next; the row's length where there is one row."""
    if array is None:
        return 0
    if array.shape[0] < 2:
        return int(array.shape[1])
    return int(array.strides[0]) // int(array.itemsize)


def dense(*arrays: Any) -> bool:
    """Whether every matrix (None aside) lies row after row without gaps."""
    return all(a is None or row_stride(a) == a.shape[1] for a in arrays)


class Launcher:
    """Launches entries on one device.

    Parameters
    ----------
    cupy : the module. index : number of the device.
    """

    def __init__(self, cupy: Any, index: int) -> None:
        self.cupy, self.index = cupy, index
        self._with_all_shared: set[str] = set()
        device = cupy.cuda.Device(index)
        attributes, capability = device.attributes, str(device.compute_capability)  # "90", "120"
        self.properties = DeviceProperties(
            int(attributes["MultiProcessorCount"]),
            int(attributes["MaxSharedMemoryPerBlockOptin"]),
            (int(capability[:-1]), int(capability[-1])),
        )

    def plan(self, kernel: str, shape: tuple[int, ...], dtype: Any, **options: Any) -> Launch:
        return plan(kernel, shape, dtype, self.properties, **options)

    def bind(
        self, kernel: str, launch: Launch, arguments: Sequence[Any], formula: Any = ""
    ) -> tuple[Any, ...]:
        """(grid, block, arguments) for the entry, every argument checked and cast."""
        letters = _letters(launch, formula)
        parameters = PARAMETERS[kernel].split()
        if len(arguments) != len(parameters):
            raise TypeError(f"{kernel} takes {len(parameters)} arguments, got {len(arguments)}")
        cast = tuple(
            self._pointer(launch.entry, number, value, letters.get(kind[:-1], kind[:-1]))
            if kind.endswith("*")
            else _scalar(kind, letters, value)
            for number, (kind, value) in enumerate(zip(parameters, arguments, strict=True))
        )
        return launch.grid, launch.block, cast

    def _allow_shared(self, entry: Any, launch: Launch) -> None:
        """CUDA gives an entry more than 48 KiB, its static shared memory included, only where that
        was asked for. All that there is, so that no other backend's wish is undone."""
        if launch.entry in self._with_all_shared:
            return
        with (
            explained(self.cupy, f"shared memory for {launch.entry}"),
            self.cupy.cuda.Device(self.index),
        ):
            most = self.properties.shared_bytes - int(entry.shared_size_bytes)
            entry.max_dynamic_shared_size_bytes = most
        self._with_all_shared.add(launch.entry)

    def entry(self, launch: Launch) -> Any:
        """The compiled kernel, which takes what `bind` gives."""
        with explained(self.cupy, f"compiling {launch.entry}"), self.cupy.cuda.Device(self.index):
            entry = compiled(self.cupy, self.index, _entry(launch))
        if not launch.shared_bytes:
            return entry
        self._allow_shared(entry, launch)
        return partial(entry, shared_mem=launch.shared_bytes)

    def compile_together(self, launches: Iterable[Launch]) -> None:
        """Compile those that were never used, several at a time."""
        entries = {_entry(launch) for launch in launches}
        what = "compiling " + ", ".join(sorted(name for _, name, _ in entries))
        with explained(self.cupy, what), self.cupy.cuda.Device(self.index):
            compile_together(self.cupy, self.index, entries)

    def _pointer(self, entry: str, number: int, array: Any, suffix: str) -> Any:
        if array is None:
            return NULL
        if not isinstance(array, self.cupy.ndarray):
            raise DtypeError(
                f"{entry} wants a device array as argument {number} but got a "
                f"{type(array).__name__}; move it with backend.asarray"
            )
        if not _fits(array.dtype, suffix):
            raise DtypeError(
                f"{entry} wants {suffix} as argument {number} but got {array.dtype}; convert it "
                f"with .astype"
            )
        if int(array.device.id) != self.index:
            raise DeviceUnavailable(
                f"{entry}: argument {number} lies on cuda:{array.device.id} but the work is done "
                f"on cuda:{self.index}; move it there first"
            )
        if array.size:
            _check_layout(entry, number, array)
        return array


def _entry(launch: Launch) -> Entry:
    return launch.source, launch.entry, launch.defines


def _letters(launch: Launch, formula: Any) -> dict[str, str]:
    """What T, C, F, P, G and N stand for in this entry."""
    suffix = dict(launch.defines)["ONLY_DTYPE"]
    parts = suffix.split("_")
    source = suffix_of(formula) if formula else ""
    compute = compute_suffix(parts[0])
    return {
        "T": parts[0], "C": compute, "F": compute if source == "prob" else source,
        "P": parts[0], "G": parts[1 % len(parts)], "N": parts[-1],
    }  # fmt: skip


def _scalar(kind: str, letters: dict[str, str], value: Any) -> Any:
    """`value` as the NumPy scalar whose bytes the kernel reads."""
    if kind in ("l", "i"):
        if isinstance(value, (float, np.floating)):
            raise DtypeError(f"an integer parameter of a kernel got {value!r}")
        return np.int64(value) if kind == "l" else np.int32(value)
    return np.float64(value) if letters[kind] == "f64" else np.float32(value)


def _fits(dtype: Any, suffix: str) -> bool:
    if suffix == "L":
        return dtype in LABELS
    if suffix == "u8":
        return dtype in (np.uint8, np.bool_)
    return name_of(dtype) == _NAMES[suffix]


def _check_layout(entry: str, number: int, array: Any) -> None:
    itemsize = int(array.itemsize)
    if int(array.data.ptr) % itemsize:
        raise OptionError(
            f"{entry}: argument {number} starts at an address that is no multiple of {itemsize} "
            f"bytes, its element size; copy it into an array of its own"
        )
    last = array.strides[-1] if array.ndim else itemsize
    if array.ndim > 2 or (array.shape and array.shape[-1] > 1 and last != itemsize):
        raise ShapeError(
            f"{entry}: argument {number} has shape {array.shape} and strides {array.strides}; the "
            f"elements of a row must be neighbours: use cupy.ascontiguousarray"
        )
    if array.ndim == 2 and array.shape[0] > 1 and array.strides[0] < array.shape[1] * itemsize:
        raise ShapeError(
            f"{entry}: the rows of argument {number} overlap or run backwards (strides "
            f"{array.strides}); use cupy.ascontiguousarray"
        )
