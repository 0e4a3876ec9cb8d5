"""The native operations on one-hot inputs: columns of W by number."""

from __future__ import annotations

import ctypes

import numpy as np

from gpubackprop.backends.native.arguments import record
from gpubackprop.backends.native.calls import NativeCalls, code_of, is_vector, rows_of
from gpubackprop.backends.numpy.recorded_calls import WORKERS

Array = np.ndarray
UNITS = 16  # ONE_HOT_UNITS of kernels/host/one_hot.cpp


class NativeOneHot(NativeCalls):
    """The native operations on one-hot inputs; see `NativeBackend`."""

    def one_hot_forward(self, codes: Array, W: Array, a: Array, *, add: bool) -> None:
        library, strides = self._native("one_hot_forward"), rows_of(W, a)
        if library is None or strides is None or not _fits(codes, W, a):
            super().one_hot_forward(codes, W, a, add=add)
            return
        values = {
            "codes": codes, "W": W, "a": a, "groups": codes.shape[1], "units": len(W),
            "inputs": W.shape[1], "stride_W": strides[0], "stride_a": strides[1],
            "storage": code_of(a), "add": add,
        }  # fmt: skip
        parts = self._parts(len(a), a.nbytes * (codes.shape[1] + 1))
        self._issue(library.one_hot_forward, "one_hot_forward", values, parts)

    def one_hot_backward(
        self, delta: Array, codes: Array, groups: tuple[tuple[int, int], ...], grad_W: Array
    ) -> None:
        library, strides = self._native("one_hot_backward"), rows_of(delta, grad_W)
        if library is None or strides is None or not groups or not _fits(codes, grad_W, delta):
            super().one_hot_backward(delta, codes, groups, grad_W)
            return
        values = {
            "codes": codes, "bounds": np.array(groups, np.int64), "delta": delta, "grad_W": grad_W,
            "rows": len(delta), "groups": len(groups), "stride_delta": strides[0],
            "stride_W": strides[1], "storage": code_of(delta),
        }  # fmt: skip
        widest = max(stop - first for first, stop in groups)
        parts = self._parts(len(grad_W), (delta.nbytes + grad_W.nbytes) * len(groups), UNITS)
        records = [
            record(
                "one_hot_backward",
                {**values, "first": first, "last": last, "sums": np.empty(UNITS * widest)},
            )
            for first, last in parts
        ]
        if len(records) == 1:
            self._call_native(library.one_hot_backward, records[0])
        else:
            calls = [[(library.one_hot_backward, (ctypes.byref(made),))] for made in records]
            self._call(WORKERS.run, calls)


def _fits(codes: Array, W: Array, a: Array) -> bool:
    """Return whether the kernels read these arrays: 32-bit codes, and floats of one type."""
    floats = code_of(W) in (0, 1) and code_of(W) == code_of(a)
    return floats and codes.dtype == np.int32 and is_vector(codes) and a.size > 0
