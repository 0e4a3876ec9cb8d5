"""The arguments of the host kernels: one record for each, declared here and in C++.

A host kernel is one C function ``gb_<name>(const <Name>Arguments*)``. `ARGUMENTS` has the fields
of ``kernels/host/arguments.hpp`` in the same order. It gives the ctypes structure, and the check of
the C++ struct, which is compiled with the library (`checks`): no number lands in another field.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from gpubackprop.dtypes import STORAGES

Array = np.ndarray

# Kinds of fields: the address of an array, and numbers by value.
TYPES: dict[str, Any] = {
    "*": ctypes.c_void_p,
    "i64": ctypes.c_int64,
    "f64": ctypes.c_double,
    "i32": ctypes.c_int32,
}
_CPP = {"*": "is_pointer", "i64": "is_integral", "f64": "is_floating_point", "i32": "is_integral"}


def _fields(pointers: str, i64: str = "", f64: str = "", i32: str = "") -> dict[str, str]:
    """Return the kind of each field, by name, in the order in which every struct has them."""
    names = {"*": pointers, "i64": i64, "f64": f64, "i32": i32}
    return {field: kind for kind, fields in names.items() for field in fields.split()}


ARGUMENTS: dict[str, dict[str, str]] = {
    "affine_epilogue": _fields(
        pointers="product bias a h dropout_state",
        i64=(
            "first last cols stride_product stride_a stride_h dropout_threshold dropout_layer "
            "dropout_row"
        ),
        f64="parameter dropout_scale",
        i32="storage product_storage activation",
    ),
    "activation_backward": _fields(
        pointers="grad_h saved delta partial grad_b dropout_state",
        i64=(
            "first last rows cols stride_grad stride_saved stride_delta chunk_rows "
            "dropout_threshold dropout_layer dropout_row"
        ),
        f64="parameter dropout_scale",
        i32="storage sum_storage activation",
    ),
    "column_sum": _fields(
        pointers="x partial out",
        i64="first last rows cols stride chunk_rows",
        f64="divisor",
        i32="storage sum_storage",
    ),
    "column_sum_finish": _fields(
        pointers="partial out",
        i64="rows cols",
        f64="divisor",
        i32="storage sum_storage",
    ),
    "softmax_cross_entropy": _fields(
        pointers=(
            "logits labels probabilities delta row_loss lse predicted correct "
            "sample_weight class_weight upstream divisor_at loss"
        ),
        i64=(
            "first last rows cols stride_logits stride_delta stride_probabilities "
            "upstream_stride ignore_index"
        ),
        f64="upstream_value divisor label_smoothing z_loss soft_cap",
        i32="storage label_storage probability_storage has_ignore_index weighs empty_is_zero",
    ),
    "softmax": _fields(
        pointers="a out",
        i64="first last cols stride_a stride_out",
        i32="storage log_output",
    ),
    "output": _fields(
        pointers="a out",
        i64="first last cols stride_a stride_out",
        i32="storage kind",
    ),
    "pointwise_loss": _fields(
        pointers="a targets delta row_loss correct sample_weight upstream divisor_at loss",
        i64="first last rows cols stride_a stride_targets stride_delta upstream_stride",
        f64="upstream_value divisor divisor_factor parameter",
        i32="storage target_storage formula weighs empty_is_zero",
    ),
    "row_weights": _fields(
        pointers="labels sample_weight class_weight divisor_at",
        i64="rows classes ignore_index",
        f64="factor",
        i32="storage label_storage has_ignore_index",
    ),
    "reduce_loss": _fields(
        pointers="row_loss divisor_at loss",
        i64="rows",
        f64="divisor",
        i32="storage empty_is_zero",
    ),
    "update": _fields(
        pointers="p g s0 s1 s2 copy c decay clip l2 unscale random",
        i64="first last penalized",
        i32="storage gradient_storage copy_storage formula",
    ),
    "prepare_update": _fields(
        pointers="hyperparameters c decay",
        f64="lr step weight_decay",
        i32="storage formula",
    ),
    "sum_of_squares": _fields(
        pointers="x partial out",
        i64="first last count chunk",
        i32="storage",
    ),
    "sum_of_squares_finish": _fields(
        pointers="partial out",
        i64="chunks",
    ),
    "add_scaled": _fields(
        pointers="x scale out",
        i64="first last",
        i32="storage",
    ),
    "gather_rows": _fields(
        pointers="source rows out",
        i64="first last cols source_rows stride_source stride_out",
        i32="source_storage out_storage",
    ),
    "standardize": _fields(
        pointers="raw mean scale out",
        i64="first last cols stride_raw stride_out",
        i32="raw_storage out_storage",
    ),
    "divide": _fields(
        pointers="x out",
        i64="first last",
        f64="divisor",
        i32="storage out_storage",
    ),
    "round_to_storage": _fields(
        pointers="x out random",
        i64="first last",
        i32="storage out_storage",
    ),
    "accumulate": _fields(
        pointers="loss correct weights2 l2 totals",
        i64="rows",
        f64="l2_value",
        i32="storage",
    ),
    "one_hot_forward": _fields(
        pointers="codes W a",
        i64="first last groups units inputs stride_W stride_a",
        i32="storage add",
    ),
    "one_hot_backward": _fields(
        pointers="codes bounds delta grad_W sums",
        i64="first last rows groups stride_delta stride_W",
        i32="storage",
    ),
    "run": _fields(
        pointers="functions arguments",
        i64="count",
    ),
}

# Numbers of the dtypes: the enum Storage of kernels/host/arguments.hpp.
CODES = {name: code for code, name in enumerate((*STORAGES, "uint8", "int32", "int64"))}


class Record(ctypes.Structure):
    """The arguments of one call.

    Attributes
    ----------
    arrays : dict
        The arrays of its addresses, by field. They live as long as the record, so a plan that keeps
        the record keeps them.
    """

    arrays: dict[str, Any]


@cache
def record_type(name: str) -> type[Record]:
    """Return the ctypes structure of a host kernel."""
    fields = [(field, TYPES[kind]) for field, kind in ARGUMENTS[name].items()]
    return type(struct_name(name), (Record,), {"_fields_": fields})


def record(name: str, values: Mapping[str, Any]) -> Record:
    """Return the record of a host kernel with `values`, one for each field.

    Parameters
    ----------
    name : str
        The kernel's name.
    values : mapping
        Arrays (None for a null pointer) and numbers, by the names of the fields.

    Raises
    ------
    TypeError
        A field has no value, there is no such field, or a value has the wrong type.
    """
    kinds = ARGUMENTS[name]
    if len(values) != len(kinds):
        raise _wrong_fields(name, values)
    arrays: dict[str, Array] = {}
    fields: list[Any] = []
    for field, kind in kinds.items():
        try:
            value = values[field]
        except KeyError:
            raise _wrong_fields(name, values) from None
        if kind == "*" and value is not None:
            if not isinstance(value, np.ndarray):  # another object has no data where arrays have it
                raise TypeError(f"{field} of {name} is {type(value).__name__} but must be an array")
            arrays[field] = value
            value = address(value)
        fields.append(value)
    made = record_type(name)(*fields)
    made.arrays = arrays
    return made


def _wrong_fields(name: str, values: Mapping[str, Any]) -> TypeError:
    wrong = sorted(values.keys() ^ ARGUMENTS[name].keys())
    return TypeError(f"the record of {name} is not as declared in {', '.join(wrong)}")


def struct_name(name: str) -> str:
    """Return the name of the C++ struct: softmax_cross_entropy -> SoftmaxCrossEntropyArguments."""
    return "".join(part.capitalize() for part in name.split("_")) + "Arguments"


def checks() -> str:
    """Return C++ that does not compile if a struct differs from its fields here."""
    lines = [
        "#include <cstddef>",
        "#include <type_traits>",
        '#include "host/host.hpp"',
    ]
    for name, kinds in ARGUMENTS.items():
        struct, made = struct_name(name), record_type(name)
        words = f'"{struct} and gpubackprop/backends/native/arguments.py differ in '
        size = ctypes.sizeof(made)
        lines.append(f'static_assert(sizeof({struct}) == {size}, {words}their size");')
        for field, kind in kinds.items():
            place = f"offsetof({struct}, {field}) == {getattr(made, field).offset}"
            member = f"decltype({struct}::{field})"
            same = f"std::{_CPP[kind]}<{member}>::value"
            same += f" && sizeof({member}) == {ctypes.sizeof(TYPES[kind])}"
            lines.append(f'static_assert({place} && {same}, {words}{field}");')
    return "\n".join(lines) + "\n"


def _slow_address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


# A NumPy array's object begins with Python's own fields; the address of its data follows. C
# extensions read it there. Asking NumPy takes two microseconds, as long as a small kernel.
_DATA = object.__basicsize__
_word = ctypes.c_void_p.from_address


def _fast_address(array: Array) -> int:
    return _word(id(array) + _DATA).value or 0


def _is_there() -> bool:
    """Return whether `_fast_address` reads what NumPy says, for some arrays."""
    if sys.implementation.name != "cpython":
        return False
    base = np.arange(12.0)
    some = (base, base[3:], base.reshape(3, 4).T, base[::-1], np.zeros((), np.float32))
    return all(_fast_address(array) == _slow_address(array) for array in some)


address = _fast_address if _is_there() else _slow_address
