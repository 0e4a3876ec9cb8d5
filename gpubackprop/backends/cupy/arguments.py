"""The arguments of the kernels: one record for each, passed by value, declared here and in CUDA.

A kernel has one parameter, a struct (``template <class T> struct ...Arguments`` in its source).
`ARGUMENTS` has the same fields in the same order. It gives the NumPy dtype whose bytes are that
struct's, and the check of the struct, which is compiled with every entry. CuPy passes a structured
array of one element by value and checks neither its dtype nor its size (cupy/cuda/function.pyx,
`CNumpyArray`). Only that check and `Layout.record` keep a number from landing in another parameter.

A new option of a kernel is one field here, and one in its struct.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from gpubackprop.backends.cupy_launch import entries, resident_kernel, spread_kernel
from gpubackprop.dtypes import BY_SUFFIX, STORAGES, SUFFIXES
from gpubackprop.errors import DtypeError

Array = Any  # a cupy.ndarray
Defines = tuple[tuple[str, str], ...]

LABELS = (np.uint8, np.int32, np.int64)

# Kinds of fields. `...*` is the address of an array; without *, what it says, by value.
#   storage, compute        the type of the entry's arrays, and the type that it is computed in
#   product                 of the matrix product in front of a layer
#   parameter gradient copy of an update
#   source                  that the entry's name has in front of the storage
#   labels                  one of LABELS
#   words                   words of 4 bytes, whose meaning the kernel need not know
#   statistics              Statistics<C> of include/softmax.cuh, in an array of float64
#   number                  a compute by value, or the address of one (Number<C> of include/
#                           arguments.cuh)
_DROPOUT_STATE = {"dropout_state": "u64*"}
_LAYER_NUMBERS = {
    "dropout_threshold": "i64", "dropout_layer": "i64", "dropout_row": "i64",
    "parameter": "compute", "dropout_scale": "compute", "join": "i32",
}  # fmt: skip
_SOFTMAX = {
    "logits": "storage*", "labels": "labels*", "probabilities": "compute*", "delta": "storage*",
    "row_loss": "compute*", "lse": "compute*", "predicted": "i64*", "correct": "u8*",
    "sample_weight": "compute*", "class_weight": "compute*", "upstream": "number",
    "divisor": "number", "bad_label": "i64*", "partial": "statistics*", "loss": "compute*",
    "weight_sum": "compute*", "correct_rows": "i64*", "sums": "compute*", "counter": "i32*",
    "upstream_stride": "i64",
    "ignore_index": "i64", "rows": "i64", "cols": "i64", "stride_logits": "i64",
    "stride_delta": "i64", "stride_probabilities": "i64", "one_minus_eps": "compute",
    "eps_over_K": "compute", "z_loss": "compute", "soft_cap": "compute", "factor": "compute",
    "label_bytes": "i32", "has_ignore_index": "i32", "log_output": "i32", "shared_packs": "i32",
    "weigh": "i32", "empty_is_zero": "i32", "factor_is_known": "i32", "is_plain": "i32",
    "wants_best": "i32", "spread": "i32",
}  # fmt: skip
_AFFINE_EPILOGUE = {
    "product": "product*", "bias": "storage*", "a": "storage*", "h": "storage*", **_DROPOUT_STATE,
    "rows": "i64", "cols": "i64", "stride_product": "i64", "stride_a": "i64", "stride_h": "i64",
    **_LAYER_NUMBERS,
}  # fmt: skip
_ACTIVATION_BACKWARD = {
    "grad_h": "storage*", "saved": "storage*", "delta": "storage*", "partial": "compute*",
    **_DROPOUT_STATE, "rows": "i64", "cols": "i64", "stride_grad": "i64", "stride_saved": "i64",
    "stride_delta": "i64", **_LAYER_NUMBERS,
}  # fmt: skip
ARGUMENTS: dict[str, dict[str, str]] = {
    "affine_epilogue": _AFFINE_EPILOGUE,
    "affine_epilogue_dropout": _AFFINE_EPILOGUE,
    "activation_backward": _ACTIVATION_BACKWARD,
    "activation_backward_dropout": _ACTIVATION_BACKWARD,
    "column_sum": {
        "x": "storage*", "partial": "compute*", "rows": "i64", "cols": "i64", "stride": "i64",
        "join": "i32",
    },
    "column_sum_finish": {
        "partial": "compute*", "out": "storage*", "divisor": "number", "rows": "i64",
        "cols": "i64", "empty_is_zero": "i32",
    },
    "pointwise_loss": {
        "a": "storage*", "targets": "compute*", "delta": "storage*", "row_loss": "compute*",
        "correct": "u8*", "sample_weight": "compute*", "upstream": "number", "divisor": "number",
        "loss": "compute*", "correct_rows": "i64*", "sums": "compute*", "counter": "i32*",
        "upstream_stride": "i64", "rows": "i64", "cols": "i64", "stride_a": "i64",
        "stride_targets": "i64", "stride_delta": "i64", "parameter": "compute",
        "empty_is_zero": "i32",
    },
    "softmax_cross_entropy": _SOFTMAX,
    "softmax_cross_entropy_lanes": _SOFTMAX,
    "softmax_cross_entropy_pairs": _SOFTMAX,
    "softmax_cross_entropy_short": _SOFTMAX,
    "row_weights": {
        "labels": "source*", "sample_weight": "compute*", "class_weight": "compute*",
        "total": "compute*", "sums": "compute*", "counter": "i32*", "ignore_index": "i64",
        "classes": "i64", "rows": "i64", "factor": "compute", "has_ignore_index": "i32",
    },
    "update": {
        "p": "parameter*", "g": "gradient*", "s0": "compute*", "s1": "compute*", "s2": "compute*",
        "copy": "copy*", "c": "compute*", "random": "u64*", "penalized": "i64", "count": "i64",
    },
    "prepare_update": {
        "settings": "f64*", "state": "f64*", "norm": "compute*", "c": "compute*",
        "scaling": "compute*", "random": "u64*", "totals": "f64*", "loss": "compute*",
        "correct_rows": "i64*", "weights2": "compute*", "l2": "number", "rows": "i64",
    },
    "update_table": {"table": "u64*", "owner": "i32*", "c": "compute*"},
    "prepare_table": {
        "table": "u64*", "settings": "f64*", "scale": "f32*", "found_inf": "f32*", "c": "compute*",
        "tensors": "i64",
    },
    "sum_of_squares": {
        "x": "storage*", "p": "compute*", "partial": "compute*", "unscale": "number",
        "l2": "number", "penalized": "i64", "count": "i64",
    },
    "sum_of_squares_finish": {"partial": "compute*", "out": "compute*", "blocks": "i64"},
    "gather_rows": {
        "source": "source*", "rows": "i64*", "cursor": "u64*", "out": "storage*",
        "beside0": "words*", "beside1": "words*", "beside2": "words*", "beside_out0": "words*",
        "beside_out1": "words*", "beside_out2": "words*", "counter": "i32*", "count": "i64",
        "cols": "i64", "source_rows": "i64", "stride_source": "i64", "stride_out": "i64",
        "words0": "i32", "words1": "i32", "words2": "i32", "most_words": "i32",
    },
    "one_hot_forward": {
        "codes": "i32*", "W": "storage*", "a": "storage*", "rows": "i64", "groups": "i64",
        "units": "i64", "inputs": "i64", "stride_W": "i64", "stride_a": "i64", "add": "i32",
    },
    "one_hot_backward": {
        "codes": "i32*", "tiles": "i32*", "delta": "storage*", "grad_W": "storage*", "rows": "i64",
        "groups": "i64", "units": "i64", "stride_delta": "i64", "stride_W": "i64",
    },
    "accumulate": {
        "loss": "compute*", "correct": "u8*", "correct_rows": "i64*", "weights2": "compute*",
        "totals": "f64*",
        "l2": "number", "rows": "i64",
    },
    **{
        kernel: {"table": "u64*", "layers": "i32*"}
        for kernel in (resident_kernel(n, tf32) for n in (1, 2, 4, 8) for tf32 in (False, True))
    },
    **{
        spread_kernel(tf32): {
            "table": "u64*", "layers": "i32*", "partial": "f32*", "figures": "f32*",
            "stride": "i64",
        }
        for tf32 in (False, True)
    },
    "spread_sum": {
        "partial": "f32*", "figures": "f32*", "gradient": "f32*", "loss": "f32*",
        "correct_rows": "i64*", "shares": "i64", "count": "i64", "stride": "i64",
        "divisor": "compute", "units": "compute", "empty_is_zero": "i32",
    },
}  # fmt: skip
# NumPy's dtypes by the names that CUDA's types have in include/types.cuh.
_NUMBERS = {suffix: np.dtype(name) for name, suffix in SUFFIXES.items() if suffix != "bf16"}
_NUMBERS |= {"u64": np.dtype(np.uint64)}
_NAMES = {suffix: name for name, suffix in SUFFIXES.items()} | {"u64": "uint64"}


class Record(np.ndarray):
    """The arguments of one launch: a structured array of 0 dimensions, which CuPy passes by value.

    Attributes
    ----------
    arrays : dict
        The arrays of its addresses, by field. They live as long as the record, so a plan that keeps
        the record keeps them.
    """

    arrays: dict[str, Array]

    def point_to(self, name: str, array: Array) -> None:
        """Put another array of the same dtype and shape in the place of field `name`."""
        field = self[name]
        address = int(array.data.ptr)
        if field.dtype.names:
            field["at"] = address
        else:
            self[name] = address
        self.arrays[name] = array


@dataclass(frozen=True)
class Layout:
    """The record of one entry.

    Attributes
    ----------
    entry : str
        The entry's name.
    kinds : dict
        Kind of each field, by name.
    types : dict
        The meaning of storage, compute, ... in this entry, by the names of include/types.cuh.
    """

    entry: str
    kinds: Mapping[str, str]
    types: Mapping[str, str]

    @cached_property
    def dtype(self) -> np.dtype:
        """The dtype, laid out as a C compiler does."""
        return np.dtype(
            [(name, self._format(kind)) for name, kind in self.kinds.items()], align=True
        )

    def _format(self, kind: str) -> np.dtype:
        if kind.endswith("*"):
            return np.dtype(np.uintp)
        if kind == "number":
            value = _NUMBERS[self.types["compute"]]
            return np.dtype([("at", np.uintp), ("value", value)], align=True)
        return _NUMBERS[self.types.get(kind, kind)]

    def element(self, kind: str) -> str:
        """Return the element type of an array of that kind, by its name in include/types.cuh."""
        name = "compute" if kind == "number" else kind.rstrip("*")
        return self.types.get(name, name)

    def record(
        self, values: Mapping[str, Any], address: Callable[[Layout, str, Any], int]
    ) -> Record:
        """Return the record with `values`, one for each field.

        Parameters
        ----------
        values : mapping
            Arrays (None for a null pointer) and numbers, by the names of the fields; either for a
            "number".
        address : callable
            Returns the address of an array, after checks.

        Raises
        ------
        TypeError
            A field has no value, or there is no such field.
        DtypeError
            An array has another dtype, or a number a fraction that the field cannot hold.
        """
        if values.keys() != self.kinds.keys():
            raise TypeError(self._wrong_names(values))
        arrays: dict[str, Array] = {}
        numbers: list[Any] = []
        for name, kind in self.kinds.items():
            value = values[name]
            if kind.endswith("*"):
                if value is not None:
                    arrays[name] = value
                numbers.append(0 if value is None else address(self, name, value))
            elif kind == "number":
                if isinstance(value, (int, float, np.number)):
                    numbers.append((0, value))
                else:
                    arrays[name] = value
                    numbers.append((address(self, name, value), 0))
            else:
                if kind != "compute" and isinstance(value, (float, np.floating)):
                    raise DtypeError(f"{self.entry}: {name} is an integer but got {value!r}")
                numbers.append(value)
        record = np.array(tuple(numbers), self.dtype).view(Record)
        record.arrays = arrays
        return record

    def _wrong_names(self, values: Mapping[str, Any]) -> str:
        missing = [name for name in self.kinds if name not in values]
        unknown = [name for name in values if name not in self.kinds]
        parts = [f"has no value for {', '.join(missing)}"] if missing else []
        parts += [f"has no field {', '.join(unknown)}"] if unknown else []
        return f"the record of {self.entry} " + " and ".join(parts)

    def check(self) -> str:
        """Return C++ that does not compile if the entry's struct differs from `dtype`.

        NVRTC has no offsetof. There the names, types and order of all fields and the size stand for
        the offsets, which follow from them.
        """
        places, offsets = [], []
        members = ", ".join(f"member{number}" for number in range(len(self.kinds)))
        assert self.dtype.fields is not None
        for number, (name, kind) in enumerate(self.kinds.items()):
            same = f"IS<decltype(A::{name}), {self._cuda(kind)}> && &member{number} == &a.{name}"
            places.append(f"static_assert({same}, {self._words(name)});")
            offset = f"__builtin_offsetof(A, {name}) == {self.dtype.fields[name][1]}"
            offsets.append(f"static_assert({offset}, {self._words(name)});")
        lines = [
            f"namespace layout_of_{self.entry} {{",
            f"using A = decltype(argument_of({self.entry}));",
            f"static_assert(sizeof(A) == {self.dtype.itemsize}, {self._words('its size')});",
            "__device__ inline void check() {",
            "static constexpr A a{};",
            f"const auto& [{members}] = a;",
            *places,
            "}",
            "#ifndef __CUDACC_RTC__",
            *offsets,
            "#endif",
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _cuda(self, kind: str) -> str:
        if kind == "labels*":
            return "void*"
        if kind == "words*":
            return "uint32*"
        if kind == "number":
            return f"Number<{self.element(kind)}>"
        if kind == "statistics*":
            return f"Statistics<{self.types['compute']}>*"
        element = {"i32": "int", "i64": "int64", "u64": "uint64"}
        name = self.element(kind)
        return element.get(name, name) + ("*" if kind.endswith("*") else "")

    def _words(self, name: str) -> str:
        return f'"{name}: {self.entry} and gpubackprop/backends/cupy/arguments.py differ"'


def fits(dtype: Any, element: str) -> bool:
    """Return whether arrays of `dtype` may stand where a kernel has elements of that name."""
    if element == "labels":
        return dtype in LABELS
    if element == "words":
        return bool(np.dtype(dtype).itemsize % 4 == 0)
    if element == "u8":
        return dtype in (np.uint8, np.bool_)
    if element == "statistics":
        return bool(dtype == np.float64)
    return bool(np.dtype(dtype).name == _NAMES[element])


@cache
def layout_of(entry: str, defines: Defines) -> Layout:
    """Return the record of an entry that `gpubackprop.backends.cupy_launch.entries` lists."""
    macros = dict(defines)
    suffix, formula = macros["ONLY_DTYPE"], macros.get("ONLY_FORMULA", "")
    parts = suffix.split("_")
    row = BY_SUFFIX.get(parts[0])
    types = {
        "storage": parts[0], "compute": STORAGES[row.compute if row else "float32"].suffix,
        "product": parts[-1], "parameter": parts[0], "gradient": parts[1 % len(parts)],
        "copy": parts[-1], "source": formula,
    }  # fmt: skip
    return Layout(entry, ARGUMENTS[kernel_of(entry, defines)], types)


def kernel_of(entry: str, defines: Defines) -> str:
    """Return the key of `ARGUMENTS` for an entry: its name without formula and dtype."""
    macros = dict(defines)
    formula = macros.get("ONLY_FORMULA", "")
    return entry.removesuffix(f"_{macros['ONLY_DTYPE']}").removesuffix(
        f"_{formula}" if formula else ""
    )


@cache
def _layouts() -> dict[str, Layout]:
    return {entry: layout_of(entry, defines) for _, entry, defines in entries()}


def layout_named(entry: str) -> Layout:
    """Return the record by the entry's name alone."""
    return _layouts()[entry]


def checks(names: tuple[str, ...]) -> str:
    """Return the text that is compiled behind a source, and checks the structs of these entries."""
    layouts = _layouts()
    text = "".join(layouts[name].check() for name in names if name in layouts)
    return f'\n#line 1 "the records of arguments.py"\n{text}' if text else ""
