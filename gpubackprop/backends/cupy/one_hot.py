"""The operations on one-hot inputs of the CUDA backend: columns of W by number."""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy.launcher import row_stride
from gpubackprop.backends.cupy_launch import TILE_COLUMNS
from gpubackprop.backends.memory import Array
from gpubackprop.errors import ShapeError

Groups = tuple[tuple[int, int], ...]


class OneHotOperations(Issuer):
    """`one_hot_forward` and `one_hot_backward` of `CupyBackend`."""

    def one_hot_forward(self, codes: Array, W: Array, a: Array, *, add: bool) -> None:
        rows, units = a.shape
        _check(codes, W, a)
        self.launch(
            "one_hot_forward", a.shape, a.dtype,
            lambda launch: {
                "codes": codes, "W": W, "a": a, "rows": rows, "groups": codes.shape[1],
                "units": units, "inputs": W.shape[1], "stride_W": row_stride(W),
                "stride_a": row_stride(a), "add": add,
            },
        )  # fmt: skip

    def one_hot_backward(self, delta: Array, codes: Array, groups: Groups, grad_W: Array) -> None:
        rows, units = delta.shape
        _check(codes, grad_W, delta)
        host, last = tiles_of(groups), max((stop for _, stop in groups), default=0)
        if codes.shape[1] != len(groups) or last > grad_W.shape[1]:
            raise ShapeError(f"codes of {codes.shape} do not fit groups {groups} of {grad_W.shape}")
        tiles = self.asarray(host)
        self.launch(
            "one_hot_backward", (len(host), units), delta.dtype,
            lambda launch: {
                "codes": codes, "tiles": tiles, "delta": delta, "grad_W": grad_W, "rows": rows,
                "groups": len(groups), "units": units, "stride_delta": row_stride(delta),
                "stride_W": row_stride(grad_W),
            },
        )  # fmt: skip


def tiles_of(groups: Groups) -> np.ndarray:
    """Return (T, 3) int32: of each block its first column, how many columns, and their group."""
    tiles = [
        (start, min(TILE_COLUMNS, stop - start), number)
        for number, (first, stop) in enumerate(groups)
        for start in range(first, stop, TILE_COLUMNS)
    ]
    return np.array(tiles, np.int32).reshape(-1, 3)


def _check(codes: Array, W: Array, a: Array) -> None:
    if len(codes) != len(a) or a.shape[1] != len(W):
        raise ShapeError(f"codes {codes.shape}, weights {W.shape} and units {a.shape} do not fit")
